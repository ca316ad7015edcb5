"""CAM, Grad-CAM and LayerCAM, by torchcam."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.peers.libraries import library
from benchmarks.peers.tapped import HookableNetwork, classification_layer

__all__ = ["cam", "grad_cam", "layer_cam"]


def cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""CAM: :math:`\sum_k w^c_k A_k` with the weights of the classifying layer and its input.

    Behind average pooling and one linear layer, this is the definition of Zhou et al. Where rectified layers come
    between the backbone and the classifying layer, the maps are those of the last of them. Either way it is the score
    map without the bias, which Zhou et al. leave out too. Where no linear layer comes last (SqueezeNet's own head,
    which rectifies its scores), nothing can be weighted, and the score map itself is taken, with its bias.

    Args:
        model: tapped at :func:`~benchmarks.peers.tapped.cam_point`.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if torchcam is not installed.
    """
    last = classification_layer(model.network.head)
    if last is None:
        return model.score_maps(images)[0, list(classes)].detach()
    with library("torchcam.methods").CAM(model, model.layer, last) as extractor:
        model(images)
        return torch.cat([extractor(c, normalized=False)[0] for c in classes])


def grad_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""Grad-CAM: :math:`\mathrm{ReLU}(\sum_k w^c_k A_k)`, with the mean over positions of the gradient as weight.

    Args:
        model: tapped at the layer.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, h, w)``, not negative.

    Raises:
        ImportError: if torchcam is not installed.
    """
    return _gradient_maps("GradCAM", model, images, classes)


def layer_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""LayerCAM: :math:`\mathrm{ReLU}(\sum_k \mathrm{ReLU}(g^c_k) A_k)`, each position with a weight of its own.

    Args:
        model: tapped at the layer.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, h, w)``, not negative.

    Raises:
        ImportError: if torchcam is not installed.
    """
    return _gradient_maps("LayerCAM", model, images, classes)


def _gradient_maps(method: str, model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    with getattr(library("torchcam.methods"), method)(model, model.layer) as extractor:
        scores = model(images)
        return torch.cat([extractor(c, scores, normalized=False, retain_graph=True)[0] for c in classes])

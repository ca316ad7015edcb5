"""Grad-CAM++ and FinerCAM, by pytorch-grad-cam (``grad-cam`` on PyPI).

The library subtracts the minimum of a map and divides by the maximum before it resizes. Here its maps are asked for
before that, so that all methods are normalized alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.libraries import library
from benchmarks.peers.tapped import HookableNetwork

__all__ = ["finer_cam", "grad_cam_plus_plus", "most_similar"]


# Both defaults of the library.
_COMPARED = 3
_STRENGTH = 1.0

_Target = Callable[[Tensor], Tensor]


def grad_cam_plus_plus(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""Grad-CAM++: weights :math:`\sum_{x,y} \alpha_k \mathrm{ReLU}(g_k)`, Eq. 19 of Chattopadhay et al. for alpha.

    The library adds 1e-6 to the denominator :math:`2 g^2 + g^3 \sum A` of alpha. Where gradients are below about 1e-3,
    as behind average pooling over a large map, that term decides, and the weights are :math:`10^6 \sum g^3` instead.

    Not by torchcam, up to 0.5.0: there the division by the denominator is done on a copy and lost.

    Args:
        model: tapped at the layer.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if pytorch-grad-cam is not installed.
    """
    target = library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    extractor = library("pytorch_grad_cam").GradCAMPlusPlus(model, [model.layer])
    with _released(extractor):
        return torch.stack([_unscaled(extractor, extractor, images, target(c)) for c in classes])


def finer_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""FinerCAM: Grad-CAM of the mean over similar classes d of :math:`S_c - S_d`, weighted by their softmax.

    Each class is compared with the three whose scores are nearest to its own, or all others where there are fewer, with
    strength alpha = 1: the defaults of the library, in which the gradient passes through the softmax too. (The authors'
    own script compares with one class at alpha = 1, and with three at 0.6.) Unlike the library's search, the one here
    always takes the class that is asked for as the main one, also where several scores are equal.

    Args:
        model: tapped at the layer.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if pytorch-grad-cam is not installed.
        ValueError: if the network has one class only.
    """
    weighted = library("pytorch_grad_cam.utils.model_targets").FinerWeightedTarget

    def target(c: int) -> _Target:
        return lambda scores: weighted(c, most_similar(scores.detach(), c), _STRENGTH)(scores)

    extractor = library("pytorch_grad_cam").FinerCAM(model, [model.layer])
    with _released(extractor.base_cam):
        return torch.stack([_unscaled(extractor, extractor.base_cam, images, target(c)) for c in classes])


def most_similar(scores: Tensor, c: int) -> list[int]:
    """Find the classes that FinerCAM compares a class with.

    Args:
        scores: ``(C,)``.
        c: the class.

    Returns:
        The three other classes with the nearest scores, or all others, the nearest first; of equally near ones the
        lower number first.

    Raises:
        ValueError: if there is no other class.
    """
    if len(scores) < 2:
        raise ValueError("FinerCAM compares a class with others: the network must have at least two classes, it has 1.")
    distances = (scores - scores[c]).abs()
    distances[c] = torch.inf
    return distances.argsort(stable=True)[: min(_COMPARED, len(scores) - 1)].tolist()


def _unscaled(extractor: Any, base: Any, images: Tensor, target: _Target) -> Tensor:
    extractor(images, targets=[target])
    recorded = base.activations_and_grads
    maps = base.get_cam_image(
        images,
        base.target_layers[0],
        [target],
        recorded.activations[0].numpy(),
        recorded.gradients[0].numpy(),
    )
    return torch.from_numpy(maps[0])


@contextmanager
def _released(base: Any) -> Iterator[None]:
    # The library's own context swallows every IndexError, those of the network among them.
    try:
        yield
    finally:
        base.activations_and_grads.release()

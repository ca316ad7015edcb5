"""Guided Grad-CAM, by Captum."""

import warnings
from collections.abc import Sequence

import torch
from captum.attr import GuidedGradCam
from torch import Tensor

from benchmarks.peers.tapped import HookableNetwork
from dcsm_attr.attribution.maps import absolute_channel_maximum

__all__ = ["guided_grad_cam"]


def guided_grad_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Guided Grad-CAM: guided backpropagation to the image, times Grad-CAM, resized bilinearly.

    Of the three colors the largest absolute value counts, as in the class saliency of Simonyan et al. and in Eq. 3 of
    DCSM. Captum guides the modules ``nn.ReLU`` alone: the rectifiers of GoogLeNet, Inception v3 and DenseNet that are
    functions, and those of other kinds, pass plain gradients.

    Args:
        model: tapped at the layer.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        ``(K, H, W)``, not negative.
    """
    method = GuidedGradCam(model, model.layer)
    images = images.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations", UserWarning)
        maps = [method.attribute(images, target=c, interpolate_mode="bilinear") for c in classes]
    return absolute_channel_maximum(torch.cat(maps))[:, 0].detach()

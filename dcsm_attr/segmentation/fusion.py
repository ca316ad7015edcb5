"""Class score maps as heat maps, and their fusion with saliency: coarse but sure of the class, fine but less so.

The slides of the DCSM talk (ECCV 2016) show this as "FCN with GBP": the heat map of a fully convolutional network,
sharpened by guided backpropagation. They print no formula; the product of the two, each divided by its maximum, is our
choice.
"""

import torch
from torch import Tensor

from dcsm_attr.maps import divide_by_maximum, upsample

__all__ = ["fused", "heat_maps"]


def heat_maps(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Read score maps as heat maps: the probability of each class at each position, divided by its maximum.

    The sigmoid of Eq. 2, which the paper takes of the pooled score, is taken at each position. Unlike a rectified score
    it is positive for every class, also for one that the classifier missed.

    Args:
        logits: ``(N, K, h, w)`` score maps.
        size: ``(H, W)`` of the result.

    Returns:
        ``(N, K, H, W)`` in [0, 1].
    """
    return divide_by_maximum(upsample(torch.sigmoid(logits), size))


def fused(heat: Tensor, saliency: Tensor) -> Tensor:
    """Multiply heat maps with saliency and divide by the maximum.

    Args:
        heat: ``(N, K, H, W)`` in [0, 1], of :func:`heat_maps`.
        saliency: ``(N, K, H, W)`` in [0, 1], raw or distinct maps.

    Returns:
        ``(N, K, H, W)`` in [0, 1]; zero everywhere where the two have no pixel in common.
    """
    return divide_by_maximum(heat * saliency)

"""Products of the class maps of two methods, such as a coarse heat map and fine saliency.

The slides of the DCSM talk (ECCV 2016) show the heat map of a fully convolutional network, sharpened by guided
backpropagation ("FCN with GBP"). They print no formula; the product of the two maps, each divided by its maximum, is
our choice. Any two methods can be combined like this, for example CAM and DCSM.
"""

from typing import Any

import torch
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps, Saliency
from dcsm_attr.attribution.maps import divide_by_maximum, upsample

__all__ = ["FusedSaliency", "fuse_maps", "heat_maps"]


class FusedSaliency:
    """Multiplies the class maps of two methods, such as class activation maps and DCSM.

    Attributes:
        first, second: the methods.

    Examples::

        >>> saliency = FusedSaliency(ClassActivationMaps(model), DistinctClassSaliency(model))
        >>> Segmenter(model, saliency=saliency).segment("photo.jpg")
    """

    def __init__(self, first: Saliency, second: Saliency) -> None:
        """Combine two methods.

        Args:
            first: chooses the candidates if no classes are given, and provides the scores.
            second: computes maps for the candidates of ``first``, which it receives as known classes.
        """
        self.first = first
        self.second = second

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the maps depend on, JSON-serializable."""
        return {"method": "Fused Saliency", "first": self.first.settings, "second": self.second.settings}

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Computes the products of the maps of both methods; see :func:`fuse_maps`.

        Args:
            inputs: images in the form that both methods accept.
            classes: classes known to be in the images, in the form that both methods accept.
            raw: whether to also return the product of the maps before subtraction.

        Returns:
            The candidates, detected classes and scores of the first method, with the products as maps. ``subtracted``
            is True if either method subtracted maps.

        Raises:
            TypeError, ValueError, RuntimeError: as raised by the methods.
        """
        first = self.first.class_maps(inputs, classes, raw=raw)
        second = self.second.class_maps(inputs, first.classes, raw=raw)
        return ClassMaps(
            fuse_maps(first.maps, _reorder(second.maps, second.classes, first.classes)),
            first.classes,
            first.detected,
            first.scores,
            first.subtracted | second.subtracted,
            None
            if first.raw is None or second.raw is None
            else fuse_maps(first.raw, _reorder(second.raw, second.classes, first.classes)),
        )


def fuse_maps(heat: Tensor, saliency: Tensor) -> Tensor:
    """Multiplies heat maps by saliency maps, and divides each product by its maximum.

    The result does not depend on the scale of either factor.

    Args:
        heat: ``(N, K, H, W)`` in [0, 1], from :func:`heat_maps` or another method.
        saliency: ``(N, K, H, W)`` in [0, 1].

    Returns:
        ``(N, K, H, W)`` in [0, 1]; zero everywhere if no pixel is positive in both.
    """
    return divide_by_maximum(heat * saliency)


def _reorder(maps: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """Reorders the maps ``(N, J, H, W)`` of ``classes`` to the order of ``wanted`` ``(N, K)``, a subset of them."""
    slots = (classes[:, None, :] == wanted[:, :, None]).to(torch.uint8).argmax(dim=2)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], slots]


def heat_maps(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Computes heat maps from score maps: the probability of each class at each position, divided by its maximum.

    The sigmoid of Eq. 2, which the paper applies to the pooled score, is applied at each position. Unlike a rectified
    score, it is positive for every class, including classes that the classifier missed.

    Args:
        logits: ``(N, K, h, w)`` score maps.
        size: ``(H, W)`` of the result.

    Returns:
        ``(N, K, H, W)`` in [0, 1].
    """
    return divide_by_maximum(upsample(torch.sigmoid(logits), size))

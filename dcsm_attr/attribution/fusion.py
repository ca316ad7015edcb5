"""Class score maps as heat maps, and their fusion with saliency: coarse but sure of the class, fine but less so.

The slides of the DCSM talk (ECCV 2016) show this as "FCN with GBP": the heat map of a fully convolutional network,
sharpened by guided backpropagation. They print no formula; the product of the two, each divided by its maximum, is our
choice. Any two methods can be fused like that: class activation maps are such heat maps too.
"""

from typing import Any

import torch
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps, Saliency
from dcsm_attr.attribution.maps import divide_by_maximum, upsample

__all__ = ["FusedSaliency", "fused", "heat_maps"]


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
    """Multiply heat maps with saliency and divide by the maximum; by what either is divided before is all the same.

    Args:
        heat: ``(N, K, H, W)`` in [0, 1], of :func:`heat_maps` or of another method.
        saliency: ``(N, K, H, W)`` in [0, 1], raw or distinct maps.

    Returns:
        ``(N, K, H, W)`` in [0, 1]; zero everywhere where the two have no pixel in common.
    """
    return divide_by_maximum(heat * saliency)


class FusedSaliency:
    """The product of the maps of two methods, such as class activation maps and DCSM.

    Attributes:
        first, second: as given.

    Examples::

        >>> saliency = FusedSaliency(ClassActivationMaps(model), DistinctClassSaliency(model))
        >>> Segmenter(model, saliency=saliency).segment("photo.jpg")
    """

    def __init__(self, first: Saliency, second: Saliency) -> None:
        """Put the methods together.

        Args:
            first: chooses the candidates, where they are not known, and scores them.
            second: is asked for the candidates of the first as for known classes.
        """
        self.first = first
        self.second = second

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on, JSON-serializable."""
        return {"method": "Fused Saliency", "first": self.first.settings, "second": self.second.settings}

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Multiply the maps of both methods; see :func:`fused`.

        Args:
            inputs: as both methods take them.
            classes: known to be in the images, as both methods take them.
            raw: whether to give the product of the maps before subtraction too.

        Returns:
            The candidates, detected classes and scores of the first method, with the products as maps. Something was
            subtracted where it was in one of the two.

        Raises:
            TypeError, ValueError, RuntimeError: as the methods.
        """
        first = self.first.class_maps(inputs, classes, raw=raw)
        second = self.second.class_maps(inputs, first.classes, raw=raw)
        return ClassMaps(
            fused(first.maps, _reorder(second.maps, second.classes, first.classes)),
            first.classes,
            first.detected,
            first.scores,
            first.subtracted | second.subtracted,
            None
            if first.raw is None or second.raw is None
            else fused(first.raw, _reorder(second.raw, second.classes, first.classes)),
        )


def _reorder(maps: Tensor, classes: Tensor, wanted: Tensor) -> Tensor:
    """The maps ``(N, J, H, W)`` of ``classes`` in the order of ``wanted`` ``(N, K)``, all of which are among them."""
    slots = (classes[:, None, :] == wanted[:, :, None]).to(torch.uint8).argmax(dim=2)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], slots]

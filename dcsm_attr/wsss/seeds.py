"""Seeds: the few pixels whose label is considered certain, from class maps and from saliency.

Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV 2016 (*SEC*): a pixel is a foreground seed where the map of a
class is above 0.2 of its maximum, and a background seed if it is among the tenth of the image with the lowest,
median-filtered saliency (:func:`middle_layer_saliency`). Others take the 20 % of the pixels with the highest values of
a map (:func:`top_fraction`). Where seeds of several labels meet, the publications do not say what happens; see
:func:`seed_labels` for the choice made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import Saliency
from dcsm_attr.attribution.gradients import LayerPoint, run_forward
from dcsm_attr.attribution.layers import resolve_layers
from dcsm_attr.attribution.maps import absolute_channel_maximum
from dcsm_attr.attribution.model import find_scores, prepared_model, unwrap_model
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.datasets.preprocess import CanvasImage

__all__ = [
    "Localizer",
    "MapLocalizer",
    "above_fraction_of_maximum",
    "bottom_fraction",
    "labels_to_seeds",
    "median_filter_3x3",
    "middle_layer_saliency",
    "seed_labels",
    "top_fraction",
]


class Localizer(Protocol):
    """Finds foreground seeds from an image and its classes."""

    def __call__(self, canvas: Tensor, prepared: CanvasImage, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localize the classes of one image.

        Args:
            canvas: ``(1, 3, S, S)``, normalized, on the device of the network.
            prepared: where the image lies on the canvas.
            classes: K classes of the image.

        Returns:
            Seeds ``(K, h, w)`` bool in the area of the image, and maps ``(K, h, w)`` that decide where seeds of
            several classes meet.
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on besides network and image, JSON-serializable."""
        ...


@dataclass(frozen=True)
class MapLocalizer:
    """Foreground seeds of SEC: pixels where a map is above a share of its maximum.

    Attributes:
        saliency: gives the maps.
        share: of the maximum; 0.2 in SEC.
    """

    saliency: Saliency
    share: float = 0.2

    def __call__(self, canvas: Tensor, prepared: CanvasImage, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localize the classes of one image, see :class:`Localizer`."""
        found = self.saliency.class_maps(canvas, [list(classes)])
        maps = prepared.crop(found.select_classes(classes))
        return above_fraction_of_maximum(maps[None], self.share)[0], maps

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on besides network and image, JSON-serializable."""
        return {"saliency": self.saliency.settings, "share": self.share}


def above_fraction_of_maximum(maps: Tensor, share: float = 0.2) -> Tensor:
    """Find the foreground seeds of SEC: pixels where a map is above a share of its maximum.

    Args:
        maps: ``(N, K, h, w)``.
        share: of the maximum, in [0, 1).

    Returns:
        ``(N, K, h, w)`` bool; all False for a map without a positive value.

    Raises:
        ValueError: if the share is out of range.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in [0, 1), so that the maximum itself is above it; got {share}.")
    return (maps > share * maps.amax(dim=(2, 3), keepdim=True)) & (maps > 0)


def top_fraction(maps: Tensor, share: float = 0.2) -> Tensor:
    """Find foreground seeds by area: the pixels with the highest values of each map.

    Args:
        maps: ``(N, K, h, w)``.
        share: of the pixels, in [0, 1], rounded down; of equal values the first ones, row by row.

    Returns:
        ``(N, K, h, w)`` bool; fewer pixels if fewer values are positive.

    Raises:
        ValueError: if the share is out of range.
    """
    return _first_ranked(maps, share, descending=True) & (maps > 0)


def bottom_fraction(saliency: Tensor, share: float = 0.1) -> Tensor:
    """Find the background seeds of SEC: the pixels with the lowest saliency.

    Args:
        saliency: ``(N, 1, h, w)``; SEC applies :func:`median_filter_3x3` first.
        share: of the pixels, in [0, 1], rounded down; of equal values the first ones, row by row.

    Returns:
        ``(N, 1, h, w)`` bool.

    Raises:
        ValueError: if the share is out of range.
    """
    return _first_ranked(saliency, share, descending=False)


def median_filter_3x3(maps: Tensor) -> Tensor:
    """Apply a median filter of 3 x 3 pixels, with replicated edges.

    Args:
        maps: ``(N, K, h, w)``.

    Returns:
        ``(N, K, h, w)``.
    """
    count, slots, height, width = maps.shape
    neighborhoods = F.unfold(F.pad(maps.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate"), 3)
    return neighborhoods.median(dim=1).values.view(count, slots, height, width)


def _first_ranked(maps: Tensor, share: float, descending: bool) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"share is a share of the pixels and must lie in [0, 1], got {share}.")
    values = maps.flatten(2)
    # The product of a decimal share may lie just below an integer.
    count = int(share * values.shape[2] + 1e-6)
    first = values.argsort(dim=2, descending=descending, stable=True)[..., :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(2, first, True).view_as(maps)


def seed_labels(foreground: Tensor, background: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
    """Combine the seeds of all classes into one label map per image.

    Where seeds of several classes meet, the pixel gets the class with the highest map there, as FickleNet decides
    between its mean maps. Classes take precedence over the background, which has enough seeds. Both are our choice.

    Args:
        foreground: ``(N, K, h, w)`` bool, seeds of the classes.
        background: ``(N, 1, h, w)`` bool.
        maps: ``(N, K, h, w)``, comparable between classes.
        classes: ``(N, K)`` int64, the class of each slot; -1 for unused slots, whose seeds are ignored.

    Returns:
        ``(N, h, w)`` int64: 0 background, ``c + 1`` for class c, 255 where there is no seed.

    Raises:
        ValueError: if shapes do not agree.
    """
    count, slots, height, width = foreground.shape
    expected = [(count, 1, height, width), tuple(foreground.shape), (count, slots)]
    got = [tuple(tensor.shape) for tensor in (background, maps, classes)]
    if got != expected:
        raise ValueError(
            f"for foreground seeds of {tuple(foreground.shape)}, background, maps and classes must have the shapes "
            f"{expected}; got {got}."
        )
    seeded = foreground & (classes >= 0)[:, :, None, None]
    best = maps.masked_fill(~seeded, -torch.inf).argmax(dim=1, keepdim=True)
    labels = (classes + 1)[:, :, None, None].expand_as(maps).gather(1, best)
    unseeded = torch.where(background, 0, VOID)
    return torch.where(seeded.any(dim=1, keepdim=True), labels, unseeded)[:, 0]


def labels_to_seeds(labels: Tensor, label_count: int) -> Tensor:
    """Convert a label map to the seeds that losses and region growing take.

    Args:
        labels: ``(N, h, w)`` int64, of :func:`seed_labels`.
        label_count: L, number of classes plus one for the background.

    Returns:
        ``(N, L, h, w)`` bool.

    Raises:
        ValueError: if a label is neither below L nor 255.
    """
    unknown = labels[(labels != VOID) & ((labels < 0) | (labels >= label_count))]
    if unknown.numel():
        raise ValueError(f"labels must be in 0 to {label_count - 1}, or {VOID} for none; got {int(unknown[0])}.")
    return labels[:, None] == torch.arange(label_count, device=labels.device)[:, None, None]


def middle_layer_saliency(model: nn.Module, images: Tensor, layer: nn.Module | str) -> Tensor:
    r"""Compute the saliency of all classes together at a layer: :math:`\max_k |\partial \sum_c S_c / \partial x_k|`.

    The saliency of Simonyan et al. for the sum of all classes, which SEC takes at ``conv4_1`` of VGG-16 to find the
    background. Score maps are summed over positions too. The model is left unchanged.

    Args:
        model: gives scores ``(N, C)`` or score maps ``(N, C, h, w)`` before sigmoid or softmax.
        images: ``(N, 3, H, W)``, normalized for the model.
        layer: a module of the model or its name; the gradient with respect to its output is taken.

    Returns:
        ``(N, 1, h, w)``, not negative, at the resolution of the layer.

    Raises:
        RuntimeError: if the layer is not reached, or the scores do not depend on it.
        TypeError: if the layer is neither a module nor a name.
        ValueError: if the layer is not in the model.
    """
    model = unwrap_model(model)
    ((name, module),) = resolve_layers(model, layer).items()

    def summed(x: Tensor) -> Any:
        return find_scores(model(x)).sum(dim=1, keepdim=True)

    with prepared_model(model, images.device):
        recording = run_forward(
            summed,
            (images,),
            (),
            [LayerPoint(name, module, at_input=False)],
            absolute_channel_maximum,
            guided=False,
        )
        summed_scores = torch.zeros(len(images), 1, dtype=torch.int64, device=images.device)
        (maps,) = recording.channel_maxima(summed_scores)
    return maps

"""Gradients that are kept after the forward pass, so that several settings of a method can share them.

Alpha, the contrast, the number of candidates, and the choice among the cached layers, scales and classes can be changed
without another pass; the model, the guided rule and the interpolation of images cannot.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from torch import Tensor

from dcsm_attr.attribution.candidates import Request, Selection, class_scores
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.attribution.gradients import GradientRun, class_chunk_size
from dcsm_attr.attribution.inputs import (
    check_differentiable,
    check_images,
    sort_by_distance_to_one,
)
from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.attribution.simonyan import Simonyan

__all__ = ["CachedGradients", "CachedRun", "class_maps_from_gradients", "compute_gradients"]


def compute_gradients(
    method: DistinctClassSaliency | Simonyan,
    inputs: Tensor | tuple[Tensor, ...],
    classes: Any = None,
    candidates: Any = None,
    additional_forward_args: Any = None,
    attribute_to_layer_input: bool | None = None,
) -> "CachedGradients":
    """Compute the gradients of a method without combining them.

    Args:
        method: determines the model, the layers, the scales and ``guided``.
        inputs: as for :meth:`DistinctClassSaliency.class_maps`.
        classes: as for :meth:`DistinctClassSaliency.class_maps`.
        candidates: as for :meth:`DistinctClassSaliency.class_maps`; also for :class:`Simonyan`.
        additional_forward_args: as for :meth:`DistinctClassSaliency.class_maps`.
        attribute_to_layer_input: as for :meth:`DistinctClassSaliency.class_maps`; no effect for :class:`Simonyan`.

    Returns:
        The channel maxima of all candidates, in about 1/100 of the memory of the maps.

    Raises:
        TypeError, ValueError, RuntimeError: as in :meth:`DistinctClassSaliency.class_maps`.
        ValueError: if a layer has several tensors, because gradients are cached by the name of the layer.
    """
    images = check_images(inputs)
    check_differentiable(images)
    forward_args = _format_additional_forward_args(additional_forward_args) or ()
    request, runs = Request(classes=classes, candidates=candidates), []
    if isinstance(method, Simonyan):
        passes, scales, minimum = method._forward_passes(images, forward_args), [1.0], 1
    else:
        layers = method._layer_points(inputs, additional_forward_args, attribute_to_layer_input)
        passes, scales = method._forward_passes(images, forward_args, layers), sort_by_distance_to_one(method.scales)
        minimum = method.min_candidates
    chosen: Tensor | None = None
    with prepared_model(method.forward_func, images[0].device):
        for scale, run in zip(scales, passes, strict=True):
            if chosen is None:
                selection = request.resolve(len(images[0]), run.logits.shape).to(run.logits.device)
                scores = class_scores(run.logits, method.activation, method.pooling)
                chosen = selection.candidates_for(scores, scores > method.threshold, minimum).classes
            maps = run.channel_maxima(chosen, None, class_chunk_size(chosen, method.internal_batch_size))
            runs.append(CachedRun(scale, run.logits, run.points, chosen, maps))
    return CachedGradients((images[0].shape[2], images[0].shape[3]), tuple(runs))


def class_maps_from_gradients(
    method: DistinctClassSaliency | Simonyan,
    cached: "CachedGradients",
    classes: Any = None,
    candidates: Any = None,
    *,
    raw: bool = False,
) -> ClassMaps:
    """Compute the maps of :meth:`DistinctClassSaliency.class_maps` from cached gradients.

    Args:
        method: a method with the same model and ``guided``, whose layers, scales and candidates were cached.
        cached: the result of :func:`compute_gradients`.
        classes: as for ``class_maps``.
        candidates: as for ``class_maps``.
        raw: as for ``class_maps``.

    Returns:
        The maps, bit for bit equal to those of ``class_maps`` for the same batch.

    Raises:
        ValueError: if a layer, scale or class was not cached; classes or candidates are malformed; or scores or
            gradients are not finite.
    """
    request = Request(classes=classes, candidates=candidates)

    def select(output_shape: torch.Size) -> Selection:
        return request.resolve(output_shape[0], output_shape).to(cached.runs[0].logits.device)

    with torch.no_grad():
        if isinstance(method, Simonyan):
            return method._average([cached.run(1.0).at(["images"])], select, raw=raw)
        runs: Iterator[GradientRun] = (
            cached.run(scale).at(method.layers) for scale in sort_by_distance_to_one(method.scales)
        )
        return method._average(runs, select, cached.size, raw)


@dataclass(frozen=True)
class CachedRun:
    """The channel maxima of one forward pass, at one scale.

    Attributes:
        scale: size relative to the input size.
        logits: ``(N, C)`` or ``(N, C, h, w)``.
        points: names of the P points.
        classes: ``(N, K)`` int64, -1 where an image has fewer than K classes.
        maps: for each point ``(N, K, h, w)``.
    """

    scale: float
    logits: Tensor
    points: list[str]
    classes: Tensor
    maps: list[Tensor]

    def __post_init__(self) -> None:
        """Check that the names of the points differ."""
        if len(set(self.points)) < len(self.points):
            raise ValueError(
                "gradients are cached by the name of their layer, but a layer has several maps: "
                f"{', '.join(self.points)}. Choose layers with one tensor each."
            )

    def channel_maxima(
        self, classes: Tensor, positions: Tensor | None = None, class_chunk_size: int = 1
    ) -> list[Tensor]:
        """Return the cached maps of some classes.

        Args:
            classes: ``(N, K')`` int64, each of them cached, or -1.
            positions: must be None: the gradients are those of all positions of the score maps.
            class_chunk_size: unused.

        Returns:
            For each point ``(N, K', h, w)``; zero where the class is -1.

        Raises:
            ValueError: if the gradients of a class were not cached, or positions are given.
        """
        if positions is not None:
            raise ValueError("cached gradients are for all positions of a score map: pass a class, not a position.")
        same = classes[:, :, None] == self.classes[:, None, :]
        empty = classes < 0
        missing = ~(same.any(dim=2) | empty)
        if missing.any():
            image = int(missing.any(dim=1).nonzero()[0])
            raise ValueError(
                f"the gradients of classes {classes[image][missing[image]].tolist()} were not cached for image "
                f"{image}; cached are {[c for c in self.classes[image].tolist() if c >= 0]}."
            )
        slots = same.to(torch.uint8).argmax(dim=2)
        images = torch.arange(len(classes), device=classes.device)[:, None]
        return [maps[images, slots].masked_fill(empty[:, :, None, None], 0.0) for maps in self.maps]

    def at(self, points: Sequence[str]) -> "CachedRun":
        """Return the run at some of its points, in the given order.

        Raises:
            ValueError: if a point was not cached.
        """
        missing = [point for point in points if point not in self.points]
        if missing:
            raise ValueError(f"no gradients were cached at {', '.join(missing)}; cached are {', '.join(self.points)}.")
        maps = [self.maps[self.points.index(point)] for point in points]
        return CachedRun(self.scale, self.logits, list(points), self.classes, maps)


@dataclass(frozen=True)
class CachedGradients:
    """The gradients of one batch of images, one run per scale.

    Attributes:
        size: ``(H, W)`` of the images.
        runs: one per scale.
    """

    size: tuple[int, int]
    runs: tuple[CachedRun, ...]

    def run(self, scale: float) -> CachedRun:
        """Return the run at a scale.

        Raises:
            ValueError: if the scale was not cached.
        """
        for run in self.runs:
            if run.scale == scale:
                return run
        raise ValueError(f"no gradients were cached at scale {scale}; cached are {[run.scale for run in self.runs]}.")

    def __add__(self, other: "CachedGradients") -> "CachedGradients":
        """Combine the runs of the same images at different scales."""
        return CachedGradients(self.size, self.runs + other.runs)

    def tensors(self) -> dict[str, Tensor]:
        """Return all data as named tensors, for a file."""
        named = {"size": torch.tensor(self.size, device="cpu")}
        for run in self.runs:
            named[f"{run.scale}|logits"] = run.logits.contiguous()
            named[f"{run.scale}|classes"] = run.classes.clone()  # Runs share this tensor, which files do not allow.
            for point, maps in zip(run.points, run.maps, strict=True):
                named[f"{run.scale}|map|{point}"] = maps.contiguous()
        return named

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor], points: Sequence[str]) -> "CachedGradients":
        """Build gradients from the result of :meth:`tensors`.

        Args:
            named: the named tensors.
            points: the names of the points, in order.

        Raises:
            ValueError: if tensors are missing.
        """
        scales = [name.split("|")[0] for name in named if name.endswith("|logits")]
        try:
            runs = tuple(
                CachedRun(
                    float(scale),
                    named[f"{scale}|logits"],
                    list(points),
                    named[f"{scale}|classes"],
                    [named[f"{scale}|map|{point}"] for point in points],
                )
                for scale in scales
            )
            height, width = named["size"].tolist()
        except KeyError as error:
            raise ValueError(f"the tensors are not cached gradients: {error} is missing") from error
        return CachedGradients((height, width), runs)

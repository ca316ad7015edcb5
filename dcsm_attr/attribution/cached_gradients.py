"""Gradients that outlive their forward pass, so that many settings of a method can share them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CachedGradients", "CachedRun", "GradientRun"]


class GradientRun(Protocol):
    """One forward pass and the channel maxima of its gradients: a recording, or what was kept of one."""

    @property
    def logits(self) -> Tensor:
        """``(N, C)`` or ``(N, C, h, w)``."""
        ...

    @property
    def points(self) -> list[str]:
        """Names of the points at which gradients are read."""
        ...

    def channel_maxima(
        self, classes: Tensor, positions: Tensor | None = None, class_chunk_size: int = 1
    ) -> list[Tensor]:
        """For each point ``(N, K, h, w)``; see :meth:`dcsm_attr.attribution.gradients.ForwardPass.channel_maxima`."""
        ...


@dataclass(frozen=True)
class CachedRun:
    """The channel maxima of one forward pass, at one scale.

    Attributes:
        scale: ratio of the sides to those of the input.
        logits: ``(N, C)`` or ``(N, C, h, w)``.
        points: names of the P points.
        classes: ``(N, K)`` int64, -1 where an image has fewer.
        maps: of each point ``(N, K, h, w)``.
    """

    scale: float
    logits: Tensor
    points: list[str]
    classes: Tensor
    maps: list[Tensor]

    def __post_init__(self) -> None:
        """Check that points can be told apart."""
        if len(set(self.points)) < len(self.points):
            raise ValueError(
                "gradients are kept by the name of their layer, but a layer has several maps: "
                f"{', '.join(self.points)}. Choose layers with one tensor each."
            )

    def channel_maxima(
        self, classes: Tensor, positions: Tensor | None = None, class_chunk_size: int = 1
    ) -> list[Tensor]:
        """Look the classes up.

        Args:
            classes: ``(N, K')`` int64, each among those that were kept, or -1.
            positions: must be None: all positions of the score maps were seeded.
            class_chunk_size: of no effect.

        Returns:
            For each point ``(N, K', h, w)``; zero where the class is -1.

        Raises:
            ValueError: if the gradients of a class were not kept, or positions are given.
        """
        if positions is not None:
            raise ValueError("kept gradients are those of all positions of a score map: name a class, not a position.")
        same = classes[:, :, None] == self.classes[:, None, :]
        empty = classes < 0
        missing = ~(same.any(dim=2) | empty)
        if missing.any():
            image = int(missing.any(dim=1).nonzero()[0])
            raise ValueError(
                f"the gradients of classes {classes[image][missing[image]].tolist()} were not kept for image {image}; "
                f"kept are {[c for c in self.classes[image].tolist() if c >= 0]}."
            )
        slots = same.to(torch.uint8).argmax(dim=2)
        images = torch.arange(len(classes), device=classes.device)[:, None]
        return [maps[images, slots].masked_fill(empty[:, :, None, None], 0.0) for maps in self.maps]

    def at(self, points: Sequence[str]) -> "CachedRun":
        """The same with some of its points, in the order given.

        Raises:
            ValueError: if one was not kept.
        """
        missing = [point for point in points if point not in self.points]
        if missing:
            raise ValueError(f"no gradients were kept at {', '.join(missing)}; kept are {', '.join(self.points)}.")
        maps = [self.maps[self.points.index(point)] for point in points]
        return CachedRun(self.scale, self.logits, list(points), self.classes, maps)


@dataclass(frozen=True)
class CachedGradients:
    """The kept runs of one batch of images, one per scale.

    Attributes:
        size: ``(H, W)`` of the images.
        runs: with different scales.
    """

    size: tuple[int, int]
    runs: tuple[CachedRun, ...]

    def run(self, scale: float) -> CachedRun:
        """The run at a scale.

        Raises:
            ValueError: if there is none.
        """
        for run in self.runs:
            if run.scale == scale:
                return run
        raise ValueError(f"no gradients were kept at scale {scale}; kept are {[run.scale for run in self.runs]}.")

    def __add__(self, other: "CachedGradients") -> "CachedGradients":
        """The runs of both, which are of the same images at different scales."""
        return CachedGradients(self.size, self.runs + other.runs)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a file."""
        named = {"size": torch.tensor(self.size, device="cpu")}
        for run in self.runs:
            named[f"{run.scale}|logits"] = run.logits.contiguous()
            named[f"{run.scale}|classes"] = run.classes.clone()  # Runs share theirs, which files do not allow.
            for point, maps in zip(run.points, run.maps, strict=True):
                named[f"{run.scale}|map|{point}"] = maps.contiguous()
        return named

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor], points: Sequence[str]) -> "CachedGradients":
        """Read what :meth:`tensors` gave.

        Args:
            named: the tensors.
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
            raise ValueError(f"these are not kept gradients: {error} is missing") from error
        return CachedGradients((height, width), runs)

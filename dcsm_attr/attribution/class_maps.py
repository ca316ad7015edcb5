"""The result of an attribution to several classes at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ClassMaps", "Saliency"]


@dataclass(frozen=True)
class ClassMaps:
    """One map per candidate class and image; detached, on the device of the images.

    Attributes:
        maps: ``(N, K, H, W)`` float32 in [0, 1], zero in unused slots.
        classes: ``(N, K)`` int64, -1 where an image has fewer than K candidates.
        detected: ``(N, K)`` bool: True for classes above the threshold or given by the caller, False for classes that
            are only subtracted.
        scores: ``(N, C)`` float32 in [0, 1], the scores of all classes at the scale nearest to 1.
        subtracted: ``(N,)`` bool: False if nothing was subtracted, because the method does not or the image has one
            candidate only; its maps are the raw maps.
        raw: ``(N, K, H, W)`` float32 in [0, 1], the maps before subtraction, if requested.
    """

    maps: Tensor
    classes: Tensor
    detected: Tensor
    scores: Tensor
    subtracted: Tensor
    raw: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps)

    @property
    def nothing_detected(self) -> Tensor:
        """``(N,)`` bool: True for images without a detected class."""
        return ~self.detected.any(dim=1)

    @property
    def foreground(self) -> Tensor:
        """``(N, K)`` bool: *target* of Eq. 7: the detected classes, or the best class if none is detected."""
        best = F.one_hot(self._best_slot(), self.classes.shape[1]).bool()
        return torch.where(self.nothing_detected[:, None], best, self.detected)

    def best(self) -> Tensor:
        """Return the map of each image's best candidate, ``(N, 1, H, W)``."""
        return self._take_slots(self._best_slot())

    def _best_slot(self) -> Tensor:
        candidate_scores = self.scores.gather(1, self.classes.clamp(min=0))
        return candidate_scores.masked_fill(self.classes < 0, -1.0).argmax(dim=1)

    def select(self, classes: Tensor) -> Tensor:
        """Return the map of one class per image.

        Args:
            classes: ``(N,)`` int64, each a candidate of its image.

        Returns:
            ``(N, 1, H, W)``, contiguous.
        """
        return self._take_slots((self.classes == classes[:, None]).to(torch.uint8).argmax(dim=1))

    def select_classes(self, classes: Sequence[int], image: int = 0) -> Tensor:
        """Return the maps of several classes of one image.

        Args:
            classes: K' classes, each a candidate of the image.
            image: index of the image.

        Returns:
            ``(K', H, W)``, in the order of the classes.

        Raises:
            ValueError: if a class is not a candidate.
        """
        slots = {c: slot for slot, c in enumerate(self.classes[image].tolist()) if c >= 0}
        missing = [c for c in classes if c not in slots]
        if missing:
            raise ValueError(f"class {missing[0]} has no map: the candidates are {', '.join(map(str, slots))}.")
        return self.maps[image, [slots[c] for c in classes]]

    def _take_slots(self, slots: Tensor) -> Tensor:
        return self.maps[torch.arange(len(self), device=slots.device), slots][:, None].contiguous()

    def __getitem__(self, image: int) -> "ClassMaps":
        """Return the maps of one image, ``N = 1``, without unused slots."""
        used = self.classes[image] >= 0
        return ClassMaps(
            self.maps[image : image + 1, used],
            self.classes[image : image + 1, used],
            self.detected[image : image + 1, used],
            self.scores[image : image + 1],
            self.subtracted[image : image + 1],
            None if self.raw is None else self.raw[image : image + 1, used],
        )

    def map_values(self, change: Callable[[Tensor], Tensor]) -> "ClassMaps":
        """Return a copy with ``change`` applied to the maps ``(N, K, H, W)`` and to the raw maps."""
        return replace(self, maps=change(self.maps), raw=None if self.raw is None else change(self.raw))

    def cpu(self) -> "ClassMaps":
        """Return a copy on the CPU."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.cpu() for name, value in values.items() if value is not None})

    @staticmethod
    def concatenate(parts: "Sequence[ClassMaps]") -> "ClassMaps":
        """Concatenate the maps of the parts of a batch; K becomes the largest of the parts."""
        slots = max(part.classes.shape[1] for part in parts)
        padded = [part._padded(slots) for part in parts]
        raw = [part.raw for part in padded if part.raw is not None]
        return ClassMaps(
            torch.cat([part.maps for part in padded]),
            torch.cat([part.classes for part in padded]),
            torch.cat([part.detected for part in padded]),
            torch.cat([part.scores for part in padded]),
            torch.cat([part.subtracted for part in padded]),
            torch.cat(raw) if raw else None,
        )

    def _padded(self, slots: int) -> "ClassMaps":
        missing = slots - self.classes.shape[1]
        if not missing:
            return self
        return replace(
            self.map_values(lambda maps: F.pad(maps, (0, 0, 0, 0, 0, missing))),
            classes=F.pad(self.classes, (0, missing), value=-1),
            detected=F.pad(self.detected, (0, missing)),
        )


class Saliency(Protocol):
    """A method that computes one map per class, such as :class:`DistinctClassSaliency` or :class:`Simonyan`."""

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Compute the maps of all candidates of each image; see :meth:`DistinctClassSaliency.class_maps`."""

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the maps depend on, JSON-serializable."""

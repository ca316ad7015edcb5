"""The result of an attribution to several classes at once."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ClassMaps"]


@dataclass(frozen=True)
class ClassMaps:
    """One map for every candidate class of every image; detached, on the device of the images.

    Attributes:
        maps: ``(N, K, H, W)`` float32 in [0, 1], zero in slots without a class.
        classes: ``(N, K)`` int64, -1 where an image has fewer than K candidates.
        detected: ``(N, K)`` bool: above the threshold (or named by the caller as present), as against there only to be
            subtracted.
        scores: ``(N, C)`` float32 in [0, 1], the model's scores of all classes at the scale nearest to 1.
        subtracted: ``(N,)`` bool: False where nothing was subtracted, because the method does not or because the image
            has one candidate only; the maps are then the raw ones.
    """

    maps: Tensor
    classes: Tensor
    detected: Tensor
    scores: Tensor
    subtracted: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps)

    @property
    def nothing_detected(self) -> Tensor:
        """``(N,)`` bool: images in which no class was above the threshold."""
        return ~self.detected.any(dim=1)

    @property
    def foreground(self) -> Tensor:
        """``(N, K)`` bool: *target* of Eq. 7, the detected classes, or the best one where there is none."""
        best = F.one_hot(self._best_slot(), self.classes.shape[1]).bool()
        return torch.where(self.nothing_detected[:, None], best, self.detected)

    def best(self) -> Tensor:
        """Pick the map of each image's best candidate, ``(N, 1, H, W)``."""
        return self._slots(self._best_slot())

    def _best_slot(self) -> Tensor:
        candidate_scores = self.scores.gather(1, self.classes.clamp(min=0))
        return candidate_scores.masked_fill(self.classes < 0, -1.0).argmax(dim=1)

    def of(self, classes: Tensor) -> Tensor:
        """Pick one class's map from each image.

        Args:
            classes: ``(N,)`` int64, each among the candidates of its image.

        Returns:
            ``(N, 1, H, W)``, contiguous.
        """
        return self._slots((self.classes == classes[:, None]).to(torch.uint8).argmax(dim=1))

    def _slots(self, slots: Tensor) -> Tensor:
        return self.maps[torch.arange(len(self), device=slots.device), slots][:, None].contiguous()

    @staticmethod
    def concatenated(parts: "Sequence[ClassMaps]") -> "ClassMaps":
        """Join the results of the parts of a batch; K becomes the largest."""
        slots = max(part.classes.shape[1] for part in parts)
        padded = [part._padded(slots) for part in parts]
        return ClassMaps(**{f.name: torch.cat([getattr(part, f.name) for part in padded]) for f in fields(ClassMaps)})

    def _padded(self, slots: int) -> "ClassMaps":
        missing = slots - self.classes.shape[1]
        if not missing:
            return self
        return ClassMaps(
            F.pad(self.maps, (0, 0, 0, 0, 0, missing)),
            F.pad(self.classes, (0, missing), value=-1),
            F.pad(self.detected, (0, missing)),
            self.scores,
            self.subtracted,
        )

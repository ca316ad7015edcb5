"""What an evaluation found, under which protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor

from dcsm_attr.evaluation.average_precision import average_precision_per_class, mean_average_precision
from dcsm_attr.evaluation.miou import iou_per_class, mean_iou

__all__ = ["Confusion", "Evaluation", "Protocol"]


class Protocol(str, Enum):
    """What the segmenter is told about a photograph. Figures of one protocol do not compare with those of the other.

    ``DETECTED``, the protocol of a test set: nothing. The classes are those that the classifier detects; where it
    detects none, its best one. ``KNOWN``, the protocol of pseudo-labels for training: the image-level labels.
    """

    DETECTED = "detected"
    KNOWN = "known"


@dataclass(frozen=True)
class Confusion:
    """How label maps agree with the truth.

    Attributes:
        counts: ``(L, L)`` int64, pixels of all photographs; row: truth, column: prediction. Void is not counted.
    """

    counts: Tensor

    @property
    def iou(self) -> Tensor:
        """``(L,)``, see :func:`iou_per_class`."""
        return iou_per_class(self.counts)

    @property
    def mean_iou(self) -> float:
        """See :func:`dcsm_attr.evaluation.miou.mean_iou`."""
        return mean_iou(self.counts)

    @property
    def coverage(self) -> float:
        """Share of the true foreground that is labelled as foreground, whatever its class; NaN without foreground."""
        return _share(self.counts[1:, 1:].sum(), self.counts[1:].sum())

    @property
    def mistaken(self) -> float:
        """Of that share, the share that is given a wrong class; NaN where nothing is covered."""
        covered = self.counts[1:, 1:]
        return _share(covered.sum() - covered.diagonal().sum(), covered.sum())

    @property
    def spilled(self) -> float:
        """Share of what is labelled as foreground that is background in truth; NaN where nothing is."""
        return _share(self.counts[0, 1:].sum(), self.counts[:, 1:].sum())


def _share(part: Tensor, whole: Tensor) -> float:
    # 0 / 0 is NaN.
    return float(part.double() / whole)


@dataclass(frozen=True)
class Evaluation:
    """What was measured under one protocol. L = 1 + C labels, the background first; n photographs.

    Attributes:
        protocol: what the segmenter was told.
        class_names: C names, without the background.
        unrefined: of the label maps before the CRF.
        refined: of the same after it; equal to :attr:`unrefined` if the segmenter has no CRF.
        scores: ``(n, C)`` float64 in [0, 1], the classifier's.
        present: ``(n, C)`` bool, the image-level labels.
        photographs: the names of the n photographs that were counted.
        skipped: the reason, by the name of each photograph that was not counted.
        nothing_detected: names of photographs in which no class was above the threshold (never under the protocol
            "known").
        settings: everything that the result depends on beside the photographs, ready for JSON.
    """

    protocol: Protocol
    class_names: tuple[str, ...]
    unrefined: Confusion
    refined: Confusion
    scores: Tensor
    present: Tensor
    photographs: tuple[str, ...]
    skipped: Mapping[str, str]
    nothing_detected: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def average_precision(self) -> Tensor:
        """``(C,)``, of the classifier; see :func:`average_precision_per_class`."""
        return average_precision_per_class(self.scores, self.present)

    @property
    def mean_average_precision(self) -> float:
        """Of the classifier; see :func:`dcsm_attr.evaluation.average_precision.mean_average_precision`."""
        return mean_average_precision(self.scores, self.present)

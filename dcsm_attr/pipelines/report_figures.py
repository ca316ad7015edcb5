"""What the lines of a run's manifest amount to: counts, means and histograms, in memory that hardly grows with them."""

import heapq
import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

__all__ = ["BINS", "RunFigures", "failure_kind"]

#: Bars of a histogram, which together are the range from 0 to 1.
BINS = 10

_DISAGREES_BELOW = 0.5
_DISAGREEMENTS = 50
_KINDS = 50
_EXAMPLES = 20
_OTHER_KINDS = "other reasons"


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    total: float = 0.0

    def add(self, value: float) -> None:
        # Means of float32 probabilities can lie a little beyond 1.
        if not 0 <= value <= 1 + 1e-3:
            raise ValueError(f"scores, shares and confidences must be in [0, 1], got {value}")
        self.counts[min(int(value * BINS), BINS - 1)] += 1
        self.total += value

    def content(self) -> dict[str, Any]:
        count = sum(self.counts)
        return {"counts": self.counts, "count": count, "mean": round(self.total / count, 4) if count else None}


@dataclass
class _Histograms:
    """Of some photographs, and of the classes that they show."""

    score: _Histogram = field(default_factory=_Histogram)
    share: _Histogram = field(default_factory=_Histogram)
    confidence: _Histogram = field(default_factory=_Histogram)

    def add(self, classes: Iterable[Mapping[str, Any]], confidence: float) -> None:
        for one in classes:
            self.score.add(one["score"])
            self.share.add(one["share"])
        self.confidence.add(confidence)

    def content(self) -> dict[str, Any]:
        return {
            "score": self.score.content(),
            "share": self.share.content(),
            "confidence": self.confidence.content(),
        }


@dataclass
class _Kind:
    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


class RunFigures:
    """The figures of a run, from one entry of its manifest after the other."""

    def __init__(self) -> None:
        self.labelled = 0
        self.failed = 0
        self._all = _Histograms()
        # A photograph that is known to show no class is of no class: None.
        self._classes: dict[int | None, tuple[str, int, _Histograms]] = {}
        self._disagreeing = 0
        self._disagreements: list[tuple[float, int, int, dict[str, Any]]] = []
        self._kinds: dict[str, _Kind] = {}
        self._seconds: dict[str, array[float]] = {}
        self._totals: array[float] = array("d")

    def add_labelled(self, entry: Mapping[str, Any]) -> None:
        """Count a photograph that has a label picture.

        Args:
            entry: its line of the manifest.

        Raises:
            KeyError, TypeError, ValueError: if the line is not as a run writes it.
        """
        classes, confidence = entry["classes"], entry["confidence"]
        self._all.add(classes, confidence)
        for one in classes:
            self._of(one["class"], one["name"], one["value"]).add([one], confidence)
        if not classes:
            self._of(None, "", 0).add([], confidence)
        for position, one in enumerate(classes):
            self._note_disagreement(entry, position, one)
        for stage, seconds in entry["seconds"].items():
            self._seconds.setdefault(stage, array("d")).append(seconds)
        self._totals.append(sum(entry["seconds"].values()))
        self.labelled += 1

    def add_failed(self, entry: Mapping[str, Any]) -> None:
        """Count a photograph that has none.

        Args:
            entry: its line of the manifest, with ``"error"``.

        Raises:
            KeyError, TypeError: if the line is not as a run writes it.
        """
        example = {key: str(entry[key]) for key in ("name", "photograph", "error")}
        kind = failure_kind(example["error"], example["photograph"])
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _OTHER_KINDS
        found = self._kinds.setdefault(kind, _Kind())
        found.count += 1
        if len(found.examples) < _EXAMPLES:
            found.examples.append(example)
        self.failed += 1

    def content(self) -> dict[str, Any]:
        """The figures, ready for JSON.

        Returns:
            ``histograms``: of ``score``, ``share`` and ``confidence``, each with ``counts`` of :data:`BINS` bars, the
            ``count`` of values and their ``mean`` (None without any). ``classes``: those that occur, in the order of
            their numbers, with ``photographs`` and histograms of their own; last, with None as its number, what is
            known to show none. ``disagreements``: known classes to which the classifier gives the smallest scores,
            of all those, ``disagreeing`` in number, that are below ``disagrees_below``.
            ``failures``: by kind, the most frequent first. ``speed``: seconds; None where nothing was labelled.
        """
        numbers = sorted(number for number in self._classes if number is not None)
        classes = [
            {
                "class": number,
                "name": name,
                "value": value,
                "photographs": histograms.confidence.content()["count"],
                "histograms": histograms.content(),
            }
            for number in [*numbers, *({None} & self._classes.keys())]
            for name, value, histograms in [self._classes[number]]
        ]
        doubtful = sorted(self._disagreements, key=lambda item: item[:3], reverse=True)
        # The sort is stable: of kinds that are equally frequent, the one that was met first.
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1].count)
        return {
            "histograms": self._all.content(),
            "classes": classes,
            "disagrees_below": _DISAGREES_BELOW,
            "disagreeing": self._disagreeing,
            "disagreements": [found for *_, found in doubtful],
            "failures": [{"kind": kind, "count": one.count, "examples": one.examples} for kind, one in kinds],
            "speed": self._speed(),
        }

    def _of(self, number: int | None, name: str, value: int) -> _Histograms:
        return self._classes.setdefault(number, (name, value, _Histograms()))[2]

    def _note_disagreement(self, entry: Mapping[str, Any], position: int, known: Mapping[str, Any]) -> None:
        if known["score"] >= _DISAGREES_BELOW:
            return
        self._disagreeing += 1
        found = {
            "name": entry["name"],
            "photograph": entry["photograph"],
            "class": known["class"],
            "score": round(known["score"], 4),
            "share": round(known["share"], 4),
        }
        # The heap has its smallest on top, the one to go: the highest score, and of equal ones the last.
        item = (-known["score"], -self.labelled, -position, found)
        if len(self._disagreements) < _DISAGREEMENTS:
            heapq.heappush(self._disagreements, item)
        elif item[:3] > self._disagreements[0][:3]:
            heapq.heapreplace(self._disagreements, item)

    def _speed(self) -> dict[str, Any] | None:
        if not self._totals:
            return None
        seconds = sum(self._totals)
        return {
            "photographs_a_second": self.labelled / seconds if seconds else None,
            "median": median(self._totals),
            "stages": [
                {"name": stage, "median": median(values), "share": sum(values) / seconds if seconds else None}
                for stage, values in self._seconds.items()
            ],
        }


def failure_kind(reason: str, photograph: str) -> str:
    """What reasons have in common that differ in the photograph and in numbers only, each replaced by an ellipsis."""
    without_name = reason.replace(photograph, "…") if photograph else reason
    return re.sub(r"\d+", "…", without_name).removeprefix("…: ")

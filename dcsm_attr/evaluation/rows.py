"""What one photograph adds to an evaluation, and its line in a file."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

__all__ = ["CountedPhotograph", "Row", "SkippedPhotograph", "row_from_line", "row_line", "row_reader"]


@dataclass(frozen=True)
class CountedPhotograph:
    """A photograph that was measured.

    Attributes:
        name: its id.
        unrefined: confusion matrix before the CRF, L rows (truth) of L counts (prediction).
        refined: the same after the CRF.
        scores: the classifier's, one a class, in [0, 1].
        nothing_detected: whether no class was above the threshold, so that the best one took its place.
    """

    name: str
    unrefined: list[list[int]]
    refined: list[list[int]]
    scores: list[float]
    nothing_detected: bool


@dataclass(frozen=True)
class SkippedPhotograph:
    """A photograph that could not be measured.

    Attributes:
        name: its id.
        reason: why.
    """

    name: str
    reason: str


Row = CountedPhotograph | SkippedPhotograph


_Counted = TypeVar("_Counted")


def row_line(row: Any) -> str:
    """One line of JSON, without its end. Numbers come back from it as they were, to the last bit."""
    return json.dumps(asdict(row))


def row_reader(counted: type[_Counted], what: str) -> Callable[[str | bytes], _Counted | SkippedPhotograph]:
    """Make the inverse of :func:`row_line`.

    Args:
        counted: the row of a photograph that was measured; a dataclass without a field ``reason``.
        what: what the rows belong to, for messages.

    Returns:
        Reads a line, and raises a ValueError if it is no such row.
    """

    def read(line: str | bytes) -> _Counted | SkippedPhotograph:
        values = json.loads(line)
        try:
            return SkippedPhotograph(**values) if "reason" in values else counted(**values)
        except TypeError as error:
            raise ValueError(f"not a row of {what} ({error})") from error

    return read


row_from_line: Callable[[str | bytes], Row] = row_reader(CountedPhotograph, "an evaluation")

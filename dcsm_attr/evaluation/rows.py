"""What one photograph adds to an evaluation, and its line in a file."""

import json
from dataclasses import asdict, dataclass

__all__ = ["CountedPhotograph", "Row", "SkippedPhotograph", "row_from_line", "row_line"]


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


def row_line(row: Row) -> str:
    """One line of JSON, without its end. Numbers come back from it as they were, to the last bit."""
    return json.dumps(asdict(row))


def row_from_line(line: str | bytes) -> Row:
    """Read what :func:`row_line` gave.

    Raises:
        ValueError: if it is no such line.
    """
    values = json.loads(line)
    try:
        return SkippedPhotograph(**values) if "reason" in values else CountedPhotograph(**values)
    except TypeError as error:
        raise ValueError(f"not a row of an evaluation ({error})") from error

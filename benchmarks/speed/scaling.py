"""How the cost grows with the number of classes and of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Scaling"]


@dataclass(frozen=True)
class Scaling:
    """Times for growing counts, and the straight line through them by least squares.

    Attributes:
        title: for the report.
        what: is counted, in the plural.
        counts: at least two.
        seconds: for each count.
        partial_backward: seconds of one backward pass from the score of a class to the first layer, by plain PyTorch:
            what one more class must cost. None: it says nothing about what is counted.
    """

    title: str
    what: str
    counts: Sequence[int]
    seconds: Sequence[float]
    partial_backward: float | None = None

    @property
    def slope(self) -> float:
        """Seconds for one more."""
        return float(np.polyfit(self.counts, self.seconds, 1)[0])

    @property
    def explained(self) -> float:
        """The share of the variance of the seconds that the line explains."""
        return float(np.corrcoef(self.counts, self.seconds)[0, 1] ** 2)

    def content(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "title": self.title,
            "seconds": dict(zip(map(str, self.counts), self.seconds, strict=True)),
            "seconds for one more": self.slope,
            "explained": self.explained,
            **({} if self.partial_backward is None else {"seconds of a partial backward pass": self.partial_backward}),
        }

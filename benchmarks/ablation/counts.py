"""What one method got right and wrong in one image, and its line in a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcsm_attr.evaluation.evaluate import SkippedImage, row_parser

__all__ = ["CountedCase", "CountsRow", "Reading", "dense", "parse_counts_row", "sparse"]


@dataclass(frozen=True, order=True)
class Reading:
    """How labels were read off maps.

    Attributes:
        exponent: of the background, see :func:`dcsm_attr.attribution.maps.background`.
        refined: whether by the CRF.
    """

    exponent: float
    refined: bool

    def __str__(self) -> str:
        """As in a file: ``"2.0"``, or ``"2.0 crf"``."""
        return f"{self.exponent} crf" if self.refined else f"{self.exponent}"

    @staticmethod
    def parsed(text: str) -> "Reading":
        """The inverse of ``str``."""
        exponent, *refined = text.split(" ")
        return Reading(float(exponent), refined == ["crf"])


@dataclass(frozen=True)
class CountedCase:
    """An image that was measured.

    Attributes:
        name: its id.
        counts: for each reading, as text, the entries of the confusion matrix that are not zero: truth, prediction,
            pixels.
    """

    name: str
    counts: Mapping[str, list[list[int]]]


CountsRow = CountedCase | SkippedImage


def sparse(confusion: Tensor) -> list[list[int]]:
    """The entries ``[truth, prediction, pixels]`` of a matrix ``(L, L)`` that are not zero."""
    where = confusion.nonzero()
    return torch.cat([where, confusion[where[:, 0], where[:, 1]][:, None]], dim=1).tolist()


def dense(entries: list[list[int]], labels: int) -> Tensor:
    """The matrix ``(L, L)`` int64 of :func:`sparse`."""
    confusion = torch.zeros(labels, labels, dtype=torch.int64)
    for truth, prediction, pixels in entries:
        confusion[truth, prediction] = pixels
    return confusion


parse_counts_row: Callable[[str | bytes], CountsRow] = row_parser(CountedCase, "counts")

"""Weighted sums of rows: what splatting, blurring and slicing have in common."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["RowSums"]


@dataclass(frozen=True)
class RowSums:
    """A sparse matrix, as sums of weighted rows of what it is applied to.

    Attributes:
        rows: int32 or int64: which rows; ``(R, k)`` where each of the R sums has k, else ``(E,)``, one sum after the
            other.
        weights: floating point, shaped as ``rows``.
        first: ``(R,)`` of the type of ``rows``: where each sum begins in ``rows``. None: ``rows`` is ``(R, k)``.
    """

    rows: Tensor
    weights: Tensor
    first: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Sum rows of ``(Q, V)``, with the dtype of the weights, to ``(R, V)``."""
        return F.embedding_bag(self.rows, values, self.first, mode="sum", per_sample_weights=self.weights)

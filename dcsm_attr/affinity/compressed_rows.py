"""Sparse matrices of compressed rows (CSR), from tables of columns and values."""

import threading
import warnings

import torch
from torch import Tensor

__all__ = ["compressed_rows"]

_lock = threading.Lock()
_told = False


def compressed_rows(columns: Tensor, values: Tensor, present: Tensor) -> Tensor:
    """A square matrix from tables of its rows.

    Args:
        columns: ``(R, k)`` int32, of each entry.
        values: ``(R, k)`` floating point.
        present: ``(R, k)`` bool: the entries that there are.

    Returns:
        ``(R, R)``, sparse, of layout CSR.
    """
    _hear_the_notice()
    ends = torch.zeros(len(columns) + 1, dtype=torch.int32, device=columns.device)
    torch.cumsum(present.sum(dim=1), dim=0, out=ends[1:])
    # Looked for once, where indexing with the mask would look for them in each table.
    entries = present.flatten().nonzero().flatten()
    columns, values = (table.flatten().index_select(0, entries) for table in (columns, values))
    return torch.sparse_csr_tensor(ends, columns, values, (len(present), len(present)), check_invariants=False)


def _hear_the_notice() -> None:
    """PyTorch says once in a process that this layout is in beta: not to our callers, who can do nothing about it."""
    global _told
    with _lock:
        if not _told:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                none = torch.zeros(0, dtype=torch.int32)
                torch.sparse_csr_tensor(none.new_zeros(1), none, torch.zeros(0), (0, 0), check_invariants=False)
            _told = True

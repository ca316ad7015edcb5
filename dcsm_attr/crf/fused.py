"""Mean field on a GPU in three kinds of kernel: splat, blur, and slice together with softmax."""

import os
from contextlib import nullcontext

import torch
from torch import Tensor

from dcsm_attr.crf.gaussian_kernels import GaussianKernels
from dcsm_attr.crf.row_sums import RowSums

__all__ = ["fused_mean_field", "in_short_sums"]

# A vertex in a plain sky has thousands of points, one on an edge a few: a program that sums for both waits for the
# longer sum. Cut into pieces of this length they take the same time.
_LONGEST = 32


def fused_mean_field(unary: Tensor, pairwise: GaussianKernels, iterations: int) -> Tensor:
    """What :func:`~dcsm_attr.crf.mean_field.mean_field` gives, by Triton kernels.

    Args:
        unary: ``(P, L)`` float32 energies, on a CUDA device.
        pairwise: the pairwise terms, on the same device.
        iterations: 0 returns the start.

    Returns:
        ``(P, L)``, summing to one over the labels.

    Raises:
        ImportError: if Triton is not installed.
        ValueError: if the energies are on the CPU, and Triton does not interpret (``TRITON_INTERPRET=1``).
    """
    if not unary.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the backend 'triton' runs on CUDA devices, the probabilities are on {unary.device}. Move them there, or "
            "choose backend='torch'."
        )
    try:
        from dcsm_attr.crf.triton_kernels import probabilities_of_messages, row_sums
    except ImportError as error:
        raise ImportError(
            "the backend 'triton' needs the package triton, which comes with PyTorch for CUDA on Linux. Choose "
            "backend='torch' elsewhere."
        ) from error
    unary = unary.contiguous()
    pieces, of_vertices = in_short_sums(pairwise.splat)
    # Triton launches on the current device, which need not be that of the energies.
    with torch.cuda.device(unary.device) if unary.is_cuda else nullcontext():
        q = torch.softmax(-unary, dim=1)
        for _ in range(iterations):
            splatted = row_sums(of_vertices, row_sums(pieces, q))
            blurred = []
            parts = torch.split(splatted, [count for count, _ in pairwise.blurs])
            for part, (_, blurs) in zip(parts, pairwise.blurs, strict=True):
                for blur in blurs:
                    part = row_sums(blur, part)
                blurred.append(part)
            q = probabilities_of_messages(pairwise.slices, torch.cat(blurred), unary)
    return q


def in_short_sums(table: RowSums) -> tuple[RowSums, RowSums]:
    """Sums of any length as short ones and sums of these.

    Args:
        table: with ``first``.

    Returns:
        Two tables; the second one, applied to the result of the first, gives what ``table`` gives.
    """
    assert table.first is not None
    entries = len(table.rows)
    first = table.first.long()
    lengths = torch.diff(first, append=first.new_tensor([entries]))
    pieces = lengths.add(_LONGEST - 1).div(_LONGEST, rounding_mode="floor")
    first_piece = pieces.cumsum(0) - pieces
    of_sum = torch.repeat_interleave(pieces)
    within = torch.arange(len(of_sum), device=first.device) - first_piece[of_sum]
    starts = (first[of_sum] + _LONGEST * within).to(table.first.dtype)
    consecutive = torch.arange(len(of_sum), device=first.device, dtype=table.rows.dtype)
    return (
        RowSums(table.rows, table.weights, starts),
        RowSums(consecutive, table.weights.new_ones(len(of_sum)), first_piece.to(table.first.dtype)),
    )

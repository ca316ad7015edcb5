"""Mean field on a GPU with fused Triton kernels: weighted row sums (splat, blur), and slice plus softmax in one.

Needs Triton, which comes with PyTorch for CUDA on Linux; imported only for ``DenseCRF(backend="triton")``. The tables
are those of :class:`~dcsm_attr.crf.permutohedral.RowSums`, whose plain operations are the reference.
"""

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcsm_attr.crf.permutohedral import GaussianKernels, RowSums

__all__ = ["probabilities_of_messages", "row_sums", "split_long_sums", "triton_mean_field"]

# Values per program (rows times labels, rounded up to a power of two): two or three accumulators per thread of four
# warps, which leaves registers for the values being read.
_BLOCK_ELEMENTS = 1024


@triton.jit
def _row_sums(
    values: Any,
    rows: Any,
    weights: Any,
    first: Any,
    sums: Any,
    count: Any,
    entries: Any,
    columns: Any,
    entries_per_sum: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Sums ``entries_per_sum`` entries per row; if it is zero, the entries from its first to the next row's first."""
    own = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.arange(0, width)[None, :]
    exists = own < count
    if entries_per_sum:
        begin = own * entries_per_sum
        end = tl.where(exists, begin + entries_per_sum, begin)
    else:
        begin = tl.load(first + own, mask=exists, other=0).to(tl.int64)
        end = tl.load(first + own + 1, mask=own + 1 < count, other=entries).to(tl.int64)
        end = tl.where(exists, end, begin)
    total = tl.zeros((block, width), tl.float32)
    for step in range(tl.max(end - begin, axis=0)):
        live = begin + step < end
        row = tl.load(rows + begin + step, mask=live, other=0).to(tl.int64)[:, None]
        weight = tl.load(weights + begin + step, mask=live, other=0.0)[:, None]
        total += weight * tl.load(values + row * columns + column, mask=live[:, None] & (column < columns), other=0.0)
    tl.store(sums + own[:, None] * columns + column, total, mask=exists[:, None] & (column < columns))


@triton.jit
def _probabilities_of_messages(
    values: Any,
    rows: Any,
    weights: Any,
    unary: Any,
    result: Any,
    count: Any,
    labels: Any,
    corners: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> None:
    point = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    label = tl.arange(0, width)[None, :]
    exists = point < count
    here = exists[:, None] & (label < labels)
    at = point[:, None] * labels + label
    logits = -tl.load(unary + at, mask=here, other=0.0)
    for corner in range(corners):
        row = tl.load(rows + point * corners + corner, mask=exists, other=0).to(tl.int64)[:, None]
        weight = tl.load(weights + point * corners + corner, mask=exists, other=0.0)[:, None]
        logits += weight * tl.load(values + row * labels + label, mask=here, other=0.0)
    logits = tl.where(label < labels, logits, float("-inf"))
    exponentials = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    tl.store(result + at, exponentials / tl.sum(exponentials, axis=1)[:, None], mask=here)


def row_sums(table: RowSums, values: Tensor) -> Tensor:
    """Computes ``table(values)``.

    Args:
        table: R sums, with float32 weights.
        values: ``(Q, V)`` float32, contiguous.

    Returns:
        ``(R, V)``.
    """
    entries_per_sum = table.rows.shape[1] if table.first is None else 0
    sums = values.new_empty(len(table.rows if table.first is None else table.first), values.shape[1])
    block, width = _block(values.shape[1])
    _row_sums[(triton.cdiv(len(sums), block),)](
        values,
        table.rows,
        table.weights,
        table.rows if table.first is None else table.first,
        sums,
        len(sums),
        table.rows.numel(),
        values.shape[1],
        entries_per_sum=entries_per_sum,
        block=block,
        width=width,
    )
    return sums


def probabilities_of_messages(slices: RowSums, vertex_values: Tensor, unary: Tensor) -> Tensor:
    """Computes the softmax of ``slices(vertex_values) - unary`` without intermediate tensors.

    Args:
        slices: one sum per point, all with the same number of vertices; float32 weights.
        vertex_values: ``(M, L)`` float32, contiguous.
        unary: ``(P, L)`` float32, contiguous.

    Returns:
        ``(P, L)``, summing to one over the labels.
    """
    result = torch.empty_like(unary)
    block, width = _block(unary.shape[1])
    _probabilities_of_messages[(triton.cdiv(len(unary), block),)](
        vertex_values,
        slices.rows,
        slices.weights,
        unary,
        result,
        len(unary),
        unary.shape[1],
        corners=slices.rows.shape[1],
        block=block,
        width=width,
    )
    return result


def _block(columns: int) -> tuple[int, int]:
    width = triton.next_power_of_2(columns)
    return max(1, _BLOCK_ELEMENTS // width), width


# A vertex in a uniform region has thousands of points, one on an edge a few, and a program takes as long as its longest
# sum. Sums are therefore split into pieces of this length.
_MAX_SUM_LENGTH = 32


def triton_mean_field(unary: Tensor, kernels: GaussianKernels, iterations: int) -> Tensor:
    """Computes :func:`~dcsm_attr.crf.dense_crf.mean_field` with Triton kernels.

    Args:
        unary: ``(P, L)`` float32 energies, on a CUDA device.
        kernels: the pairwise terms, on the same device.
        iterations: number of iterations; 0 returns the start.

    Returns:
        ``(P, L)``, summing to one over the labels.

    Raises:
        ValueError: if the energies are on the CPU and Triton's interpreter is off (``TRITON_INTERPRET=1``).
    """
    if not unary.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"the backend 'triton' runs on CUDA devices, the probabilities are on {unary.device}. Move them there, or "
            "choose backend='torch'."
        )
    unary = unary.contiguous()
    pieces, of_vertices = split_long_sums(kernels.splat)
    # Triton launches on the current device, which may differ from the device of the energies.
    with torch.cuda.device(unary.device) if unary.is_cuda else nullcontext():
        q = torch.softmax(-unary, dim=1)
        for _ in range(iterations):
            splatted = row_sums(of_vertices, row_sums(pieces, q))
            blurred = []
            parts = torch.split(splatted, [count for count, _ in kernels.blurs])
            for part, (_, blurs) in zip(parts, kernels.blurs, strict=True):
                for blur in blurs:
                    part = row_sums(blur, part)
                blurred.append(part)
            q = probabilities_of_messages(kernels.slices, torch.cat(blurred), unary)
    return q


def split_long_sums(table: RowSums) -> tuple[RowSums, RowSums]:
    """Splits sums of any length into short sums and sums of their results.

    Args:
        table: a table with ``first``.

    Returns:
        Two tables; the second, applied to the result of the first, equals ``table``.
    """
    assert table.first is not None
    entries = len(table.rows)
    first = table.first.long()
    lengths = torch.diff(first, append=first.new_tensor([entries]))
    pieces = lengths.add(_MAX_SUM_LENGTH - 1).div(_MAX_SUM_LENGTH, rounding_mode="floor")
    first_piece = pieces.cumsum(0) - pieces
    of_sum = torch.repeat_interleave(pieces)
    within = torch.arange(len(of_sum), device=first.device) - first_piece[of_sum]
    starts = (first[of_sum] + _MAX_SUM_LENGTH * within).to(table.first.dtype)
    consecutive = torch.arange(len(of_sum), device=first.device, dtype=table.rows.dtype)
    return (
        RowSums(table.rows, table.weights, starts),
        RowSums(consecutive, table.weights.new_ones(len(of_sum)), first_piece.to(table.first.dtype)),
    )

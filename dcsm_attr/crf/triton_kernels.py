"""The two operations of mean field as Triton kernels: sums of weighted rows, and messages turned into probabilities.

Needs Triton, which comes with PyTorch for CUDA on Linux; imported only where it is asked for. Tables are those of
:class:`~dcsm_attr.crf.row_sums.RowSums`, whose plain operations are the reference of these.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dcsm_attr.crf.row_sums import RowSums

__all__ = ["probabilities_of_messages", "row_sums"]

# So many numbers (rows times labels, made a power of two) one program holds: two or three values a thread of four
# warps for an accumulator, and room for what is being read.
_NUMBERS = 1024


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
    in_each: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> None:
    """Each sum has ``in_each`` entries, or, where that is zero, those from its first to that of the next one."""
    own = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    column = tl.arange(0, width)[None, :]
    exists = own < count
    if in_each:
        begin = own * in_each
        end = tl.where(exists, begin + in_each, begin)
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
    """What ``table(values)`` gives.

    Args:
        table: R sums, with float32 weights.
        values: ``(Q, V)`` float32, contiguous.

    Returns:
        ``(R, V)``.
    """
    in_each = table.rows.shape[1] if table.first is None else 0
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
        in_each=in_each,
        block=block,
        width=width,
    )
    return sums


def probabilities_of_messages(slices: RowSums, on_vertices: Tensor, unary: Tensor) -> Tensor:
    """The softmax of ``slices(on_vertices) - unary``, with nothing in between written to memory.

    Args:
        slices: a sum for each of P points, each of as many vertices; float32 weights.
        on_vertices: ``(M, L)`` float32, contiguous.
        unary: ``(P, L)`` float32, contiguous.

    Returns:
        ``(P, L)``, summing to one over the labels.
    """
    result = torch.empty_like(unary)
    block, width = _block(unary.shape[1])
    _probabilities_of_messages[(triton.cdiv(len(unary), block),)](
        on_vertices,
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
    return max(1, _NUMBERS // width), width

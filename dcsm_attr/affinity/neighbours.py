"""Which positions of a map are neighbours, and how pairs of them are laid out.

A pair is named by its source ``(y, x)`` and an offset ``(dy, dx)`` to its other end. Offsets are one half of a disc, so
that every pair of neighbours occurs once. Values of pairs are ``(N, P, h, w)``: P in the order of the offsets, the
source at ``(y, x)``.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Border", "Offsets", "neighbour_offsets", "overlap", "pair_mask"]

#: What happens to pairs near the border of the map, see :func:`pair_mask`.
Border = Literal["full", "released"]

#: ``(dy, dx)`` of each.
Offsets = Sequence[tuple[int, int]]


def neighbour_offsets(radius: int = 5) -> tuple[tuple[int, int], ...]:
    """The offsets from a position to its neighbours that come after it, row by row.

    Args:
        radius: in positions; neighbours are strictly nearer. 5 in AffinityNet.

    Returns:
        ``(dy, dx)`` of each, 34 for a radius of 5: to the right in the same row, then everything in the rows below.

    Raises:
        ValueError: if the radius is not positive.
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 (which has no neighbours), got {radius}.")
    return tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if dy * dy + dx * dx < radius * radius and (dy, dx) > (0, 0)
    )


def overlap(height: int, width: int, offset: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where both ends of a pair are inside the map.

    Args:
        height: h of the map.
        width: w of the map.
        offset: ``(dy, dx)``.

    Returns:
        Rows and columns of the sources, and those of their neighbours, as slices of equal lengths; empty where the
        offset leaves the map.
    """
    (top, bottom), (left, right) = (_inside(*axis) for axis in zip((height, width), offset, strict=True))
    return (top, left), (bottom, right)


def _inside(length: int, shift: int) -> tuple[slice, slice]:
    first = max(0, -shift)
    last = max(first, length - max(0, shift))
    return slice(first, last), slice(first + shift, last + shift)


def pair_mask(
    height: int, width: int, offsets: Offsets, border: Border = "full", *, device: torch.device | str | None = None
) -> Tensor:
    """Which sources have a neighbour.

    The released code of AffinityNet takes as sources only positions from which every offset stays inside the map: pairs
    within the last rows, and within the first and last columns, are missing. Positions in the corners have no
    neighbours at all, and a random walk never leaves them.

    Args:
        height: h of the map.
        width: w of the map.
        offsets: P pairs ``(dy, dx)``.
        border: ``"full"``: every pair that is inside the map. ``"released"``: those of the released code, of 56 x 56
            positions 52 x 48 sources with a radius of 5.
        device: of the result.

    Returns:
        ``(P, h, w)`` bool.

    Raises:
        ValueError: if there is no such border.
    """
    if border not in get_args(Border):
        raise ValueError(f"border must be one of {', '.join(map(repr, get_args(Border)))}; got {border!r}.")
    mask = torch.zeros(len(offsets), height, width, dtype=torch.bool, device=device)
    for pairs, offset in zip(mask, offsets, strict=True):
        pairs[overlap(height, width, offset)[0]] = True
    return mask & mask.all(dim=0) if border == "released" else mask

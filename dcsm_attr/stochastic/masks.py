"""Which hidden units each window sees: dropout that is drawn anew for every window of a convolution.

Lee et al., "FickleNet: Weakly and Semi-supervised Semantic Image Segmentation using Stochastic Inference", CVPR 2019
(the *paper*). A *window* is the ``s x s`` neighbourhood that a convolution reads at one position, a *cell* one of its
places, counted row by row; cell ``s * s // 2`` is the centre. Units are dropped with all their channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cell_offsets", "check_rate", "check_window", "drawing_from", "seen_from_pixels", "selection_masks"]

_source: ContextVar[torch.Generator | None] = ContextVar("the generator that masks are drawn from", default=None)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Within this context, and in this thread, masks are drawn from a generator of one's own.

    No module is changed for it, and PyTorch's global generator is left alone.

    Args:
        generator: on any device; masks that are drawn on the CPU are the same for a model on a GPU.
    """
    token = _source.set(generator)
    try:
        yield
    finally:
        _source.reset(token)


def selection_masks(
    count: int,
    size: tuple[int, int],
    window: int,
    rate: float,
    *,
    centre_kept: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw which cells each window keeps: the paper's centre-preserving spatial dropout.

    Masks are drawn one after the other, from the generator of :func:`drawing_from` or else PyTorch's global one of the
    device: many at once are those that would be drawn one by one.

    Args:
        count: N.
        size: ``(h, w)``, the positions of the windows.
        window: side s of a window, odd.
        rate: probability in [0, 1] that a cell is dropped.
        centre_kept: whether the centre of a window is never dropped. False: ordinary dropout, with which the paper
            compares (its Table 5).
        device: where the masks are needed.

    Returns:
        ``(N, s * s, h, w)`` bool: whether the window at a position keeps the cell.

    Raises:
        ValueError: if the window has no centre, or the rate is no probability.
    """
    check_window(window)
    check_rate(rate)
    generator = _source.get()
    drawn_on = device if generator is None else generator.device
    cells = window * window
    kept = torch.empty(count, cells, *size, dtype=torch.bool, device=drawn_on)
    for mask in kept:
        torch.ge(torch.rand(cells, *size, generator=generator, device=drawn_on), rate, out=mask)
    if centre_kept:
        kept[:, cells // 2] = True
    return kept.to(device)


def check_window(window: int) -> None:
    """Refuse a window without a centre.

    Raises:
        ValueError: if the side is even or not positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, so that it has a centre; got {window}.")


def check_rate(rate: float) -> None:
    """Refuse a rate that is no probability.

    Raises:
        ValueError: if it is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is the probability that a unit is dropped and must lie in [0, 1], got {rate}.")


def cell_offsets(window: int) -> list[tuple[int, int]]:
    """Where each cell of a window lies, as rows and columns from the centre, in the order of the cells."""
    reach = range(-(window // 2), window // 2 + 1)
    return [(down, right) for down in reach for right in reach]


def seen_from_pixels(masks: Tensor) -> Tensor:
    """Turn masks around: not which of its pixels a window keeps, but which of the windows around it keep a pixel.

    Args:
        masks: ``(N, s * s, h, w)`` bool, of :func:`selection_masks`.

    Returns:
        ``(N, s * s, h, w)`` bool: whether a pixel is kept by the window of which it is that cell; False where this
        window would lie outside the map.
    """
    window = round(masks.shape[1] ** 0.5)
    reach = window // 2
    padded = F.pad(masks, (reach,) * 4)
    height, width = masks.shape[2:]
    turned = [
        padded[:, cell, reach - down : reach - down + height, reach - right : reach - right + width]
        for cell, (down, right) in enumerate(cell_offsets(window))
    ]
    return torch.stack(turned, dim=1)

"""Stochastic hidden unit selection where most units are dropped: only what is kept is gathered and multiplied.

Of the 81 cells of a window, dropout at the paper's rate of 0.9 leaves nine. For each cell the pixels that are kept as
that cell are gathered, multiplied with its weights, and added to their windows: the work is the share that is kept.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcsm_attr.stochastic.masks import cell_offsets

__all__ = ["gathered_convolution"]


def gathered_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve what each window keeps, touching nothing else.

    The places that are kept are looked up on the host, for which an accelerator would have to wait.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.stochastic.masks.selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros. It
        can be differentiated once.
    """
    count, channels, height, width = x.shape
    cells = weight.flatten(2).permute(2, 1, 0).contiguous()
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    # Rows are added to rows of one type, which autocast would not keep.
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, weight.dtype)
        summed: Tensor = _GatheredProducts.apply(pixels.to(dtype), cells.to(dtype), *_kept_places(masks))  # type: ignore[no-untyped-call]
    return summed.view(count, height, width, -1).permute(0, 3, 1, 2)


def _kept_places(masks: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """For each cell, the pixels that are kept as that cell, and the position of the window of each."""
    _, cells, height, width = masks.shape
    offsets = torch.tensor(cell_offsets(round(cells**0.5)), device=masks.device)
    cell, image, row, column = masks.transpose(0, 1).nonzero().unbind(1)
    down, right = offsets[cell].unbind(1)
    inside = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
    windows = (image * height + row) * width + column
    pixels = windows + down * width + right
    counts = cell[inside].bincount(minlength=cells).tolist()
    return torch.split(pixels[inside], counts), torch.split(windows[inside], counts)


class _GatheredProducts(torch.autograd.Function):
    """Products of kept pixels ``(P, D)`` with their cell's weights ``(S, D, C)``, summed a window: ``(P, C)``.

    Autograd of the same operations would keep every gathered row, and make a gradient as large as the map a cell.
    """

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, cells: Tensor, kept: tuple[Tensor, ...], windows: tuple[Tensor, ...]
    ) -> Tensor:
        ctx.save_for_backward(pixels, cells)
        ctx.kept, ctx.windows = kept, windows
        summed = pixels.new_zeros(len(pixels), cells.shape[2])
        for weights, source, target in zip(cells, kept, windows, strict=True):
            summed.index_add_(0, target, pixels.index_select(0, source) @ weights)
        return summed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        pixels, cells = ctx.saved_tensors
        of_pixels = torch.zeros_like(pixels) if ctx.needs_input_grad[0] else None
        # A wide row a class is multiplied faster than a narrow one a channel.
        of_cells = cells.new_empty(len(cells), cells.shape[2], cells.shape[1]) if ctx.needs_input_grad[1] else None
        for cell, (source, target) in enumerate(zip(ctx.kept, ctx.windows, strict=True)):
            arriving = gradient.index_select(0, target)
            if of_pixels is not None:
                of_pixels.index_add_(0, source, arriving @ cells[cell].T)
            if of_cells is not None:
                torch.mm(arriving.T, pixels.index_select(0, source), out=of_cells[cell])
        return of_pixels, None if of_cells is None else of_cells.transpose(1, 2), None, None

r"""FickleNet's stochastic hidden unit selection: a convolution that drops random cells of each window.

Lee et al., "FickleNet: Weakly and Semi-supervised Semantic Image Segmentation using Stochastic Inference", CVPR 2019
(the *paper*). A *window* is the ``s x s`` neighborhood that a convolution reads at one position; a *cell* is one of its
places, counted row by row, with offset :math:`o_d` from the center, which is cell ``s * s // 2``. With a mask
:math:`m_d(v)` that is 1 where the window at v keeps cell d, the same for all channels, the score of class c at v is

.. math:: S^c(v) = b^c + \sum_d m_d(v) \, w^c_d \cdot x(v + o_d) .

The paper expands the map to all of its windows and convolves it with a stride of s
(``benchmarks/stochastic_selection.py``). Two forms without the expansion give the same result faster:

- :func:`shifted_convolution`: the products :math:`w^c_d \cdot x(u)` come first, by a 1 x 1 convolution, so that C
  numbers per pixel and cell remain instead of D; then they are masked and added to their windows.
- :func:`gathered_convolution`: only the cells that are kept are gathered and multiplied, nine of 81 on average at the
  paper's rate of 0.9.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = [
    "FickleSettings",
    "StochasticSelection",
    "cell_offsets",
    "cell_products",
    "gathered_convolution",
    "init_class_layer",
    "selected_convolution",
    "selection_masks",
    "shifted_convolution",
    "transpose_masks",
    "use_generator",
]


@dataclass(frozen=True)
class FickleSettings:
    """Settings of FickleNet's head, which is one :class:`StochasticSelection`.

    Attributes:
        window: side s of a window, odd.
        rate: probability in [0, 1] that a cell is dropped; 0.9 is the paper's best.
        keep_center: whether the center of a window is never dropped. False: ordinary dropout, with which the paper
            compares (its Table 5).
    """

    window: int = 9
    rate: float = 0.9
    keep_center: bool = True

    def build_layer(self, channels: int, num_classes: int) -> "StochasticSelection":
        """Build the layer, with weights drawn from PyTorch's global generator.

        Raises:
            ValueError: if the window is even or the rate is outside [0, 1].
        """
        return StochasticSelection(channels, num_classes, self.window, self.rate, keep_center=self.keep_center)


class StochasticSelection(nn.Conv2d):
    """A convolution that drops random cells of each window, in training mode and in evaluation mode.

    The mask is the same for all channels and independent for each window: two windows that share a pixel may differ in
    whether they keep it. Dropping in evaluation mode is what makes the maps of one image differ. Random numbers come
    from :func:`use_generator`, or else from PyTorch's global generator.

    The paper does not say whether the kept cells are scaled up as in ordinary dropout; here they are not.

    Attributes:
        rate: probability that a cell is dropped. 0: an ordinary convolution.
        keep_center: whether the center of a window is never dropped.

    Examples::

        >>> network = ScoreMapNetwork(backbone, nn.Sequential(StochasticSelection(512, 20)))
        >>> with use_generator(torch.Generator().manual_seed(0)):
        ...     scores = network(images)
    """

    def __init__(
        self, channels: int, num_classes: int, window: int = 9, rate: float = 0.9, *, keep_center: bool = True
    ) -> None:
        """Initialize the weights from PyTorch's global generator.

        Args:
            channels: D, of the features.
            num_classes: C.
            window: see :class:`FickleSettings`.
            rate: see there.
            keep_center: see there.

        Raises:
            ValueError: if the window is even or the rate is outside [0, 1].
        """
        _check_selection(window, rate)
        super().__init__(channels, num_classes, window, padding=window // 2)
        init_class_layer(self)
        self.rate = rate
        self.keep_center = keep_center

    def forward(self, x: Tensor) -> Tensor:
        """Return score maps before sigmoid, with newly drawn masks.

        Args:
            x: ``(N, D, h, w)``.

        Returns:
            ``(N, C, h, w)``.
        """
        if not self.rate:
            return super().forward(x)
        scores = selected_convolution(x, self.weight, self.draw_masks(len(x), x), self.rate)
        assert self.bias is not None
        return scores + self.bias[:, None, None]

    def draw_masks(self, count: int, x: Tensor) -> Tensor:
        """Draw masks for the windows of a map.

        Args:
            count: M, number of masks.
            x: ``(N, D, h, w)``; its size and device are used.

        Returns:
            ``(M, s * s, h, w)`` bool, see :func:`selection_masks`.
        """
        size = (x.shape[2], x.shape[3])
        return selection_masks(
            count, size, self.kernel_size[0], self.rate, keep_center=self.keep_center, device=x.device
        )

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, rate={self.rate}, keep_center={self.keep_center}"


# Most classes are absent from most images: the initial probability of each class is 0.1.
_INITIAL_BIAS = -2.2


def init_class_layer(layer: nn.Conv2d) -> None:
    """Initialize a layer of class scores from PyTorch's global generator, with a low probability for each class.

    Args:
        layer: with a bias.
    """
    # Small relative to the inputs, which reach ten and more where they are rectified class scores.
    nn.init.normal_(layer.weight, std=1 / layer.in_channels)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, _INITIAL_BIAS)


_generator: ContextVar[torch.Generator | None] = ContextVar("the generator that masks are drawn from", default=None)


@contextmanager
def use_generator(generator: torch.Generator) -> Iterator[None]:
    """Draw masks from the given generator within this context, in this thread.

    No module is changed, and PyTorch's global generator is not used.

    Args:
        generator: on any device. Masks that are drawn on the CPU are the same for a model on a GPU.
    """
    token = _generator.set(generator)
    try:
        yield
    finally:
        _generator.reset(token)


def selection_masks(
    count: int,
    size: tuple[int, int],
    window: int,
    rate: float,
    *,
    keep_center: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw which cells each window keeps: the paper's center-preserving spatial dropout.

    Masks are drawn one after the other, from the generator of :func:`use_generator` or else from PyTorch's global
    generator of the device. So N masks in one call equal N calls for one mask.

    Args:
        count: N.
        size: ``(h, w)``, the positions of the windows.
        window: side s of a window, odd.
        rate: probability in [0, 1] that a cell is dropped.
        keep_center: see :class:`FickleSettings`.
        device: of the result.

    Returns:
        ``(N, s * s, h, w)`` bool: whether the window at a position keeps the cell.

    Raises:
        ValueError: if the window is even or the rate is outside [0, 1].
    """
    _check_selection(window, rate)
    generator = _generator.get()
    generator_device = device if generator is None else generator.device
    cells = window * window
    kept = torch.empty(count, cells, *size, dtype=torch.bool, device=generator_device)
    for mask in kept:
        torch.ge(torch.rand(cells, *size, generator=generator, device=generator_device), rate, out=mask)
    if keep_center:
        kept[:, cells // 2] = True
    return kept.to(device)


def _check_selection(window: int, rate: float) -> None:
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, so that it has a center; got {window}.")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is the probability that a unit is dropped and must lie in [0, 1], got {rate}.")


# At this rate and above, gathering is faster than shifting on the CPU (benchmarks/stochastic_selection.py, two cores).
_GATHER_MIN_RATE = 0.85


def selected_convolution(x: Tensor, weight: Tensor, masks: Tensor, rate: float) -> Tensor:
    """Convolve the kept cells of each window, in the form that is fastest for the device and the rate.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`selection_masks`.
        rate: of the masks.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    if x.device.type == "cpu" and rate >= _GATHER_MIN_RATE:
        return gathered_convolution(x, weight, masks)
    return shifted_convolution(x, weight, masks)


# Products that are held at once: 32 MiB in float32.
_CHUNK_SIZE = 2**23


def shifted_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve the kept cells of each window: products first, then masks, then sums.

    Images and classes are computed in chunks, so that memory is bounded. On an accelerator nothing is synchronized.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    window = weight.shape[-1]
    # F.fold adds cell (i, j) of a block to a pixel that lies i rows below the block, and the window that keeps a pixel
    # as cell d lies in the direction opposite to d: so cells are in reverse order.
    kept_by = transpose_masks(masks).flip(1)
    mirrored = weight.flip(2, 3)
    products = kept_by[0].numel()
    class_chunk_size = max(1, _CHUNK_SIZE // products)
    image_chunk_size = max(1, class_chunk_size // len(weight))
    chunks = zip(torch.split(x, image_chunk_size), torch.split(kept_by, image_chunk_size), strict=True)
    class_chunks = torch.split(mirrored, class_chunk_size)
    return torch.cat(
        [
            torch.cat([_fold_products(images, weights, kept, window) for weights in class_chunks], dim=1)
            for images, kept in chunks
        ]
    )


def _fold_products(x: Tensor, mirrored: Tensor, kept_by: Tensor, window: int) -> Tensor:
    kept = cell_products(x, mirrored) * kept_by[:, None]
    return F.fold(kept.flatten(1, 2).flatten(2), x.shape[2:], window, padding=window // 2)


def cell_products(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each pixel with the weights of each cell.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``.

    Returns:
        ``(N, C, s * s, h, w)``: what a pixel adds to the score of the window in which it is that cell.
    """
    classes, channels = weight.shape[:2]
    pointwise = weight.flatten(2).transpose(1, 2).reshape(-1, channels)
    return (pointwise @ x.flatten(2)).view(len(x), classes, -1, *x.shape[2:])


def transpose_masks(masks: Tensor) -> Tensor:
    """Convert masks from windows to pixels: which of the windows around a pixel keep it.

    Args:
        masks: ``(N, s * s, h, w)`` bool, of :func:`selection_masks`.

    Returns:
        ``(N, s * s, h, w)`` bool: whether the window in which a pixel is that cell keeps it; False where that window
        would lie outside the map.
    """
    window = round(masks.shape[1] ** 0.5)
    reach = window // 2
    padded = F.pad(masks, (reach,) * 4)
    height, width = masks.shape[2:]
    shifted = [
        padded[:, cell, reach - down : reach - down + height, reach - right : reach - right + width]
        for cell, (down, right) in enumerate(cell_offsets(window))
    ]
    return torch.stack(shifted, dim=1)


def cell_offsets(window: int) -> list[tuple[int, int]]:
    """Return the offset of each cell of a window from the center, ``(rows, columns)``, in the order of the cells."""
    reach = range(-(window // 2), window // 2 + 1)
    return [(down, right) for down in reach for right in reach]


def gathered_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve the kept cells of each window, and compute nothing for the others.

    The kept positions are listed on the host, which synchronizes an accelerator. Differentiable once.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    count, channels, height, width = x.shape
    cells = weight.flatten(2).permute(2, 1, 0).contiguous()
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    # index_add_ needs rows of one dtype, which autocast would change.
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, weight.dtype)
        summed: Tensor = _GatheredProducts.apply(pixels.to(dtype), cells.to(dtype), *_kept_positions(masks))  # type: ignore[no-untyped-call]
    return summed.view(count, height, width, -1).permute(0, 3, 1, 2)


def _kept_positions(masks: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return, for each cell, the pixels that are kept as that cell, and the positions of their windows."""
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
    """Products of kept pixels ``(P, D)`` with the weights of their cells ``(S, D, C)``, summed per window: ``(P, C)``.

    Autograd would keep every gathered row, and allocate a gradient of the size of the map for each cell.
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
        grad_pixels = torch.zeros_like(pixels) if ctx.needs_input_grad[0] else None
        # One wide row per class is multiplied faster than one narrow row per channel.
        grad_cells = cells.new_empty(len(cells), cells.shape[2], cells.shape[1]) if ctx.needs_input_grad[1] else None
        for cell, (source, target) in enumerate(zip(ctx.kept, ctx.windows, strict=True)):
            grad_windows = gradient.index_select(0, target)
            if grad_pixels is not None:
                grad_pixels.index_add_(0, source, grad_windows @ cells[cell].T)
            if grad_cells is not None:
                torch.mm(grad_windows.T, pixels.index_select(0, source), out=grad_cells[cell])
        return grad_pixels, None if grad_cells is None else grad_cells.transpose(1, 2), None, None

"""How a new layer of class scores begins.

Which hidden units each window sees: dropout that is resampled for every window of a convolution.

Lee et al., "FickleNet: Weakly and Semi-supervised Semantic Image Segmentation using Stochastic Inference", CVPR 2019
(the *paper*). A *window* is the ``s x s`` neighborhood that a convolution reads at one position, a *cell* one of its
places, counted row by row; cell ``s * s // 2`` is the center. Units are dropped with all their channels.

Stochastic hidden unit selection where most units are dropped: only what is kept is gathered and multiplied.

Of the 81 cells of a window, dropout at the paper's rate of 0.9 leaves nine. For each cell the pixels that are kept as
that cell are gathered, multiplied with its weights, and added to their windows: the work is the share that is kept.

Stochastic hidden unit selection without expansion: what each cell would add, masked, and shifted to its window.

The mask is the same for all channels. So the products over channels can be taken first, by a 1 x 1 convolution for each
cell of the window: C numbers a pixel and cell remain where the expanded map has D.

Stochastic hidden unit selection as a layer: a convolution that reads other units of each window in every pass.
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
    "check_rate",
    "check_window",
    "gathered_convolution",
    "init_class_layer",
    "selected_convolution",
    "selection_masks",
    "shifted_convolution",
    "transpose_masks",
    "use_generator",
]


# Most classes are absent from most pictures: a probability of 0.1 to begin with.
_INITIAL_BIAS = -2.2


def init_class_layer(layer: nn.Conv2d) -> None:
    """Draw the weights of a new layer of class scores, from PyTorch's global generator: each class is improbable.

    Args:
        layer: with a bias.
    """
    # Small beside the inputs, which for rectified class scores reach ten and more.
    nn.init.normal_(layer.weight, std=1 / layer.in_channels)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, _INITIAL_BIAS)


_source: ContextVar[torch.Generator | None] = ContextVar("the generator that masks are drawn from", default=None)


@contextmanager
def use_generator(generator: torch.Generator) -> Iterator[None]:
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
    keep_center: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw which cells each window keeps: the paper's center-preserving spatial dropout.

    Masks are drawn one after the other, from the generator of :func:`use_generator` or else PyTorch's global one of the
    device: many at once are those that would be drawn one by one.

    Args:
        count: N.
        size: ``(h, w)``, the positions of the windows.
        window: side s of a window, odd.
        rate: probability in [0, 1] that a cell is dropped.
        keep_center: whether the center of a window is never dropped. False: ordinary dropout, with which the paper
            compares (its Table 5).
        device: where the masks are needed.

    Returns:
        ``(N, s * s, h, w)`` bool: whether the window at a position keeps the cell.

    Raises:
        ValueError: if the window has no center, or the rate is no probability.
    """
    check_window(window)
    check_rate(rate)
    generator = _source.get()
    drawn_on = device if generator is None else generator.device
    cells = window * window
    kept = torch.empty(count, cells, *size, dtype=torch.bool, device=drawn_on)
    for mask in kept:
        torch.ge(torch.rand(cells, *size, generator=generator, device=drawn_on), rate, out=mask)
    if keep_center:
        kept[:, cells // 2] = True
    return kept.to(device)


def check_window(window: int) -> None:
    """Refuse a window without a center.

    Raises:
        ValueError: if the side is even or not positive.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, so that it has a center; got {window}.")


def check_rate(rate: float) -> None:
    """Refuse a rate that is no probability.

    Raises:
        ValueError: if it is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is the probability that a unit is dropped and must lie in [0, 1], got {rate}.")


def cell_offsets(window: int) -> list[tuple[int, int]]:
    """Where each cell of a window lies, as rows and columns from the center, in the order of the cells."""
    reach = range(-(window // 2), window // 2 + 1)
    return [(down, right) for down in reach for right in reach]


def transpose_masks(masks: Tensor) -> Tensor:
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


def gathered_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve what each window keeps, touching nothing else.

    The places that are kept are looked up on the host, for which an accelerator would have to wait.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.models.stochastic.selection_masks`.

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
        summed: Tensor = _GatheredProducts.apply(pixels.to(dtype), cells.to(dtype), *_kept_positions(masks))  # type: ignore[no-untyped-call]
    return summed.view(count, height, width, -1).permute(0, 3, 1, 2)


def _kept_positions(masks: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
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
        grad_pixels = torch.zeros_like(pixels) if ctx.needs_input_grad[0] else None
        # A wide row a class is multiplied faster than a narrow one a channel.
        grad_cells = cells.new_empty(len(cells), cells.shape[2], cells.shape[1]) if ctx.needs_input_grad[1] else None
        for cell, (source, target) in enumerate(zip(ctx.kept, ctx.windows, strict=True)):
            arriving = gradient.index_select(0, target)
            if grad_pixels is not None:
                grad_pixels.index_add_(0, source, arriving @ cells[cell].T)
            if grad_cells is not None:
                torch.mm(arriving.T, pixels.index_select(0, source), out=grad_cells[cell])
        return grad_pixels, None if grad_cells is None else grad_cells.transpose(1, 2), None, None


# Products that are held at once: 32 MiB in float32.
_CHUNK_SIZE = 2**23


def cell_products(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply each pixel with the weights of each cell: what it adds to a window of which it is that cell.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``.

    Returns:
        ``(N, C, s * s, h, w)``.
    """
    classes, channels = weight.shape[:2]
    pointwise = weight.flatten(2).transpose(1, 2).reshape(-1, channels)
    return (pointwise @ x.flatten(2)).view(len(x), classes, -1, *x.shape[2:])


def shifted_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve what each window keeps, without expanding the map.

    Images and classes are computed in parts, so that memory is bounded. Nothing waits for an accelerator.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.models.stochastic.selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    window = weight.shape[-1]
    # F.fold adds cell (i, j) of the block at a pixel i rows further down: the windows that see it, seen the other way.
    seen = transpose_masks(masks).flip(1)
    mirrored = weight.flip(2, 3)
    products = seen[0].numel()
    class_chunk_size = max(1, _CHUNK_SIZE // products)
    image_chunk_size = max(1, class_chunk_size // len(weight))
    images = zip(torch.split(x, image_chunk_size), torch.split(seen, image_chunk_size), strict=True)
    classes = torch.split(mirrored, class_chunk_size)
    return torch.cat(
        [torch.cat([_shifted(part, weights, kept, window) for weights in classes], dim=1) for part, kept in images]
    )


def _shifted(x: Tensor, mirrored: Tensor, seen: Tensor, window: int) -> Tensor:
    kept = cell_products(x, mirrored) * seen[:, None]
    return F.fold(kept.flatten(1, 2).flatten(2), x.shape[2:], window, padding=window // 2)


# From which rate on gathering beats shifting on the CPU (benchmarks/stochastic_selection.py, two CPU cores).
_GATHER_MIN_RATE = 0.85


def selected_convolution(x: Tensor, weight: Tensor, masks: Tensor, rate: float) -> Tensor:
    """Convolve what each window keeps, in the form that is fastest for the device and the rate.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.models.stochastic.selection_masks`.
        rate: at which they were drawn.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    if x.device.type == "cpu" and rate >= _GATHER_MIN_RATE:
        return gathered_convolution(x, weight, masks)
    return shifted_convolution(x, weight, masks)


class StochasticSelection(nn.Conv2d):
    """A convolution that drops units of each window at random, in training and in evaluation mode alike.

    Lee et al., "FickleNet", CVPR 2019. The mask is the same for all channels and another for each window: two windows
    that share a pixel may disagree about it. Inference drops too, for that is what makes the maps of one picture
    differ. The random numbers are those of :func:`~dcsm_attr.models.stochastic.use_generator`, else PyTorch's global
    ones.

    The paper does not say whether what is kept is scaled up; here it is not, unless ``rescale`` is set.

    Attributes:
        rate: probability that a cell is dropped; 0: an ordinary convolution.
        keep_center: whether the center of a window is never dropped.
        rescale: whether the weights of cells that may be dropped are divided by ``1 - rate``, so that the mean over
            many passes is the ordinary convolution.

    Examples::

        >>> network = ScoreMapNetwork(backbone, nn.Sequential(StochasticSelection(512, 20)))
        >>> with use_generator(torch.Generator().manual_seed(0)):
        ...     scores = network(images)
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        window: int = 9,
        rate: float = 0.9,
        *,
        keep_center: bool = True,
        rescale: bool = False,
    ) -> None:
        """Draw the weights from PyTorch's global generator.

        Args:
            channels: D, of the features.
            num_classes: C.
            window: side s of a window, odd.
            rate: in [0, 1]; 0.9 is the paper's best.
            keep_center: False is ordinary dropout, with which the paper compares.
            rescale: see the attribute.

        Raises:
            ValueError: if the window is even, the rate is no probability, or everything is dropped and to be rescaled.
        """
        check_window(window)
        check_rate(rate)
        if rescale and rate == 1:
            raise ValueError("rescale=True divides by 1 - rate: it needs a rate below 1, got 1.")
        super().__init__(channels, num_classes, window, padding=window // 2)
        init_class_layer(self)
        self.rate = rate
        self.keep_center = keep_center
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        """Score maps before sigmoid, of units that are resampled.

        Args:
            x: ``(N, D, h, w)``.

        Returns:
            ``(N, C, h, w)``.
        """
        if not self.rate:
            return super().forward(x)
        scores = selected_convolution(x, self.scaled_weight(), self.draw(len(x), x), self.rate)
        assert self.bias is not None
        return scores + self.bias[:, None, None]

    def draw(self, count: int, x: Tensor) -> Tensor:
        """Draw masks for windows of a map.

        Args:
            count: M, how many.
            x: ``(N, D, h, w)``.

        Returns:
            ``(M, s * s, h, w)`` bool, see :func:`~dcsm_attr.models.stochastic.selection_masks`.
        """
        size = (x.shape[2], x.shape[3])
        return selection_masks(
            count, size, self.kernel_size[0], self.rate, keep_center=self.keep_center, device=x.device
        )

    def scaled_weight(self) -> Tensor:
        """The weights that a pass multiplies with, ``(C, D, s, s)``: the parameter, unless they are rescaled."""
        if not self.rescale:
            return self.weight
        scale = torch.full_like(self.weight[0, 0], 1 / (1 - self.rate))
        if self.keep_center:
            scale.view(-1)[scale.numel() // 2] = 1.0
        return self.weight * scale

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, rate={self.rate}, keep_center={self.keep_center}, rescale={self.rescale}"


@dataclass(frozen=True)
class FickleSettings:
    """Settings of FickleNet's head, which is one :class:`StochasticSelection`.

    Attributes:
        window: side s of a window, odd.
        rate: probability in [0, 1] that a cell of a window is dropped; 0.9 is the paper's best.
        keep_center: whether the center of a window is never dropped.
    """

    window: int = 9
    rate: float = 0.9
    keep_center: bool = True

    def build_layer(self, channels: int, num_classes: int) -> StochasticSelection:
        """Build the layer, with weights drawn from PyTorch's global generator.

        Raises:
            ValueError: if the window is even or the rate is outside [0, 1].
        """
        return StochasticSelection(channels, num_classes, self.window, self.rate, keep_center=self.keep_center)

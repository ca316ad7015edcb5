"""Stochastic hidden unit selection without expansion: what each cell would add, masked, and shifted to its window.

The mask is the same for all channels. So the products over channels can be taken first, by a 1 x 1 convolution for each
cell of the window: C numbers a pixel and cell remain where the expanded map has D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.stochastic.masks import seen_from_pixels

__all__ = ["cell_products", "shifted_convolution"]

# Products that are held at once: 32 MiB in float32.
_AT_ONCE = 2**23


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
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.stochastic.masks.selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    window = weight.shape[-1]
    # F.fold adds cell (i, j) of the block at a pixel i rows further down: the windows that see it, seen the other way.
    seen = seen_from_pixels(masks).flip(1)
    mirrored = weight.flip(2, 3)
    products = seen[0].numel()
    classes_at_once = max(1, _AT_ONCE // products)
    images_at_once = max(1, classes_at_once // len(weight))
    images = zip(torch.split(x, images_at_once), torch.split(seen, images_at_once), strict=True)
    classes = torch.split(mirrored, classes_at_once)
    return torch.cat(
        [torch.cat([_shifted(part, weights, kept, window) for weights in classes], dim=1) for part, kept in images]
    )


def _shifted(x: Tensor, mirrored: Tensor, seen: Tensor, window: int) -> Tensor:
    kept = cell_products(x, mirrored) * seen[:, None]
    return F.fold(kept.flatten(1, 2).flatten(2), x.shape[2:], window, padding=window // 2)

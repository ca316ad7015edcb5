"""Stochastic hidden unit selection as the paper computes it: the map expanded to its windows, which lie side by side.

Lee et al., CVPR 2019, section "Feature map expansion": every window of the map is copied out, dropout is applied once
to all of them, and a convolution whose stride is its kernel reads each window once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["expanded_convolution"]


# Values of an expanded map that are held at once: 32 MiB in float32. All windows of 41 x 41 x 512 would take 266 MiB.
_CHUNK_SIZE = 2**23


def expanded_convolution(x: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    """Convolve what each window keeps, by expansion.

    A convolution whose stride is its kernel is the product of its weights with the windows: the tiles need not be laid
    out as a map. Rows of windows are expanded in turn, so that memory is bounded.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.models.stochastic.selection_masks`.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    count, channels, height, width = x.shape
    classes, _, window, _ = weight.shape
    padded = F.pad(x, (window // 2,) * 4)
    row_chunk_size = max(1, _CHUNK_SIZE // (count * channels * window * window * width))
    parts = []
    for top in range(0, height, row_chunk_size):
        kept = masks[:, None, :, top : top + row_chunk_size].flatten(3)
        strip = padded[:, :, top : top + row_chunk_size + window - 1]
        windows = F.unfold(strip, window).view(count, channels, window * window, -1) * kept
        parts.append((weight.flatten(1) @ windows.flatten(1, 2)).view(count, classes, -1, width))
    return torch.cat(parts, dim=2)

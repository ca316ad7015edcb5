"""Label maps at the resolution of a network's maps."""

import torch
from torch import Tensor

__all__ = ["grid_labels"]

_LABELS = 256


def grid_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The most frequent label of each cell of a grid; of equally frequent ones the lowest.

    Differs from the release of AffinityNet, which averages the probabilities after the CRF over each cell: label maps
    are hundreds of times smaller on the disk, and can be looked at.

    Args:
        labels: ``(N, H, W)`` integers, 0 to 255.
        size: ``(h, w)`` of the grid, not larger than the maps.

    Returns:
        ``(N, h, w)`` int64.

    Raises:
        ValueError: if the grid is finer than the label maps.
    """
    count, height, width = labels.shape
    if size[0] > height or size[1] > width:
        raise ValueError(f"the grid must not be finer than the label maps of {(height, width)}, got {size}.")
    rows = torch.arange(height, device=labels.device) * size[0] // height
    columns = torch.arange(width, device=labels.device) * size[1] // width
    images = torch.arange(count, device=labels.device)
    cells = (images[:, None, None] * size[0] + rows[:, None]) * size[1] + columns
    keys = cells * _LABELS + labels
    frequencies = torch.bincount(keys.flatten(), minlength=count * size[0] * size[1] * _LABELS)
    return frequencies.view(count, *size, _LABELS).argmax(dim=-1)

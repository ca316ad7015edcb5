"""Connected components of many masks, in plain tensor operations."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["connected_components"]


def connected_components(masks: Tensor) -> Tensor:
    """Number the components of each mask; pixels that touch at sides or corners are connected.

    Every pixel begins as a component of its own. In each round every component joins the highest numbered one that it
    touches, and chains of joins are followed to their end, so that a few rounds are enough for any shape.

    SciPy labels twenty to thirty times as fast on a CPU (benchmarks/region_growing.py, two CPU cores: 2 ms for SEC's
    batch on 41 x 41, and 39 ms here); this needs no further package, and leaves the masks on their device.

    Args:
        masks: ``(B, h, w)`` bool.

    Returns:
        ``(B, h, w)`` int64: 0 outside the masks; two pixels have the same number if they are of one component of one
        mask. The numbers are not consecutive.
    """
    count, height, width = masks.shape
    # One after the other on the CPU, as its caches like it better.
    at_once = 1 if masks.device.type == "cpu" else max(1, count)
    result = torch.zeros(masks.shape, dtype=torch.int64, device=masks.device)
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        result[part] = (_numbered(masks[part]) + start * height * width).mul_(masks[part])
    return result


def _numbered(masks: Tensor) -> Tensor:
    pixels = masks.numel()
    numbers = torch.arange(1, pixels + 1, device=masks.device).view(masks.shape) * masks
    # The number that each number has joined; 0 is what is outside.
    joined = torch.arange(pixels + 1, device=masks.device)
    while True:
        touched = _highest_neighbour(numbers) * masks
        if torch.equal(touched, numbers):
            return numbers
        joined.scatter_reduce_(0, numbers.flatten(), touched.flatten(), "amax")
        joined = _followed(joined)
        numbers = joined[numbers]


def _followed(joined: Tensor) -> Tensor:
    while True:
        further = joined[joined]
        if torch.equal(further, joined):
            return joined
        joined = further


def _highest_neighbour(numbers: Tensor) -> Tensor:
    """Of the 3 x 3 pixels around each."""
    padded = F.pad(numbers, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])

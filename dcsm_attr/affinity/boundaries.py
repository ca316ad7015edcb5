"""Affinities as a picture: where a position differs from its neighbours."""

import torch
from torch import Tensor

from dcsm_attr.affinity.neighbours import Offsets, overlap

__all__ = ["boundaries"]


def boundaries(affinities: Tensor, offsets: Offsets) -> Tensor:
    """One minus the mean affinity of each position with its neighbours, those before it and those after it.

    Args:
        affinities: ``(N, P, h, w)`` in [0, 1], see :func:`dcsm_attr.affinity.affinities.affinities`.
        offsets: P pairs ``(dy, dx)``, those of the affinities.

    Returns:
        ``(N, 1, h, w)`` in [0, 1]; 0 for a position without neighbours.
    """
    count, _, height, width = affinities.shape
    total, neighbours = affinities.new_zeros(count, height, width), affinities.new_zeros(height, width)
    for pair, offset in enumerate(offsets):
        sources, ahead = overlap(height, width, offset)
        of_pair = affinities[:, pair, sources[0], sources[1]]
        for rows, columns in (sources, ahead):
            total[:, rows, columns] += of_pair
            neighbours[rows, columns] += 1
    return torch.where(neighbours > 0, 1 - total / neighbours.clamp(min=1), 0.0)[:, None]

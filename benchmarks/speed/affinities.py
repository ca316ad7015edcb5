"""A step of training on AffinityNet's affinities, beside one whose differences autograd keeps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.comparison import OURS
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, overlap

__all__ = ["PLAIN", "AffinityWork", "affinity_implementations"]


PLAIN = "PyTorch, offset by offset"

_OFFSETS = neighbor_offsets()


@dataclass(frozen=True)
class AffinityWork:
    """Features of a batch; of AffinityNet: 448 channels, 56 x 56 positions.

    Attributes:
        images: N.
        channels: D.
        side: h and w.
    """

    images: int
    channels: int
    side: int


def affinity_implementations(work: AffinityWork) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward through all affinities, to the gradients of the features.

    Args:
        work: on a GPU where there is one.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(work.images, work.channels, work.side, work.side, generator=generator) / work.channels
    features = features.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_()

    def gradient_of(total: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(total(), features)[0]

    return {
        OURS: gradient_of(lambda: affinities(features, _OFFSETS).sum()),
        PLAIN: gradient_of(lambda: _plain_sum(features)),
    }


def _plain_sum(features: Tensor) -> Tensor:
    height, width = features.shape[2:]
    total = features.new_zeros(())
    for offset in _OFFSETS:
        (rows, columns), (target_rows, target_columns) = overlap(height, width, offset)
        differences = features[:, :, rows, columns] - features[:, :, target_rows, target_columns]
        total = total + differences.abs().sum(dim=1).neg().exp().sum()
    return total

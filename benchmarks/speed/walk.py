"""AffinityNet's random walk beside 256 products with the same sparse matrix, and beside squaring it as a dense one.

A step of training on AffinityNet's affinities, beside one whose differences autograd keeps.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.comparison import OURS
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, overlap_slices
from dcsm_attr.wsss.random_walk import random_walk

__all__ = [
    "DENSE",
    "PLAIN",
    "SPARSE",
    "AffinityWork",
    "WalkWork",
    "affinity_implementations",
    "exact_walk",
    "walk_implementations",
]


PLAIN = "PyTorch, offset by offset"

_NEIGHBOR_OFFSETS = neighbor_offsets()


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
        OURS: gradient_of(lambda: affinities(features, _NEIGHBOR_OFFSETS).sum()),
        PLAIN: gradient_of(lambda: _plain_sum(features)),
    }


def _plain_sum(features: Tensor) -> Tensor:
    height, width = features.shape[2:]
    total = features.new_zeros(())
    for offset in _NEIGHBOR_OFFSETS:
        (rows, columns), (target_rows, target_columns) = overlap_slices(height, width, offset)
        differences = features[:, :, rows, columns] - features[:, :, target_rows, target_columns]
        total = total + differences.abs().sum(dim=1).neg().exp().sum()
    return total


SPARSE = "256 sparse products"
DENSE = "dense matrix, 8 squarings"

_OFFSETS = neighbor_offsets()
_BETA = 8.0
_SQUARINGS = 8
# Positions of a dense matrix that is squared in reasonable time: with four times as many it takes 64 times as long.
_MAX_DENSE_SIZE = 5000


@dataclass(frozen=True)
class WalkWork:
    """The maps of one image, with the paper's settings: radius 5, beta 8, 256 steps.

    Attributes:
        height: h of the maps.
        width: w of the maps.
        labels: L, one map each.
    """

    height: int
    width: int
    labels: int


def walk_implementations(work: WalkWork) -> dict[str, Callable[[], Tensor]]:
    """Ours, and what one writes first; each from the same maps and affinities to the same maps, in float32.

    Args:
        work: on a GPU where there is one. A dense matrix is left out where squaring it takes too long.
    """
    maps, pairs = _inputs(work)
    implementations = {
        OURS: lambda: random_walk(maps, pairs, _OFFSETS, beta=_BETA, steps=2**_SQUARINGS),
        SPARSE: lambda: _by_sparse_products(maps, pairs),
    }
    if work.height * work.width <= _MAX_DENSE_SIZE:
        implementations[DENSE] = lambda: _by_dense_squaring(maps, pairs)
    return implementations


def exact_walk(work: WalkWork) -> Tensor:
    """What the implementations should give: all products one after the other, in float64.

    Args:
        work: what is to be done.
    """
    maps, pairs = _inputs(work)
    return _by_sparse_products(maps.double(), pairs.double())


def _inputs(work: WalkWork) -> tuple[Tensor, Tensor]:
    """Random maps, and affinities of features that are smooth, as those of images."""
    generator = torch.Generator().manual_seed(work.labels)
    size = (work.height, work.width)
    coarse = torch.randn(1, 8, 12, 12, generator=generator) / 4
    features = F.interpolate(coarse, size, mode="bicubic")
    maps = torch.rand(1, work.labels, *size, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return maps.to(device), affinities(features.to(device), _OFFSETS)


def _weights(pairs: Tensor) -> Tensor:
    """W to the power of beta, sparse."""
    height, width = pairs.shape[2:]
    positions = torch.arange(height * width, device=pairs.device).view(height, width)
    sources, targets, values = [positions.flatten()], [positions.flatten()], [pairs.new_ones(height * width)]
    for of_offset, offset in zip(pairs[0], _OFFSETS, strict=True):
        here, there = overlap_slices(height, width, offset)
        weights = of_offset[here].flatten() ** _BETA
        sources += [positions[here].flatten(), positions[there].flatten()]
        targets += [positions[there].flatten(), positions[here].flatten()]
        values += [weights, weights]
    entries = torch.stack([torch.cat(sources), torch.cat(targets)])
    return torch.sparse_coo_tensor(entries, torch.cat(values), [height * width] * 2, check_invariants=False)


def _by_sparse_products(maps: Tensor, pairs: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # That this layout is in beta.
        warnings.simplefilter("ignore")
        weights = _weights(pairs).to_sparse_csr()
    values = maps[0].flatten(1).T.contiguous()
    degrees = weights @ values.new_ones(len(values), 1)
    for _ in range(2**_SQUARINGS):
        values = (weights @ values) / degrees
    return values.T.reshape(maps.shape)


def _by_dense_squaring(maps: Tensor, pairs: Tensor) -> Tensor:
    matrix = _weights(pairs).to_dense()
    matrix /= matrix.sum(dim=1, keepdim=True)
    for _ in range(_SQUARINGS):
        matrix = matrix @ matrix
    return (matrix @ maps[0].flatten(1).T).T.reshape(maps.shape)

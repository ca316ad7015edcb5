"""Time AffinityNet's random walk, and a training step on the affinities that it uses.

The walk is compared with 256 products with the same sparse matrix, and with squaring it as a dense matrix; the training
step with plain PyTorch, in which autograd keeps the differences of every offset.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.comparison import OURS, Comparison
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, overlap_slices
from dcsm_attr.wsss.random_walk import random_walk

__all__ = [
    "AffinityWork",
    "WalkWork",
    "affinity_implementations",
    "exact_walk",
    "walk_comparisons",
    "walk_implementations",
]

SPARSE = "256 sparse products"
DENSE = "dense matrix, 8 squarings"
PLAIN = "PyTorch, offset by offset"

# Numbers of maps: two for an image with one class, 21 for all classes of PASCAL VOC.
_LABEL_COUNTS = (2, 4, 21)
_OFFSETS = neighbor_offsets()
_BETA = 8.0
_SQUARINGS = 8
# Positions up to which a dense matrix is squared: with four times as many it takes 64 times as long.
_MAX_DENSE_SIZE = 5000


@dataclass(frozen=True)
class WalkWork:
    """Maps of one image, with the paper's settings: radius 5, beta 8, 256 steps.

    Attributes:
        height: h of the maps.
        width: w of the maps.
        labels: number of maps L.
    """

    height: int
    width: int
    labels: int


@dataclass(frozen=True)
class AffinityWork:
    """Features of a batch; AffinityNet has 448 channels at 56 x 56 positions.

    Attributes:
        images: number of images N.
        channels: number of channels D.
        side: h and w.
    """

    images: int
    channels: int
    side: int


def walk_comparisons() -> list[Comparison]:
    """Build the comparisons of the walk and of a training step on a batch of AffinityNet.

    The walk has the maps of an image of 500 x 375, at strides 8 and 4 of the network, per number of labels.
    """
    walks = [
        Comparison(
            f"random walk, 500 x 375 at stride {stride} ({width} x {height}), L = {labels}",
            walk_implementations,
            WalkWork(height, width, labels),
            (OURS, SPARSE, DENSE),
            exact_walk,
        )
        for stride, width, height in ((8, 63, 47), (4, 125, 94))
        for labels in _LABEL_COUNTS
    ]
    training = Comparison(
        "affinities and their gradients, 8 x 448 x 56 x 56",
        affinity_implementations,
        AffinityWork(8, 448, 56),
        (OURS, PLAIN),
    )
    return [*walks, training]


def walk_implementations(work: WalkWork) -> dict[str, Callable[[], Tensor]]:
    """Build the walks, from the same maps and affinities to the same maps, in float32, on a GPU if there is one.

    The dense matrix is left out where squaring it takes too long.
    """
    maps, pairs = _walk_inputs(work)
    implementations = {
        OURS: lambda: random_walk(maps, pairs, _OFFSETS, beta=_BETA, steps=2**_SQUARINGS),
        SPARSE: lambda: _walk_by_sparse_products(maps, pairs),
    }
    if work.height * work.width <= _MAX_DENSE_SIZE:
        implementations[DENSE] = lambda: _walk_by_dense_squaring(maps, pairs)
    return implementations


def exact_walk(work: WalkWork) -> Tensor:
    """Return the exact result of the walk: all products one after the other, in float64."""
    maps, pairs = _walk_inputs(work)
    return _walk_by_sparse_products(maps.double(), pairs.double())


def _walk_inputs(work: WalkWork) -> tuple[Tensor, Tensor]:
    """Random maps, and affinities of smooth features, as images have them."""
    generator = torch.Generator().manual_seed(work.labels)
    size = (work.height, work.width)
    coarse = torch.randn(1, 8, 12, 12, generator=generator) / 4
    features = F.interpolate(coarse, size, mode="bicubic")
    maps = torch.rand(1, work.labels, *size, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return maps.to(device), affinities(features.to(device), _OFFSETS)


def _walk_by_sparse_products(maps: Tensor, pairs: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch warns that the CSR layout is in beta.
        warnings.simplefilter("ignore")
        weights = _weights(pairs).to_sparse_csr()
    values = maps[0].flatten(1).T.contiguous()
    degrees = weights @ values.new_ones(len(values), 1)
    for _ in range(2**_SQUARINGS):
        values = (weights @ values) / degrees
    return values.T.reshape(maps.shape)


def _walk_by_dense_squaring(maps: Tensor, pairs: Tensor) -> Tensor:
    matrix = _weights(pairs).to_dense()
    matrix /= matrix.sum(dim=1, keepdim=True)
    for _ in range(_SQUARINGS):
        matrix = matrix @ matrix
    return (matrix @ maps[0].flatten(1).T).T.reshape(maps.shape)


def _weights(pairs: Tensor) -> Tensor:
    """W to the power of beta, sparse."""
    height, width = pairs.shape[2:]
    positions = torch.arange(height * width, device=pairs.device).view(height, width)
    sources, targets, values = [positions.flatten()], [positions.flatten()], [pairs.new_ones(height * width)]
    for of_offset, offset in zip(pairs[0], _OFFSETS, strict=True):
        source, target = overlap_slices(height, width, offset)
        weights = of_offset[source].flatten() ** _BETA
        sources += [positions[source].flatten(), positions[target].flatten()]
        targets += [positions[target].flatten(), positions[source].flatten()]
        values += [weights, weights]
    entries = torch.stack([torch.cat(sources), torch.cat(targets)])
    return torch.sparse_coo_tensor(entries, torch.cat(values), [height * width] * 2, check_invariants=False)


def affinity_implementations(work: AffinityWork) -> dict[str, Callable[[], Tensor]]:
    """Build the forward and backward pass through all affinities to the gradients of the features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(work.images, work.channels, work.side, work.side, generator=generator) / work.channels
    features = features.to("cuda" if torch.cuda.is_available() else "cpu").requires_grad_()

    def gradient_of(total: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(total(), features)[0]

    return {
        OURS: gradient_of(lambda: affinities(features, _OFFSETS).sum()),
        PLAIN: gradient_of(lambda: _plain_affinity_sum(features)),
    }


def _plain_affinity_sum(features: Tensor) -> Tensor:
    height, width = features.shape[2:]
    total = features.new_zeros(())
    for offset in _OFFSETS:
        (rows, columns), (target_rows, target_columns) = overlap_slices(height, width, offset)
        differences = features[:, :, rows, columns] - features[:, :, target_rows, target_columns]
        total = total + differences.abs().sum(dim=1).neg().exp().sum()
    return total

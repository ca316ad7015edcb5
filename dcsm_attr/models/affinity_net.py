r"""AffinityNet: features whose distances are the semantic affinities of neighboring positions.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018 (the *paper*) and its released code. The affinity of positions i and j with features f is

.. math:: W_{ij} = \exp(-\|f_i - f_j\|_1)

for pairs of positions that are less than a radius apart. A pair is named by its source ``(y, x)`` and the offset
``(dy, dx)`` to its target. The offsets are one half of a disc, so that every pair occurs once. Values of pairs have the
shape ``(N, P, h, w)``: P in the order of the offsets, the source at ``(y, x)``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dcsm_attr.models.backbone import copy_backbone, find_stages, multi_stage_backbone

__all__ = [
    "GRID_STRIDE",
    "AffinityHead",
    "AffinityNet",
    "Border",
    "Norm",
    "Offsets",
    "affinities",
    "device_chunks",
    "neighbor_offsets",
    "overlap_slices",
    "pair_mask",
]

#: Which pairs exist near the border of the map, see :func:`pair_mask`.
Border = Literal["full", "released"]

#: How the distance of features is taken over the channels, see :func:`affinities`.
Norm = Literal["sum", "mean"]

#: ``(dy, dx)`` of each pair.
Offsets = Sequence[tuple[int, int]]

#: Pixels of the image per position of the features.
GRID_STRIDE = 8

# Of the release: channels that the maps of the last three stages are reduced to, the groups of their norms, and the
# gain of the last layer's initial weights.
_WIDTHS = (64, 128, 256)
_GROUPS = (8, 16, 32)
_GAIN = 4.0


class AffinityNet(nn.Module):
    """Features of positions at stride 8.

    Differs from the release, which takes conv4, conv5 and the fully connected layer of a dilated VGG, all at stride 8:
    any backbone is used, without dilation. The maps of its last three resolutions are reduced by 1 x 1 convolutions and
    then resized to stride 8, by averaging where they are finer, bilinearly where they are coarser. Each reduction has a
    group norm, which the release has for VGG only: the maps of other networks differ in scale by orders of magnitude.

    Attributes:
        backbone: images to the maps of the stages.
        head: maps to features.
    """

    def __init__(self, backbone: nn.Module, norm: Norm = "mean") -> None:
        """Build the network on a copy of a backbone.

        Args:
            backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`, or any that ``torch.fx`` can
                trace; copied with its weights. The head is initialized from PyTorch's global generator.
            norm: of the distances that the features are trained for.

        Raises:
            ValueError: if the backbone has no convolutions.
        """
        super().__init__()
        stages = find_stages(backbone)[-len(_WIDTHS) :]
        self.backbone = multi_stage_backbone(copy_backbone(backbone), stages)
        self.head = AffinityHead([stage.channels for stage in stages], norm)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features.

        Args:
            images: ``(N, 3, H, W)``.

        Returns:
            ``(N, D, ceil(H / 8), ceil(W / 8))``, with D = 448 for a backbone of three or more stages.
        """
        size = (-(-images.shape[2] // GRID_STRIDE), -(-images.shape[3] // GRID_STRIDE))
        features: Tensor = self.head(list(self.backbone(images).values()), size)
        return features


class AffinityHead(nn.Module):
    """Reduces, resizes, concatenates and mixes the maps of several stages."""

    def __init__(self, channels: Sequence[int], norm: Norm) -> None:
        """Initialize the layers from PyTorch's global generator.

        Args:
            channels: of the maps, at most three.
            norm: with ``"sum"``, the initial features are smaller by the number of channels, so that the initial
                affinities are as with ``"mean"``: neither all 0 nor all 1.
        """
        super().__init__()
        widths = _WIDTHS[-len(channels) :]
        self.reductions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, width, 1, bias=False), nn.GroupNorm(groups, width), nn.ELU())
            for given, width, groups in zip(channels, widths, _GROUPS[-len(channels) :], strict=True)
        )
        total = sum(widths)
        self.mixing = nn.Conv2d(total, total, 1, bias=False)
        for layer in self.reductions.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.mixing.weight, gain=_GAIN if norm == "mean" else _GAIN / total)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Compute features from maps.

        Args:
            maps: ``(N, C_i, h_i, w_i)``.
            size: ``(h, w)`` of the result.

        Returns:
            ``(N, D, h, w)``, above -1.
        """
        reduced = [_resize(reduction(one), size) for reduction, one in zip(self.reductions, maps, strict=True)]
        return F.elu(self.mixing(torch.cat(reduced, dim=1)))


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2] > size[0] or maps.shape[3] > size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear")


def affinities(features: Tensor, offsets: Offsets, norm: Norm = "sum") -> Tensor:
    r"""Compute the affinity of each position with each of its neighbors: :math:`\exp(-\|f_i - f_j\|_1)`.

    Differentiable once. The backward pass computes the differences again instead of storing them: besides the features
    it needs no more memory than the differences along one offset.

    Args:
        features: ``(N, D, h, w)`` floating point. Half precision is summed and returned in float32: near one, where the
            affinities of neighbors within an object are, half precision is too coarse.
        offsets: P pairs ``(dy, dx)``, see :func:`neighbor_offsets`.
        norm: ``"sum"`` over the channels, as in the paper; ``"mean"`` as in the released code, which with 448 channels
            is another temperature.

    Returns:
        ``(N, P, h, w)`` in [0, 1], the source at ``(y, x)``; zero where the target is outside the map.

    Raises:
        TypeError: if the features are not floating point.
        ValueError: if the features are not ``(N, D, h, w)``, or there is no such norm.
    """
    if features.ndim != 4 or 0 in features.shape:
        raise ValueError(f"features must have shape (N, D, h, w), none of them 0; got {tuple(features.shape)}.")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}.")
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(map(repr, get_args(Norm)))}; got {norm!r}.")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    scale = 1.0 if norm == "sum" else 1.0 / features.shape[1]
    result: Tensor = _Affinities.apply(features, tuple(offsets), scale)
    return result


class _Affinities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, offsets: Offsets, scale: float) -> Tensor:
        result = features.new_zeros(len(features), len(offsets), *features.shape[2:])
        for images in device_chunks(features):
            for pair, (rows, columns), (target_rows, target_columns) in _pair_slices(features, offsets):
                sources, targets = features[images, :, rows, columns], features[images, :, target_rows, target_columns]
                distances = (sources - targets).abs_().sum(dim=1)
                result[images, pair, rows, columns] = distances.mul_(-scale).exp_()
        ctx.offsets, ctx.scale = offsets, scale
        ctx.save_for_backward(features, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, result = ctx.saved_tensors
        grad_distances = (gradient * result).mul_(-ctx.scale).unsqueeze_(1)
        grad_features = torch.zeros_like(features)
        for images in device_chunks(features):
            for pair, (rows, columns), (target_rows, target_columns) in _pair_slices(features, ctx.offsets):
                sources, targets = features[images, :, rows, columns], features[images, :, target_rows, target_columns]
                signs = (sources - targets).sign_()
                weights = grad_distances[images, :, pair, rows, columns]
                grad_features[images, :, rows, columns].addcmul_(signs, weights)
                grad_features[images, :, target_rows, target_columns].addcmul_(signs, weights, value=-1)
        return grad_features, None, None


def _pair_slices(features: Tensor, offsets: Offsets) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield the index of each offset, and the slices of its sources and of its targets."""
    height, width = features.shape[2:]
    return ((pair, *overlap_slices(height, width, offset)) for pair, offset in enumerate(offsets))


def device_chunks(batch: Tensor) -> Iterator[slice]:
    """Split a batch into the images that are computed together: one on the CPU, whose caches hold one; else all.

    Args:
        batch: ``(N, ...)``, not empty.
    """
    chunk_size = 1 if batch.device.type == "cpu" else len(batch)
    return (slice(start, start + chunk_size) for start in range(0, len(batch), chunk_size))


def neighbor_offsets(radius: int = 5) -> tuple[tuple[int, int], ...]:
    """Return the offsets from a position to its neighbors that come after it, row by row.

    Args:
        radius: in positions; neighbors are strictly nearer. 5 in AffinityNet.

    Returns:
        ``(dy, dx)`` of each, 34 for a radius of 5: to the right in the same row, then all in the rows below.

    Raises:
        ValueError: if the radius is not positive.
    """
    if radius < 1:
        raise ValueError(f"radius must be at least 1 (which has no neighbors), got {radius}.")
    return tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if dy * dy + dx * dx < radius * radius and (dy, dx) > (0, 0)
    )


def pair_mask(
    height: int, width: int, offsets: Offsets, border: Border = "full", *, device: torch.device | str | None = None
) -> Tensor:
    """Return which pairs exist.

    The released code of AffinityNet uses as sources only positions from which every offset stays inside the map. Pairs
    within the last rows, and within the first and last columns, are missing; positions in the corners have no neighbors
    at all, and a random walk never leaves them.

    Args:
        height: h of the map.
        width: w of the map.
        offsets: P pairs ``(dy, dx)``.
        border: ``"full"``: all pairs inside the map. ``"released"``: the pairs of the released code; with a radius of
            5, of 56 x 56 positions 52 x 48 are sources.
        device: of the result.

    Returns:
        ``(P, h, w)`` bool, at the sources.

    Raises:
        ValueError: if there is no such border.
    """
    if border not in get_args(Border):
        raise ValueError(f"border must be one of {', '.join(map(repr, get_args(Border)))}; got {border!r}.")
    mask = torch.zeros(len(offsets), height, width, dtype=torch.bool, device=device)
    for pairs, offset in zip(mask, offsets, strict=True):
        pairs[overlap_slices(height, width, offset)[0]] = True
    return mask & mask.all(dim=0) if border == "released" else mask


def overlap_slices(height: int, width: int, offset: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where both ends of a pair are inside the map.

    Args:
        height: h of the map.
        width: w of the map.
        offset: ``(dy, dx)``.

    Returns:
        Rows and columns of the sources, and those of their targets, as slices of equal lengths; empty where the offset
        leaves the map.
    """
    (top, bottom), (left, right) = (_overlap_slice(*axis) for axis in zip((height, width), offset, strict=True))
    return (top, left), (bottom, right)


def _overlap_slice(length: int, shift: int) -> tuple[slice, slice]:
    first = max(0, -shift)
    last = max(first, length - max(0, shift))
    return slice(first, last), slice(first + shift, last + shift)

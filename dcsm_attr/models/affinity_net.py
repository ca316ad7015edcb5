r"""How many images of a batch are computed together.

Which positions of a map are neighbors, and how pairs of them are laid out.

A pair is named by its source ``(y, x)`` and an offset ``(dy, dx)`` to its other end. Offsets are one half of a disc, so
that every pair of neighbors occurs once. Values of pairs are ``(N, P, h, w)``: P in the order of the offsets, the
source at ``(y, x)``.

Semantic affinities between neighboring positions, from their features.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018: :math:`W_{ij} = \exp(-\|f_i - f_j\|_1)`.

AffinityNet: features whose distance says whether two positions show the same.
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
    "neighbor_offsets",
    "overlap",
    "pair_mask",
    "together",
]


def together(batch: Tensor) -> Iterator[slice]:
    """One image after the other on the CPU, whose caches hold one; all of them on an accelerator.

    Args:
        batch: ``(N, ...)``, not empty.
    """
    chunk_size = 1 if batch.device.type == "cpu" else len(batch)
    return (slice(start, start + chunk_size) for start in range(0, len(batch), chunk_size))


#: What happens to pairs near the border of the map, see :func:`pair_mask`.
Border = Literal["full", "released"]

#: ``(dy, dx)`` of each.
Offsets = Sequence[tuple[int, int]]


def neighbor_offsets(radius: int = 5) -> tuple[tuple[int, int], ...]:
    """The offsets from a position to its neighbors that come after it, row by row.

    Args:
        radius: in positions; neighbors are strictly nearer. 5 in AffinityNet.

    Returns:
        ``(dy, dx)`` of each, 34 for a radius of 5: to the right in the same row, then everything in the rows below.

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


def overlap(height: int, width: int, offset: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where both ends of a pair are inside the map.

    Args:
        height: h of the map.
        width: w of the map.
        offset: ``(dy, dx)``.

    Returns:
        Rows and columns of the sources, and those of their neighbors, as slices of equal lengths; empty where the
        offset leaves the map.
    """
    (top, bottom), (left, right) = (_inside(*axis) for axis in zip((height, width), offset, strict=True))
    return (top, left), (bottom, right)


def _inside(length: int, shift: int) -> tuple[slice, slice]:
    first = max(0, -shift)
    last = max(first, length - max(0, shift))
    return slice(first, last), slice(first + shift, last + shift)


def pair_mask(
    height: int, width: int, offsets: Offsets, border: Border = "full", *, device: torch.device | str | None = None
) -> Tensor:
    """Which sources have a neighbor.

    The released code of AffinityNet takes as sources only positions from which every offset stays inside the map: pairs
    within the last rows, and within the first and last columns, are missing. Positions in the corners have no
    neighbors at all, and a random walk never leaves them.

    Args:
        height: h of the map.
        width: w of the map.
        offsets: P pairs ``(dy, dx)``.
        border: ``"full"``: every pair that is inside the map. ``"released"``: those of the released code, of 56 x 56
            positions 52 x 48 sources with a radius of 5.
        device: of the result.

    Returns:
        ``(P, h, w)`` bool.

    Raises:
        ValueError: if there is no such border.
    """
    if border not in get_args(Border):
        raise ValueError(f"border must be one of {', '.join(map(repr, get_args(Border)))}; got {border!r}.")
    mask = torch.zeros(len(offsets), height, width, dtype=torch.bool, device=device)
    for pairs, offset in zip(mask, offsets, strict=True):
        pairs[overlap(height, width, offset)[0]] = True
    return mask & mask.all(dim=0) if border == "released" else mask


Norm = Literal["sum", "mean"]


def affinities(features: Tensor, offsets: Offsets, norm: Norm = "sum") -> Tensor:
    r"""The affinity of each position with each of its neighbors: :math:`\exp(-\|f_i - f_j\|_1)`.

    Differentiable, once. The backward pass takes the differences anew instead of keeping them: beside the features it
    needs no more than the differences along one offset.

    Args:
        features: ``(N, D, h, w)`` floating point. Of half precision, differences are summed in float32, as the result
            is: near one, which is where neighbors of one object are, half precision tells nothing apart.
        offsets: P pairs ``(dy, dx)``, see :func:`dcsm_attr.models.affinity_net.neighbor_offsets`.
        norm: ``"sum"`` over the channels as the paper prints it, ``"mean"`` as in its released code, which with 448
            channels is another temperature.

    Returns:
        ``(N, P, h, w)`` in [0, 1], the source at ``(y, x)``; zero where the neighbor is outside of the map.

    Raises:
        TypeError: if the features are not floating point.
        ValueError: if they are not ``(N, D, h, w)``, or there is no such norm.
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
        for images in together(features):
            for pair, (rows, columns), (target_rows, target_columns) in _pair_slices(features, offsets):
                here, ahead = features[images, :, rows, columns], features[images, :, target_rows, target_columns]
                distances = (here - ahead).abs_().sum(dim=1)
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
        for images in together(features):
            for pair, (rows, columns), (target_rows, target_columns) in _pair_slices(features, ctx.offsets):
                here, ahead = features[images, :, rows, columns], features[images, :, target_rows, target_columns]
                signs = (here - ahead).sign_()
                weights = grad_distances[images, :, pair, rows, columns]
                grad_features[images, :, rows, columns].addcmul_(signs, weights)
                grad_features[images, :, target_rows, target_columns].addcmul_(signs, weights, value=-1)
        return grad_features, None, None


def _pair_slices(features: Tensor, offsets: Offsets) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """The number of each offset, where its sources are, and where their neighbors."""
    height, width = features.shape[2:]
    return ((pair, *overlap(height, width, offset)) for pair, offset in enumerate(offsets))


#: Pixels of the image to one position of the features.
GRID_STRIDE = 8

# Channels that the maps of the last three stages are reduced to, and the groups of their norms, as released.
_WIDTHS = (64, 128, 256)
_GROUPS = (8, 16, 32)
# Of the last layer's initial weights, as released.
_GAIN = 4.0


class AffinityHead(nn.Module):
    """Maps of several stages to one map of features."""

    def __init__(self, channels: Sequence[int], norm: Norm) -> None:
        """Draw the layers from PyTorch's global generator.

        Args:
            channels: of the maps, at most three.
            norm: of the distance that the features are made for. With ``"sum"`` they begin smaller by their number, so
                that affinities begin as they do with ``"mean"``: neither all 0 nor all 1.
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
        """Reduce, resize, concatenate, mix.

        Args:
            maps: ``(N, C_i, h_i, w_i)``.
            size: ``(h, w)`` of the result.

        Returns:
            ``(N, D, h, w)``, above -1.
        """
        reduced = [_resized(reduction(one), size) for reduction, one in zip(self.reductions, maps, strict=True)]
        return F.elu(self.mixing(torch.cat(reduced, dim=1)))


class AffinityNet(nn.Module):
    r"""Features :math:`f` of positions, with affinities :math:`\exp(-|f_i - f_j|_1)` between them.

    Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision", CVPR 2018. The released network
    takes conv4, conv5 and the fully connected layer of a dilated VGG, all at stride 8. Here the backbone stays as it
    is: the maps of its last three resolutions are reduced by 1 x 1 convolutions and then resized to stride 8; averaged
    where they are finer, bilinearly where they are coarser. Each reduction has a group norm, which the release has for
    VGG alone: the maps of other networks differ in size by orders of magnitude.

    Attributes:
        backbone: images to the maps of the stages.
        head: these to features.
    """

    def __init__(self, backbone: nn.Module, norm: Norm = "mean") -> None:
        """Build the network on a backbone.

        Args:
            backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`, or any that ``torch.fx`` can
                trace; copied with its weights. The head is drawn from PyTorch's global generator.
            norm: see :class:`AffinityHead`.

        Raises:
            ValueError: if the backbone has no convolutions.
        """
        super().__init__()
        stages = find_stages(backbone)[-len(_WIDTHS) :]
        self.backbone = multi_stage_backbone(copy_backbone(backbone), stages)
        self.head = AffinityHead([stage.channels for stage in stages], norm)

    def forward(self, images: Tensor) -> Tensor:
        """Features of positions at stride 8.

        Args:
            images: ``(N, 3, H, W)``.

        Returns:
            ``(N, D, ceil(H / 8), ceil(W / 8))``, D = 448 for a backbone of three stages or more.
        """
        size = (-(-images.shape[2] // GRID_STRIDE), -(-images.shape[3] // GRID_STRIDE))
        features: Tensor = self.head(list(self.backbone(images).values()), size)
        return features


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2] > size[0] or maps.shape[3] > size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear")

r"""Semantic affinities between neighbouring positions, from their features.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018: :math:`W_{ij} = \exp(-\|f_i - f_j\|_1)`.
"""

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dcsm_attr.affinity.batches import together
from dcsm_attr.affinity.neighbours import Offsets, overlap

__all__ = ["Norm", "affinities"]

Norm = Literal["sum", "mean"]


def affinities(features: Tensor, offsets: Offsets, norm: Norm = "sum") -> Tensor:
    r"""The affinity of each position with each of its neighbours: :math:`\exp(-\|f_i - f_j\|_1)`.

    Differentiable, once. The backward pass takes the differences anew instead of keeping them: beside the features it
    needs no more than the differences along one offset.

    Args:
        features: ``(N, D, h, w)`` floating point. Of half precision, differences are summed in float32, as the result
            is: near one, which is where neighbours of one object are, half precision tells nothing apart.
        offsets: P pairs ``(dy, dx)``, see :func:`dcsm_attr.affinity.neighbours.neighbour_offsets`.
        norm: ``"sum"`` over the channels as the paper prints it, ``"mean"`` as in its released code, which with 448
            channels is another temperature.

    Returns:
        ``(N, P, h, w)`` in [0, 1], the source at ``(y, x)``; zero where the neighbour is outside of the map.

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
            for pair, (rows, columns), (rows_ahead, columns_ahead) in _ends(features, offsets):
                here, ahead = features[images, :, rows, columns], features[images, :, rows_ahead, columns_ahead]
                distances = (here - ahead).abs_().sum(dim=1)
                result[images, pair, rows, columns] = distances.mul_(-scale).exp_()
        ctx.offsets, ctx.scale = offsets, scale
        ctx.save_for_backward(features, result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        features, result = ctx.saved_tensors
        of_distances = (gradient * result).mul_(-ctx.scale).unsqueeze_(1)
        of_features = torch.zeros_like(features)
        for images in together(features):
            for pair, (rows, columns), (rows_ahead, columns_ahead) in _ends(features, ctx.offsets):
                here, ahead = features[images, :, rows, columns], features[images, :, rows_ahead, columns_ahead]
                signs = (here - ahead).sign_()
                weights = of_distances[images, :, pair, rows, columns]
                of_features[images, :, rows, columns].addcmul_(signs, weights)
                of_features[images, :, rows_ahead, columns_ahead].addcmul_(signs, weights, value=-1)
        return of_features, None, None


def _ends(features: Tensor, offsets: Offsets) -> Iterator[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
    """The number of each offset, where its sources are, and where their neighbours."""
    height, width = features.shape[2:]
    return ((pair, *overlap(height, width, offset)) for pair, offset in enumerate(offsets))

"""From score maps to one logit a class: global pooling over positions."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["POOLINGS", "PoolingName", "pooled_scores"]

PoolingName = Literal["max", "average", "logsumexp"]
POOLINGS: tuple[PoolingName, ...] = get_args(PoolingName)

# Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks", CVPR 2015.
_SHARPNESS = 5.0


def pooled_scores(score_maps: Tensor, pooling: PoolingName = "max") -> Tensor:
    r"""Pool each score map over its positions.

    Args:
        score_maps: ``(N, C, h, w)`` logits.
        pooling: ``"max"``: the global maximum, as in DCSM (section 3.2); its gradient reaches one position.
            ``"average"``: all alike. ``"logsumexp"``: between the two,
            :math:`\frac{1}{r} \log \frac{1}{hw} \sum_{x,y} \exp(r s_{x,y})` with r = 5.

    Returns:
        ``(N, C)``.

    Raises:
        ValueError: if the pooling is not known, or there are no maps.
    """
    if score_maps.ndim != 4 or 0 in score_maps.shape:
        raise ValueError(f"score maps must have shape (N, C, h, w), none of them 0; got {tuple(score_maps.shape)}.")
    if pooling == "max":
        return score_maps.amax(dim=(2, 3))
    if pooling == "average":
        return score_maps.mean(dim=(2, 3))
    if pooling == "logsumexp":
        positions = score_maps.shape[2] * score_maps.shape[3]
        summed = torch.logsumexp(_SHARPNESS * score_maps, dim=(2, 3))
        return (summed - math.log(positions)) / _SHARPNESS
    raise ValueError(f"pooling must be 'max', 'average' or 'logsumexp', got {pooling!r}.")

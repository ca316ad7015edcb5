r"""Grad-CAM of a head that is one stochastic selection, many draws at once and without a backward pass.

The score of a class is the mean of its map, which is linear in the features: with :math:`w^c_d` the weights of cell d
and :math:`m_d(u)` whether pixel u is kept by the window of which it is cell d,

.. math:: \frac{\partial S^c}{\partial x(u)} = \frac{1}{hw} \sum_d m_d(u) \, w^c_d .

What a pixel adds to each window, :math:`w^c_d \cdot x(u)`, is the same in every draw. So it is computed once, and a
draw costs one sum over the cells.
"""

import torch
from torch import Tensor

from dcsm_attr.stochastic.masks import seen_from_pixels

__all__ = ["elementwise_maps", "pooled_maps"]


def elementwise_maps(products: Tensor, masks: Tensor) -> Tensor:
    r"""Maps :math:`ReLU(\sum_k x_k \, \partial S^c / \partial x_k)` of each draw.

    Args:
        products: ``(K, s * s, h, w)``, of :func:`~dcsm_attr.stochastic.shifts.cell_products`.
        masks: ``(M, s * s, h, w)`` bool, one a draw.

    Returns:
        ``(M, K, h, w)``, not negative.
    """
    classes, _, height, width = products.shape
    # One small matrix product a pixel: (h * w, M, s * s) with (h * w, s * s, K).
    seen = seen_from_pixels(masks).flatten(2).permute(2, 0, 1).to(products.dtype)
    summed = torch.bmm(seen, products.flatten(2).permute(2, 1, 0))
    maps = summed.permute(1, 2, 0).reshape(len(masks), classes, height, width)
    return maps.relu_().div_(height * width)


def pooled_maps(features: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    r"""Maps :math:`ReLU(\sum_k x_k \, mean_u \, \partial S^c / \partial x_k(u))` of each draw.

    Args:
        features: ``(D, h, w)``.
        weight: ``(K, D, s, s)`` of the classes that are asked for.
        masks: ``(M, s * s, h, w)`` bool, one a draw.

    Returns:
        ``(M, K, h, w)``, not negative.
    """
    positions = features[0].numel()
    shares = seen_from_pixels(masks).flatten(2).sum(dim=2).to(weight.dtype) / positions**2
    pooled = torch.einsum("ms,kds->mkd", shares, weight.flatten(2))
    return torch.einsum("mkd,dhw->mkhw", pooled, features).relu_()

"""The three published forms of DCSM: the paper's, and those of its two released codes.

Each step of the method at which the three differ is a field of :class:`Variant`; the steps themselves are functions of
:mod:`dcsm_attr.maps`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dcsm_attr import maps as eq

__all__ = ["VARIANTS", "Variant", "VariantName"]

VariantName = Literal["paper", "matconvnet", "caffe"]


@dataclass(frozen=True)
class Variant:
    """One published form of the method.

    Attributes:
        scales: ratios to the input size.
        min_candidates: candidates of each image at least.
        reduction: a layer's gradient ``(N, C, h, w)`` to a map ``(N, 1, h, w)``.
        image_interpolation: how images are resized to the scales.
        upsampling: maps ``(N, K, h, w)`` to image size.
        differences: ``(maps, alpha, valid)`` to distinct maps of the same shape, for one layer at one scale.
        subtract_at_image_size: whether maps are upsampled before the subtraction, or after.
        pool_scores: whether classes are detected at any scale and fill up by their summed scores, or both at the scale
            nearest to 1.
        scale_gate: whether a detected class counts only at those scales at which it is above the threshold itself.
        detects_by_rank: whether all candidates count as detected, whatever their score.
        final: applied to the average over layers and scales.
    """

    scales: tuple[float, ...]
    min_candidates: int
    reduction: Callable[[Tensor], Tensor]
    image_interpolation: Literal["bilinear", "bicubic"]
    upsampling: Callable[[Tensor, tuple[int, int]], Tensor]
    differences: Callable[[Tensor, float, Tensor | None], Tensor]
    subtract_at_image_size: bool
    pool_scores: bool
    scale_gate: bool
    detects_by_rank: bool
    final: Callable[[Tensor], Tensor]

    def layer_contribution(
        self, maps: Tensor, valid: Tensor | None, size: tuple[int, int], alpha: float, subtracted: Tensor | bool
    ) -> Tensor:
        """What one layer at one scale adds to the average.

        Args:
            maps: ``(N, K, h, w)`` raw maps of the layer.
            valid: ``(N, K)`` bool, False where a slot holds no class. None: every slot holds one.
            size: ``(H, W)``.
            alpha: steepness of tanh.
            subtracted: ``(N,)`` bool: images whose maps are subtracted from each other; the others stay raw. One bool
                where all images agree.

        Returns:
            ``(N, K, H, W)``.
        """
        if subtracted is False:
            return self.raw_contribution(maps, size, alpha)
        distinct = self._at_image_size(maps, size, lambda m: self.differences(m, alpha, valid))
        if subtracted is True:
            return distinct
        return torch.where(subtracted[:, None, None, None], distinct, self.raw_contribution(maps, size, alpha))

    def raw_contribution(self, maps: Tensor, size: tuple[int, int], alpha: float) -> Tensor:
        """The same without subtraction."""
        return self._at_image_size(maps, size, lambda m: eq.squash(m, alpha))

    def _at_image_size(self, maps: Tensor, size: tuple[int, int], normalise: Callable[[Tensor], Tensor]) -> Tensor:
        if self.subtract_at_image_size:
            return normalise(self.upsampling(maps, size))
        return self.upsampling(normalise(maps), size)


def _paper_differences(maps: Tensor, alpha: float, valid: Tensor | None) -> Tensor:
    return eq.squash(eq.subtract(maps, valid), alpha)


def _unchanged(maps: Tensor) -> Tensor:
    return maps


def _caffe_final(maps: Tensor) -> Tensor:
    return eq.divide_by_maximum(maps).clamp_(min=0)


VARIANTS: dict[VariantName, Variant] = {
    "paper": Variant(
        scales=(0.8, 1.0, 1.2),
        min_candidates=3,
        reduction=eq.absolute_channel_maximum,
        image_interpolation="bilinear",
        upsampling=eq.upsample,
        differences=_paper_differences,
        subtract_at_image_size=True,
        pool_scores=False,
        scale_gate=False,
        detects_by_rank=False,
        final=_unchanged,
    ),
    "matconvnet": Variant(
        scales=(0.8, 1.0, 1.2),
        min_candidates=4,
        reduction=eq.absolute_channel_maximum,
        image_interpolation="bicubic",
        upsampling=eq.upsample,
        differences=eq.matconvnet_differences,
        subtract_at_image_size=True,
        pool_scores=True,
        scale_gate=True,
        detects_by_rank=False,
        final=_unchanged,
    ),
    "caffe": Variant(
        scales=(1.0,),
        min_candidates=3,
        reduction=eq.signed_channel_maximum,
        image_interpolation="bilinear",
        upsampling=eq.upsample_from_corner,
        differences=eq.caffe_differences,
        subtract_at_image_size=False,
        pool_scores=False,
        scale_gate=False,
        detects_by_rank=True,
        final=_caffe_final,
    ),
}

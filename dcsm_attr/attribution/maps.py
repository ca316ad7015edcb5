r"""Eq. 3, 4, 5 and 7 of DCSM as pure functions on tensors: the steps that follow the gradients, without a model.

Notation: ``N`` images, ``K`` candidate classes, ``h x w`` positions of a layer, ``H x W`` pixels of the image. A *raw*
map is :math:`M^c` of Eq. 3, a *distinct* map is :math:`\tilde M^c` of Eq. 4. Functions preserve dtype and device,
return new tensors, and never read a value on the host, so that nothing waits for an accelerator.

Source: W. Shimoda and K. Yanai, "Distinct Class-specific Saliency Maps for Weakly Supervised Semantic Segmentation",
ECCV 2016 (the *paper*), and its two released codes, one for MatConvNet and one for Caffe (the *releases*).

The steps in which these three differ are the fields of :class:`Variant`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MATCONVNET_FLOOR",
    "VARIANTS",
    "Variant",
    "VariantName",
    "absolute_channel_maximum",
    "background",
    "caffe_contrast",
    "divide_by_maximum",
    "label_probabilities",
    "label_scores",
    "matconvnet_contrast",
    "signed_channel_maximum",
    "squash",
    "subtract",
    "upsample",
    "upsample_from_corner",
]


#: Value of the MatConvNet release where the difference of two classes is not positive; its logarithm is finite.
MATCONVNET_FLOOR = 1e-20

# Number of classes from which the sorted form of Eq. 4 is faster than the pairwise one (benchmarks/design_choices.py,
# two CPU cores, 500 x 500: 96 classes 1.15 of the pairwise time, 128 classes 0.92). The paper compares at most ten.
_SORT_FROM = 128


def absolute_channel_maximum(gradient: Tensor) -> Tensor:
    r"""Reduce a layer's gradient to one map: :math:`\max_k |v_k|`, the channel maximum of Eq. 3.

    Differs from the paper, as do both releases: Eq. 3 computes the maximum after upsampling. Interpolation does not
    commute with a maximum; reducing first gives an upper bound of the paper's map, equal to it at the positions of the
    layer, and needs 1/C of the memory.

    Args:
        gradient: ``(N, C, h, w)``.

    Returns:
        ``(N, 1, h, w)``, at least 0.
    """
    # Equals gradient.abs().amax(dim=1), without a second tensor of that size.
    return torch.maximum(gradient.amax(dim=1, keepdim=True), gradient.amin(dim=1, keepdim=True).neg_())


def signed_channel_maximum(gradient: Tensor) -> Tensor:
    r"""Reduce a layer's gradient to one map: :math:`\max_k v_k`, without the absolute value (the Caffe release).

    The CUDA kernel of the release is correct for square maps only, because it uses the height for both axes; this
    function is correct for any shape.

    Args:
        gradient: ``(N, C, h, w)``.

    Returns:
        ``(N, 1, h, w)``, positive or negative.
    """
    return gradient.amax(dim=1, keepdim=True)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly with half-pixel centers, as MATLAB's ``imresize`` and the paper do.

    Args:
        maps: ``(N, K, h, w)``.
        size: ``(H, W)`` of the result.

    Returns:
        ``(N, K, H, W)``, within the range of the input.
    """
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def upsample_from_corner(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly from the top left corner, as the ``Bl`` layer of the Caffe release does.

    Target position ``y`` reads source position ``y * h / H``, without the half-pixel shift of :func:`upsample`; beyond
    the last row or column the edge is repeated. The release handles square maps only; this handles any shape.

    Args:
        maps: ``(N, K, h, w)``.
        size: ``(H, W)`` of the result.

    Returns:
        ``(N, K, H, W)``, within the range of the input.
    """
    rows = _interpolate_axis_from_corner(maps, size[0], dim=-2)
    return _interpolate_axis_from_corner(rows, size[1], dim=-1)


def _interpolate_axis_from_corner(maps: Tensor, length: int, dim: int) -> Tensor:
    source_length = maps.shape[dim]
    # Integer arithmetic: floor(y * h / H) must not depend on rounding.
    scaled = torch.arange(length, device=maps.device) * source_length
    lower = torch.div(scaled, length, rounding_mode="floor")
    upper = (lower + 1).clamp(max=source_length - 1)
    weight = (scaled - lower * length).to(maps.dtype) / length
    if dim == -2:
        weight = weight[:, None]
    return torch.lerp(maps.index_select(dim, lower), maps.index_select(dim, upper), weight)


def subtract(maps: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""Subtract the maps of all other candidates from each map: Eq. 4.

    .. math:: \tilde M^c = \sum_{c' \ne c} \max(M^c - M^{c'}, 0)

    Exactly zero where no other candidate's map is smaller, and zero everywhere for a single candidate.

    Args:
        maps: ``(N, K, H, W)`` raw maps.
        valid: ``(N, K)`` bool, False for unused slots. None: all slots are used.

    Returns:
        ``(N, K, H, W)``, at least 0, zero in unused slots.
    """
    classes = maps.shape[1]
    if valid is not None:
        # An infinite map is never smaller: unused slots contribute nothing to the other maps.
        maps = maps.masked_fill(~valid[:, :, None, None], torch.inf)
    distinct = _contrast_sorted(maps) if classes >= _SORT_FROM else _contrast_pairs(maps)
    return distinct if valid is None else distinct.masked_fill(~valid[:, :, None, None], 0.0)


def _contrast_pairs(maps: Tensor) -> Tensor:
    distinct = torch.zeros_like(maps)
    for i in range(maps.shape[1]):
        for j in range(i + 1, maps.shape[1]):
            difference = maps[:, i] - maps[:, j]
            distinct[:, i] += difference.clamp(min=0)
            distinct[:, j] += difference.neg_().clamp_(min=0)
    return distinct


def _contrast_sorted(maps: Tensor) -> Tensor:
    r"""Eq. 4 in :math:`O(K \log K)`: in ascending order, rank ``r`` adds ``r`` times its gap to rank ``r - 1``.

    Sums of gaps rather than ``rank * value - prefix sum``: no cancellation, and equal maps give exactly zero.
    """
    ordered, order = maps.sort(dim=1)
    ranks = torch.arange(1, maps.shape[1], device=maps.device, dtype=maps.dtype)[None, :, None, None]
    gaps = ordered.diff(dim=1).mul_(ranks)
    sums = F.pad(gaps, (0, 0, 0, 0, 1, 0)).cumsum_(dim=1)
    return torch.empty_like(maps).scatter_(1, order, sums)


def divide_by_maximum(maps: Tensor) -> Tensor:
    """Divide each map by its maximum over the image; a map without positive values becomes zero.

    Eq. 5 omits this step, but cannot be used without it: gradients are about 1e-3 to 1e-6, where tanh is linear and the
    average is near zero everywhere. Both releases normalize before tanh.

    Args:
        maps: ``(N, K, H, W)``.

    Returns:
        ``(N, K, H, W)``, at most 1.
    """
    maximum = maps.amax(dim=(-2, -1), keepdim=True)
    # Division by a subnormal maximum would overflow; such a map is numerically zero.
    positive = maximum > torch.finfo(maps.dtype).tiny
    return maps / torch.where(positive, maximum, torch.inf)


def squash(maps: Tensor, alpha: float) -> Tensor:
    r"""Apply :math:`\tanh(\alpha M / \max_{x,y} M)`, the normalization of Eq. 5.

    Args:
        maps: ``(N, K, H, W)``.
        alpha: steepness of tanh; the paper uses 3 for distinct maps and 8 for Simonyan's.

    Returns:
        ``(N, K, H, W)`` in ``[-1, tanh(alpha)]``; at least 0 where the maps are.
    """
    return divide_by_maximum(maps).mul_(alpha).tanh_()


def matconvnet_contrast(maps: Tensor, alpha: float, valid: Tensor | None = None) -> Tensor:
    r"""Contrast as the MatConvNet release does: the difference of each pair is normalized, squashed and clamped.

    For each other candidate :math:`c'`: :math:`D = M^c - M^{c'}`, divided by its maximum over the image, then
    :math:`\tanh(\alpha D)`, then 1e-20 where :math:`D \le 0`.

    If the maximum of :math:`D` is negative, the division of the release flips the signs, and the pair adds a map near 1
    everywhere. Such pairs are skipped here, as in the Caffe release.

    Args:
        maps: ``(N, K, H, W)`` raw maps at image size.
        alpha: steepness, 3 in the release.
        valid: ``(N, K)`` bool, False for unused slots.

    Returns:
        ``(N, K, H, W)``: the *mean* over the other candidates, in ``[0, tanh(alpha)]``, not the sum of the
        release, which later divides by the maximum.
    """
    return _pairwise(maps, valid, lambda difference: _squash_matconvnet(difference, alpha))


def _squash_matconvnet(difference: Tensor, alpha: float) -> Tensor:
    maximum = difference.amax(dim=(-2, -1), keepdim=True)
    won = squash(difference, alpha).masked_fill_(difference <= 0, MATCONVNET_FLOOR)
    return torch.where(maximum > 0, won, 0.0)


def caffe_contrast(maps: Tensor, alpha: float, valid: Tensor | None = None) -> Tensor:
    r"""Contrast as the layers ``SubFix``, ``MaxNormalizeFix``, ``TanH``, ``SubStackFix`` of the Caffe release do.

    For each other candidate: :math:`\tanh(\alpha D / \max D)`, zero everywhere if :math:`\max D \le 0`, *negative
    values kept*; the mean over the other candidates; then the same normalization and tanh again, which removes the
    factor between the mean and the sum of the release.

    Args:
        maps: ``(N, K, h, w)`` signed raw maps at the layer's own size.
        alpha: steepness (``prior`` in the release), 3 there.
        valid: ``(N, K)`` bool, False for unused slots.

    Returns:
        ``(N, K, h, w)`` in ``[-1, tanh(alpha)]``.
    """
    return squash(_pairwise(maps, valid, lambda difference: squash(difference, alpha)), alpha)


def _pairwise(maps: Tensor, valid: Tensor | None, transform: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of ``transform(M^c - M^c')`` over the other candidates ``c'``; zero if there are none."""
    if valid is None:
        valid = torch.ones(maps.shape[:2], dtype=torch.bool, device=maps.device)
    total = torch.zeros_like(maps)
    for other in range(maps.shape[1]):
        counts = valid & valid[:, other : other + 1]
        counts[:, other] = False
        total += transform(maps - maps[:, other : other + 1]).mul_(counts[:, :, None, None])
    others = (valid.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return total.div_(others[:, :, None, None])


def background(maps: Tensor, foreground: Tensor, exponent: float = 1.0) -> Tensor:
    r"""Compute the background :math:`M^{BG} = (1 - \max_{c \in target} M^c)^\gamma`; Eq. 7 for :math:`\gamma = 1`.

    The exponent (as in AffinityNet, Ahn and Kwak, CVPR 2018) sets where the foreground begins: at the value :math:`m =
    (1 - m)^\gamma`, which is 0.5 for 1, 0.38 for 2, 0.28 for 4, 0.62 for 0.5.

    Args:
        maps: ``(N, K, H, W)`` in [0, 1].
        foreground: ``(N, K)`` bool: True for classes in the image, False for classes that are only subtracted.
        exponent: :math:`\gamma`, positive; larger gives more foreground.

    Returns:
        ``(N, 1, H, W)`` in [0, 1]; one everywhere for an image without a foreground class.
    """
    rest = 1.0 - maps.masked_fill(~foreground[:, :, None, None], 0.0).amax(dim=1, keepdim=True)
    return rest if exponent == 1.0 else rest**exponent


def label_scores(maps: Tensor, foreground: Tensor, exponent: float = 1.0) -> Tensor:
    """Concatenate the background and the foreground maps.

    Args:
        maps: ``(N, K, H, W)`` in [0, 1].
        foreground: ``(N, K)`` bool, as in :func:`background`.
        exponent: of the background, as in :func:`background`.

    Returns:
        ``(N, 1 + K, H, W)`` in [0, 1]; label 0 is the background, label ``1 + k`` is slot ``k``, zero if the slot is
        not foreground. Their sum is positive everywhere.
    """
    present = maps.masked_fill(~foreground[:, :, None, None], 0.0)
    return torch.cat([background(maps, foreground, exponent), present], dim=1)


def label_probabilities(maps: Tensor, foreground: Tensor, exponent: float = 1.0) -> Tensor:
    """Compute a distribution over labels per pixel, whose negative logarithm is the unary of Eq. 6.

    Differs from the paper, which uses the logarithm of maps that do not sum to one. Dividing by the sum over the labels
    adds the same value to all unaries of a pixel, and so does not change the labeling.

    Args:
        maps: ``(N, K, H, W)`` in [0, 1].
        foreground: ``(N, K)`` bool, as in :func:`background`.
        exponent: of the background, as in :func:`background`.

    Returns:
        ``(N, 1 + K, H, W)``: :func:`label_scores`, summing to one over the labels.
    """
    labels = label_scores(maps, foreground, exponent)
    return labels / labels.sum(dim=1, keepdim=True)


VariantName = Literal["paper", "matconvnet", "caffe"]


@dataclass(frozen=True)
class Variant:
    """A published form of the method.

    Attributes:
        scales: image sizes relative to the input size.
        min_candidates: minimum number of candidates per image.
        reduction: reduces a gradient ``(N, C, h, w)`` to a map ``(N, 1, h, w)``.
        image_interpolation: interpolation of images.
        upsample: resizes maps ``(N, K, h, w)`` to image size.
        contrast: computes distinct maps, after tanh, from ``(maps, alpha, valid)``.
        contrast_at_image_size: whether maps are upsampled before the contrast instead of after it.
        pool_scores: whether classes are detected at any scale and ranked by their summed scores; otherwise only the
            scale nearest to 1 is used.
        scale_gate: whether a scale at which a detected class is not above the threshold contributes zero to its map.
        detect_by_rank: whether all candidates count as detected, regardless of their score.
        finish: applied to the average over layers and scales.
    """

    scales: tuple[float, ...]
    min_candidates: int
    reduction: Callable[[Tensor], Tensor]
    image_interpolation: Literal["bilinear", "bicubic"]
    upsample: Callable[[Tensor, tuple[int, int]], Tensor]
    contrast: Callable[[Tensor, float, Tensor | None], Tensor]
    contrast_at_image_size: bool
    pool_scores: bool
    scale_gate: bool
    detect_by_rank: bool
    finish: Callable[[Tensor], Tensor]

    def distinct_map(
        self, maps: Tensor, size: tuple[int, int], alpha: float, valid: Tensor | None, contrasted: Tensor | bool
    ) -> Tensor:
        """Compute the distinct maps of one layer at one scale, which Eq. 5 averages.

        Args:
            maps: ``(N, K, h, w)`` raw maps of the layer.
            size: ``(H, W)``.
            alpha: steepness of tanh.
            valid: ``(N, K)`` bool, False for unused slots. None: all slots are used.
            contrasted: ``(N,)`` bool: False for images without contrast. A plain bool if it is the same for all images.

        Returns:
            ``(N, K, H, W)``.
        """
        if contrasted is False:
            return self.raw_map(maps, size, alpha)
        if self.contrast_at_image_size:
            distinct = self.contrast(self.upsample(maps, size), alpha, valid)
        else:
            distinct = self.upsample(self.contrast(maps, alpha, valid), size)
        if contrasted is True:
            return distinct
        return torch.where(contrasted[:, None, None, None], distinct, self.raw_map(maps, size, alpha))

    def raw_map(self, maps: Tensor, size: tuple[int, int], alpha: float) -> Tensor:
        """Compute the maps of :meth:`distinct_map` without the contrast."""
        if self.contrast_at_image_size:
            return squash(self.upsample(maps, size), alpha)
        return self.upsample(squash(maps, alpha), size)


def _paper_contrast(maps: Tensor, alpha: float, valid: Tensor | None) -> Tensor:
    return squash(subtract(maps, valid), alpha)


def _identity(maps: Tensor) -> Tensor:
    return maps


def _caffe_postprocess(maps: Tensor) -> Tensor:
    return divide_by_maximum(maps).clamp_(min=0)


VARIANTS: dict[VariantName, Variant] = {
    "paper": Variant(
        scales=(0.8, 1.0, 1.2),
        min_candidates=3,
        reduction=absolute_channel_maximum,
        image_interpolation="bilinear",
        upsample=upsample,
        contrast=_paper_contrast,
        contrast_at_image_size=True,
        pool_scores=False,
        scale_gate=False,
        detect_by_rank=False,
        finish=_identity,
    ),
    "matconvnet": Variant(
        scales=(0.8, 1.0, 1.2),
        min_candidates=4,
        reduction=absolute_channel_maximum,
        image_interpolation="bicubic",
        upsample=upsample,
        contrast=matconvnet_contrast,
        contrast_at_image_size=True,
        pool_scores=True,
        scale_gate=True,
        detect_by_rank=False,
        finish=_identity,
    ),
    "caffe": Variant(
        scales=(1.0,),
        min_candidates=3,
        reduction=signed_channel_maximum,
        image_interpolation="bilinear",
        upsample=upsample_from_corner,
        contrast=caffe_contrast,
        contrast_at_image_size=False,
        pool_scores=False,
        scale_gate=False,
        detect_by_rank=True,
        finish=_caffe_postprocess,
    ),
}

"""Deep seeded region growing: seeds spread to connected pixels whose label the network is confident of.

Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018 (*DSRG*), and
its released code. The network's scores are refined by the CRF of Kolesnikov and Lampert, "Seed, Expand and Constrain",
ECCV 2016 (*SEC*), before seeds grow; the refined scores are also the target of the boundary loss.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from dcsm_attr.crf import DenseCRF

__all__ = [
    "TEST_CRF",
    "TRAINING_CRF",
    "connected_components",
    "crf_for_canvas",
    "grow_seeds",
    "refine_scores",
    "threshold_labels",
]


def grow_seeds(
    seeds: Tensor,
    probabilities: Tensor,
    present: Tensor,
    foreground_threshold: float = 0.85,
    background_threshold: float = 0.99,
) -> Tensor:
    """Grow the seeds of each image.

    The region of a label consists of its seeds and of the pixels that :func:`threshold_labels` gives that label; a
    confident pixel belongs to the region of the network's label, also where it is a seed of another one. Each
    8-connected component of a region that holds a seed of its label becomes seeds, except the pixels with exactly one
    seed, of another label. This is the fixed point of adding neighbors one by one.

    Seeds are never removed, even where the network contradicts them. A pixel with seeds of several labels that is not
    confident belongs to the regions of all of them, which is our choice. The released code grows the original seeds in
    each training step, not the result of the step before.

    Args:
        seeds: ``(N, L, h, w)`` bool, label 0 is the background.
        probabilities: ``(N, L, h, w)``, in DSRG refined by a CRF.
        present: ``(N, L - 1)`` bool, the classes in each image; the seeds of others do not grow.
        foreground_threshold: probability above which a class is confident.
        background_threshold: probability above which the background is confident.

    Returns:
        ``(N, L, h, w)`` bool.

    Raises:
        TypeError: if ``seeds`` or ``present`` are not bool.
        ValueError: if shapes do not agree.
    """
    _check_inputs(seeds, probabilities, present)
    labels = threshold_labels(probabilities, present, foreground_threshold, background_threshold)
    label_numbers = torch.arange(seeds.shape[1], device=seeds.device)[:, None, None]
    regions = torch.where(labels[:, None] >= 0, labels[:, None] == label_numbers, seeds)
    grows = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
    regions, own_seeds = regions[grows], seeds[grows]
    components = connected_components(regions)
    has_seed = torch.zeros(components.numel() + 1, dtype=torch.bool, device=seeds.device)
    has_seed[components[own_seeds]] = True
    has_seed[0] = False
    # A pixel with one seed is excluded also where that seed is of the label itself: it is in the result already.
    single_seed = (seeds.sum(dim=1, keepdim=True) == 1).expand_as(seeds)[grows]
    grown = seeds.clone()
    grown[grows] |= has_seed[components] & ~single_seed
    return grown


def _check_inputs(seeds: Tensor, probabilities: Tensor, present: Tensor) -> None:
    if seeds.ndim != 4 or seeds.shape != probabilities.shape:
        raise ValueError(
            "seeds and probabilities must have the same shape (N, L, h, w); got "
            f"{tuple(seeds.shape)} and {tuple(probabilities.shape)}."
        )
    if present.shape != (seeds.shape[0], seeds.shape[1] - 1):
        raise ValueError(
            f"present must have shape (N, L - 1) = {(seeds.shape[0], seeds.shape[1] - 1)}, one for each label but the "
            f"background; got {tuple(present.shape)}."
        )
    for name, value in (("seeds", seeds), ("present", present)):
        if value.dtype != torch.bool:
            raise TypeError(f"{name} must be bool, got {value.dtype}.")


def threshold_labels(
    probabilities: Tensor, present: Tensor, foreground_threshold: float = 0.85, background_threshold: float = 0.99
) -> Tensor:
    """Label the pixels that the network is confident of, with labels that are in the image.

    Args:
        probabilities: ``(N, L, h, w)``; label 0 is the background, which is in every image.
        present: ``(N, L - 1)`` bool, the classes in each image.
        foreground_threshold: the probability of the best label must be above it, if that is a class.
        background_threshold: the same for the background.

    Returns:
        ``(N, h, w)`` int64; -1 where the network is not confident.
    """
    absent = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)
    highest, labels = probabilities.masked_fill(absent[:, :, None, None], -torch.inf).max(dim=1)
    thresholds = torch.where(labels == 0, background_threshold, foreground_threshold)
    return labels.masked_fill(highest <= thresholds, -1)


def connected_components(masks: Tensor) -> Tensor:
    """Number the 8-connected components of each mask, by SciPy, on the CPU.

    Args:
        masks: ``(B, h, w)`` bool.

    Returns:
        ``(B, h, w)`` int64 on the device of the masks: 0 outside the masks, and from 1 on a number for each component.
        No number occurs in two masks.
    """
    # Connected within a mask, never from one mask to the next.
    structure = np.zeros((3, 3, 3), dtype=bool)
    structure[1] = True
    numbers, _ = ndimage.label(masks.cpu().numpy(), structure, output=np.int64)
    return torch.from_numpy(numbers).to(masks.device)


#: SEC's CRF for images.
TEST_CRF = DenseCRF(
    bilateral_weight=10.0,
    bilateral_xy=80.0,
    bilateral_rgb=13.0,
    gaussian_weight=3.0,
    gaussian_xy=3.0,
    iterations=10,
)

#: The same for score maps of 41 x 41, which in SEC have a twelfth of the image's resolution.
TRAINING_CRF = replace(TEST_CRF, bilateral_xy=80 / 12, gaussian_xy=3 / 12)

# Longest side of VOC's images, in whose pixels the published deviations are given.
_PUBLISHED_SIDE = 500

_FLOOR = 1e-4


def crf_for_canvas(side: int) -> DenseCRF:
    """Scale the deviations of :data:`TEST_CRF` to a canvas, so that they cover the same part of an image.

    Args:
        side: of the canvas in pixels, which is the longest side of each image on it. At 500, the result is
            :data:`TEST_CRF`.

    Raises:
        ValueError: if it is not positive.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}.")
    ratio = side / _PUBLISHED_SIDE
    return replace(TEST_CRF, bilateral_xy=ratio * TEST_CRF.bilateral_xy, gaussian_xy=ratio * TEST_CRF.gaussian_xy)


def refine_scores(scores: Tensor, images: Tensor, crf: DenseCRF = TRAINING_CRF) -> Tensor:
    """Refine the scores of a network by a CRF on the images, without a gradient.

    Differs from SEC: the CRF clamps probabilities at 1e-5, as :class:`~dcsm_attr.crf.DenseCRF` always does.

    Args:
        scores: ``(N, L, h, w)`` logits, as in SEC. The released code of DSRG passes probabilities, which gives weaker
            unaries.
        images: ``(N, 3, H, W)`` uint8, not normalized; they are resized to the scores bilinearly with aligned corners,
            as in SEC.
        crf: with deviations in pixels of the scores.

    Returns:
        ``(N, L, h, w)`` float32 probabilities, clamped at 1e-4 so that their logarithm is finite, and summing to one
        over the labels.
    """
    with torch.no_grad():
        resized = F.interpolate(images.float(), scores.shape[2:], mode="bilinear", align_corners=True)
        probabilities = crf(scores.float().softmax(dim=1), resized.round_().to(torch.uint8))
        clamped = probabilities.clamp_(min=_FLOOR)
        return clamped / clamped.sum(dim=1, keepdim=True)

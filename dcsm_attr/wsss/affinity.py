r"""Labels and loss of AffinityNet: which pairs of neighbors have the same class.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018 (the *paper*) and its released code.

1. :func:`confident_labels` compares two backgrounds :math:`(1 - \max_c M_c)^\alpha` with each other: pixels that are
   foreground with a large background, or background with a small one, are labeled; the others are unknown.
2. :func:`affinity_labels` gives the pairs of neighbors of which both ends are labeled.
3. :func:`affinity_loss` is the cross entropy of their affinities.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcsm_attr.attribution.maps import label_probabilities
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.models.affinity_net import Offsets, overlap_slices

__all__ = [
    "EXPONENTS",
    "RELEASED_CRF",
    "RELEASED_EXPONENTS",
    "AffinityLabels",
    "Exponents",
    "affinity_labels",
    "affinity_loss",
    "confident_labels",
    "method_exponents",
]


@dataclass(frozen=True)
class Exponents:
    r"""Exponents of the background :math:`(1 - \max_c M_c)^\alpha` for the maps of one method.

    Maps of different methods rise to their maximum differently, so that each method needs its own exponents.

    Attributes:
        low: for labels with a large background, in which foreground is confident.
        high: for labels with a small background, in which background is confident.
        walk: for the background that takes part in the random walk.
    """

    low: float
    high: float
    walk: float


#: Exponents of the release, for CAM. (The paper's submission has 24 instead of 32.)
RELEASED_EXPONENTS = Exponents(4.0, 32.0, 16.0)

#: By the name of the method. Those of DCSM, with the preset "tuned", and of its product with CAM were chosen on 64
#: images of VOC's training set, so that the number of known pixels and their accuracy are about as with CAM.
EXPONENTS: Mapping[str, Exponents] = {
    "cam": RELEASED_EXPONENTS,
    "dcsm": Exponents(0.2, 0.8, 0.25),
    "fusion": Exponents(8.0, 64.0, 32.0),
}


def method_exponents(method: str) -> Exponents:
    """Return the exponents of a method by its name.

    Raises:
        ValueError: if none are known for it.
    """
    if method not in EXPONENTS:
        raise ValueError(
            f"no exponents of the background are known for the maps of {method}: give them all, or take one of "
            f"{', '.join(EXPONENTS)}."
        )
    return EXPONENTS[method]


#: CRF of the release.
RELEASED_CRF = DenseCRF(bilateral_weight=10, bilateral_xy=80, bilateral_rgb=13, gaussian_weight=3)


def confident_labels(
    maps: Tensor,
    classes: Tensor,
    image: Tensor,
    *,
    low: float = RELEASED_EXPONENTS.low,
    high: float = RELEASED_EXPONENTS.high,
    crf: DenseCRF | None = RELEASED_CRF,
) -> Tensor:
    r"""Label the pixels of one image on which two backgrounds agree.

    The background is :math:`(1 - \max_c M_c)^\alpha` (section 3.2; the exponents are those of the release). A pixel is
    foreground if it is with the low exponent, background if it is with the high exponent, else unknown. The CRF refines
    both labelings, on one lattice.

    Args:
        maps: ``(K, H, W)`` in [0, 1] of the classes in the image.
        classes: ``(K,)``, the index of each class.
        image: ``(3, H, W)`` uint8.
        low: exponent for the foreground.
        high: exponent for the background, larger.
        crf: refines the labelings. None: no refinement.

    Returns:
        ``(H, W)`` uint8 on the device of the maps: 0 background, ``c + 1`` for class ``c``, 255 unknown.

    Raises:
        ValueError: if the exponents are not ascending, or a class index does not fit into eight bits.
    """
    if not 0 < low < high:
        raise ValueError(f"the exponents must be positive and ascending, got low={low}, high={high}.")
    if len(classes) and int(classes.max()) + 1 >= VOID:
        raise ValueError(f"labels have eight bits: classes must be below {VOID - 1}, got {int(classes.max())}.")
    present = torch.ones(1, len(classes), dtype=torch.bool, device=maps.device)
    both = torch.cat([label_probabilities(maps[None], present, exponent) for exponent in (low, high)])
    if crf is not None:
        both = crf.refine_alternatives(both, image.to(maps.device))
    low_labels, high_labels = both.argmax(dim=1)
    numbers = torch.cat([classes.new_full((1,), VOID - 1), classes.to(maps.device)]) + 1
    return torch.where(low_labels > 0, numbers[low_labels], torch.where(high_labels > 0, VOID, 0)).to(torch.uint8)


@dataclass(frozen=True)
class AffinityLabels:
    """Known pairs of neighbors, each ``(N, P, h, w)`` bool; all other pairs are ignored in training.

    Attributes:
        foreground: both ends have the same class.
        background: both ends are background.
        different: the ends have different classes, or one of them is background.
    """

    foreground: Tensor
    background: Tensor
    different: Tensor


def affinity_labels(labels: Tensor, offsets: Offsets, mask: Tensor) -> AffinityLabels:
    """Derive pairs of neighbors from labels of positions.

    Args:
        labels: ``(N, h, w)`` int64: 0 background, ``c + 1`` for class ``c``, 255 unknown.
        offsets: P pairs ``(dy, dx)``.
        mask: ``(P, h, w)`` bool, which pairs exist, see :func:`dcsm_attr.models.affinity_net.pair_mask`.

    """
    height, width = labels.shape[1:]
    targets = labels.new_full((len(labels), len(offsets), height, width), VOID)
    for pair, offset in enumerate(offsets):
        (rows, columns), (target_rows, target_columns) = overlap_slices(height, width, offset)
        targets[:, pair, rows, columns] = labels[:, target_rows, target_columns]
    sources = labels[:, None]
    known = mask & (sources != VOID) & (targets != VOID)
    equal = known & (sources == targets)
    return AffinityLabels(equal & (sources > 0), equal & (sources == 0), known & (sources != targets))


# Added to logarithms and counts in the release.
_EPSILON = 1e-5


def affinity_loss(affinities: Tensor, labels: AffinityLabels) -> Tensor:
    r"""Compute the cross entropy of affinities, balanced over foreground, background and different pairs.

    .. math::
        L = \frac14 L^+_{fg} + \frac14 L^+_{bg} + \frac12 L^-,\quad
        L^+ = -\overline{\log W_{ij}},\quad L^- = -\overline{\log (1 - W_{ij})}

    Each mean is over the pairs of its kind in the whole batch (Eq. 5 to 8; the weights, and the 1e-5 in logarithms and
    counts, are those of the release).

    Args:
        affinities: ``(N, P, h, w)`` in [0, 1].
        labels: of these pairs.

    Returns:
        Scalar, float32; zero where no pair is known.
    """
    values = affinities.float()
    different = _mean(torch.log(1.0 + _EPSILON - values), labels.different)
    foreground, background = (
        _mean(torch.log(values + _EPSILON), equal) for equal in (labels.foreground, labels.background)
    )
    return -(foreground / 4 + background / 4 + different / 2)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    # Values of other pairs may be infinite, so that a product with zero would be NaN.
    return torch.where(chosen, values, 0.0).sum() / (chosen.sum() + _EPSILON)

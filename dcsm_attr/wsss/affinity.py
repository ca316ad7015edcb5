r"""Exponents of the background, :math:`(1 - \max_c M_c)^\alpha`, for the maps of each method.

Maps of different methods rise to their maximum in different ways, and an exponent that suits one says of another that
everything is foreground.

Semantic affinity labels: which neighbors surely show the same, and which surely do not.

The loss of AffinityNet.

Affinities as a picture: where a position differs from its neighbors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dcsm_attr.attribution.maps import label_probabilities
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.models.affinity_net import Offsets, overlap

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
    """Where the foreground of one method's maps begins.

    Attributes:
        low: for labels in which foreground is sure.
        high: for labels in which background is sure.
        walk: for the background that walks with the classes.
    """

    low: float
    high: float
    walk: float


#: Those of the release, for CAM. (The submission had 24 in the place of 32.)
RELEASED_EXPONENTS = Exponents(4.0, 32.0, 16.0)

#: By the name of the method. Those of DCSM, with the preset "tuned", and of its product with CAM were chosen on 64
#: photographs of VOC's training set: about as many pixels are known, and as many of them rightly, as with CAM.
EXPONENTS: Mapping[str, Exponents] = {
    "cam": RELEASED_EXPONENTS,
    "dcsm": Exponents(0.2, 0.8, 0.25),
    "fusion": Exponents(8.0, 64.0, 32.0),
}


def method_exponents(method: str) -> Exponents:
    """Those of a method by its name.

    Raises:
        ValueError: if none are known for it.
    """
    if method not in EXPONENTS:
        raise ValueError(
            f"no exponents of the background are known for the maps of {method}: give them all, or take one of "
            f"{', '.join(EXPONENTS)}."
        )
    return EXPONENTS[method]


#: The CRF of the release.
RELEASED_CRF = DenseCRF(bilateral_weight=10, bilateral_xy=80, bilateral_rgb=13, gaussian_weight=3)


@dataclass(frozen=True)
class AffinityLabels:
    """What is known of pairs of neighbors, each ``(N, P, h, w)`` bool; a pair in none of them is not learned from.

    Attributes:
        foreground: both ends show one class.
        background: both ends show the background.
        different: the ends show different classes, or one of them the background.
    """

    foreground: Tensor
    background: Tensor
    different: Tensor


def confident_labels(
    maps: Tensor,
    classes: Tensor,
    image: Tensor,
    *,
    low: float = RELEASED_EXPONENTS.low,
    high: float = RELEASED_EXPONENTS.high,
    crf: DenseCRF | None = RELEASED_CRF,
) -> Tensor:
    r"""Labels on which two backgrounds agree: one that leaves little foreground, and one that leaves much.

    The background is :math:`(1 - \max_c M_c)^\alpha` (Ahn and Kwak, section 3.2; the exponents are the release's). The
    CRF refines both labelings, over one lattice. A position is foreground where it is with the low exponent,
    background where it is with the high one, and else unknown.

    Args:
        maps: ``(K, H, W)`` in [0, 1] of the classes in the image.
        classes: ``(K,)`` their numbers, from 0.
        image: ``(3, H, W)`` uint8.
        low: the exponent for the foreground.
        high: that for the background, larger.
        crf: refines. None: the maps themselves decide.

    Returns:
        ``(H, W)`` uint8 on the device of the maps: 0 background, ``c + 1`` for class ``c``, 255 unknown.

    Raises:
        ValueError: if the exponents are not ascending, or there are too many classes for eight bits.
    """
    if not 0 < low < high:
        raise ValueError(f"the exponents must be positive and ascending, got low={low}, high={high}.")
    if len(classes) and int(classes.max()) + 1 >= VOID:
        raise ValueError(f"labels have eight bits: classes must be below {VOID - 1}, got {int(classes.max())}.")
    present = torch.ones(1, len(classes), dtype=torch.bool, device=maps.device)
    both = torch.cat([label_probabilities(maps[None], present, exponent) for exponent in (low, high)])
    if crf is not None:
        both = crf.refine_alternatives(both, image.to(maps.device))
    of_low, of_high = both.argmax(dim=1)
    numbers = torch.cat([classes.new_full((1,), VOID - 1), classes.to(maps.device)]) + 1
    return torch.where(of_low > 0, numbers[of_low], torch.where(of_high > 0, VOID, 0)).to(torch.uint8)


def affinity_labels(labels: Tensor, offsets: Offsets, mask: Tensor) -> AffinityLabels:
    """What the labels of two neighbors say about their affinity.

    Args:
        labels: ``(N, h, w)`` int64: 0 background, ``c + 1`` for class ``c``, 255 unknown.
        offsets: P pairs ``(dy, dx)``.
        mask: ``(P, h, w)`` bool, which pairs there are; see :func:`dcsm_attr.models.affinity_net.pair_mask`.

    Returns:
        One entry for each pair.
    """
    height, width = labels.shape[1:]
    ahead = labels.new_full((len(labels), len(offsets), height, width), VOID)
    for pair, offset in enumerate(offsets):
        (rows, columns), (target_rows, target_columns) = overlap(height, width, offset)
        ahead[:, pair, rows, columns] = labels[:, target_rows, target_columns]
    here = labels[:, None]
    known = mask & (here != VOID) & (ahead != VOID)
    equal = known & (here == ahead)
    return AffinityLabels(equal & (here > 0), equal & (here == 0), known & (here != ahead))


# Of the release.
_EPSILON = 1e-5


def affinity_loss(affinities: Tensor, labels: AffinityLabels) -> Tensor:
    r"""Cross entropy of affinities, balanced between pairs of the foreground, of the background, and different ones.

    .. math::
        L = \frac14 L^+_{fg} + \frac14 L^+_{bg} + \frac12 L^-,\quad
        L^+ = -\overline{\log W_{ij}},\quad L^- = -\overline{\log (1 - W_{ij})}

    Each mean is over the pairs of its kind in the whole batch (Ahn and Kwak, Eq. 5 to 8; the weights and the 1e-5 in
    the logarithms and the counts are the release's).

    Args:
        affinities: ``(N, P, h, w)`` in [0, 1].
        labels: of the same pairs.

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
    # The others may be infinite: chosen, not multiplied by zero.
    return torch.where(chosen, values, 0.0).sum() / (chosen.sum() + _EPSILON)

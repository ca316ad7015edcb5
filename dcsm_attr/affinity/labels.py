"""Semantic affinity labels: which neighbours surely show the same, and which surely do not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcsm_attr.affinity.exponents import RELEASED
from dcsm_attr.affinity.neighbours import Offsets, overlap
from dcsm_attr.crf import DenseCRF
from dcsm_attr.maps import label_probabilities
from dcsm_attr.palette import VOID

__all__ = ["RELEASED_CRF", "PairLabels", "confident_labels", "pair_labels"]

#: The CRF of the release.
RELEASED_CRF = DenseCRF(bilateral_weight=10, bilateral_xy=80, bilateral_rgb=13, gaussian_weight=3)


@dataclass(frozen=True)
class PairLabels:
    """What is known of pairs of neighbours, each ``(N, P, h, w)`` bool; a pair in none of them is not learned from.

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
    low: float = RELEASED.low,
    high: float = RELEASED.high,
    crf: DenseCRF | None = RELEASED_CRF,
) -> Tensor:
    r"""Labels on which two backgrounds agree: one that leaves little foreground, and one that leaves much.

    The background is :math:`(1 - \max_c M_c)^\alpha` (Ahn and Kwak, section 3.2; the exponents are the release's). The
    CRF refines both labellings, over one lattice. A position is foreground where it is with the low exponent,
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
        both = crf.alternatives(both, image.to(maps.device))
    of_low, of_high = both.argmax(dim=1)
    numbers = torch.cat([classes.new_full((1,), VOID - 1), classes.to(maps.device)]) + 1
    return torch.where(of_low > 0, numbers[of_low], torch.where(of_high > 0, VOID, 0)).to(torch.uint8)


def pair_labels(labels: Tensor, offsets: Offsets, mask: Tensor) -> PairLabels:
    """What the labels of two neighbours say about their affinity.

    Args:
        labels: ``(N, h, w)`` int64: 0 background, ``c + 1`` for class ``c``, 255 unknown.
        offsets: P pairs ``(dy, dx)``.
        mask: ``(P, h, w)`` bool, which pairs there are; see :func:`dcsm_attr.affinity.neighbours.pair_mask`.

    Returns:
        One entry for each pair.
    """
    height, width = labels.shape[1:]
    ahead = labels.new_full((len(labels), len(offsets), height, width), VOID)
    for pair, offset in enumerate(offsets):
        (rows, columns), (rows_ahead, columns_ahead) = overlap(height, width, offset)
        ahead[:, pair, rows, columns] = labels[:, rows_ahead, columns_ahead]
    here = labels[:, None]
    known = mask & (here != VOID) & (ahead != VOID)
    equal = known & (here == ahead)
    return PairLabels(equal & (here > 0), equal & (here == 0), known & (here != ahead))

"""Deep seeded region growing: seeds spread to the pixels around them that the network is sure of.

Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018 (*DSRG*), and
its released code.
"""

import torch
from torch import Tensor

from dcsm_attr.seeded.components import connected_components

__all__ = ["confident_labels", "grown_seeds"]


def confident_labels(
    probabilities: Tensor, present: Tensor, foreground_threshold: float = 0.85, background_threshold: float = 0.99
) -> Tensor:
    """Label the pixels that the network is sure of, with the labels that are in the picture.

    Args:
        probabilities: ``(N, L, h, w)``; label 0 is the background, which is in every picture.
        present: ``(N, L - 1)`` bool: the classes in the picture.
        foreground_threshold: above which the best label must be, if it is a class.
        background_threshold: the same for the background.

    Returns:
        ``(N, h, w)`` int64; -1 where the network is not sure.
    """
    absent = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)
    highest, labels = probabilities.masked_fill(absent[:, :, None, None], -torch.inf).max(dim=1)
    needed = torch.where(labels == 0, background_threshold, foreground_threshold)
    return labels.masked_fill(highest <= needed, -1)


def grown_seeds(
    seeds: Tensor,
    probabilities: Tensor,
    present: Tensor,
    foreground_threshold: float = 0.85,
    background_threshold: float = 0.99,
) -> Tensor:
    """Let the seeds of each picture grow.

    The region of a label is its seeds and the pixels that the network is sure of (:func:`confident_labels`); where the
    network is sure of another label than the seed's, the pixel is of the network's region. Each 8-connected component
    of a region that holds a seed of its label becomes seeds, except pixels that carry exactly one seed, of another
    label. That is the fixed point of adding neighbours one by one.

    Seeds are never lost, also those that the network contradicts. A pixel with seeds of several labels of which none is
    certain belongs to the regions of all of them, which is our choice. The released code grows the cues of the data set
    anew in every step of the training, not what grew in the step before.

    Args:
        seeds: ``(N, L, h, w)`` bool, label 0 is the background.
        probabilities: ``(N, L, h, w)``, in DSRG refined by a CRF.
        present: ``(N, L - 1)`` bool: the classes in the picture; others do not grow.
        foreground_threshold: above which the network is sure of a class.
        background_threshold: above which it is sure of the background.

    Returns:
        ``(N, L, h, w)`` bool.

    Raises:
        TypeError: if seeds or ``present`` are not bool.
        ValueError: if shapes do not agree.
    """
    _check(seeds, probabilities, present)
    labels = confident_labels(probabilities, present, foreground_threshold, background_threshold)
    of_label = torch.arange(seeds.shape[1], device=seeds.device)[:, None, None]
    regions = torch.where(labels[:, None] >= 0, labels[:, None] == of_label, seeds)
    grows = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
    regions, own = regions[grows], seeds[grows]
    components = connected_components(regions)
    seeded = torch.zeros(components.numel() + 1, dtype=torch.bool, device=seeds.device)
    seeded[components[own]] = True
    seeded[0] = False
    # Where the seed is the label's own, it is there already.
    elsewhere = (seeds.sum(dim=1, keepdim=True) == 1).expand_as(seeds)[grows]
    grown = seeds.clone()
    grown[grows] |= seeded[components] & ~elsewhere
    return grown


def _check(seeds: Tensor, probabilities: Tensor, present: Tensor) -> None:
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

r"""Losses of segmentation networks that learn from pseudo-labels or from seeds.

- Kolesnikov and Lampert, "Seed, Expand and Constrain", ECCV 2016 (*SEC*): :func:`seed_loss` + :func:`expansion_loss` +
  :func:`boundary_loss`.
- Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018 (*DSRG*):
  :func:`balanced_seed_loss` on grown seeds + :func:`boundary_loss` with a limited ratio.
- Pseudo-labels: cross entropy.

Constants are those of the released codes. There are L labels: 0 is the background and ``c + 1`` is class c.
Probabilities are those of :func:`floored_softmax`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.datasets.masks import VOID
from dcsm_attr.wsss.region_growing import grow_seeds, refine_scores
from dcsm_attr.wsss.seeds import labels_to_seeds

__all__ = [
    "DSRG_RATIO_LIMITS",
    "OBJECTIVES",
    "Objective",
    "ObjectiveName",
    "balanced_seed_loss",
    "boundary_loss",
    "dsrg_terms",
    "expansion_loss",
    "floored_softmax",
    "pseudo_label_terms",
    "sec_terms",
    "seed_loss",
]


ObjectiveName = Literal["pseudo", "sec", "dsrg"]


@dataclass(frozen=True)
class Objective:
    """A loss of one or more terms.

    Attributes:
        terms: computes the terms from logits, labels at their resolution, classes in the images, and images.
        names: of the terms.
    """

    terms: Callable[[Tensor, Tensor, Tensor, Tensor], Mapping[str, Tensor]]
    names: tuple[str, ...]

    def __call__(self, logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        """Compute the terms, in float32 also under autocast."""
        with torch.autocast(logits.device.type, enabled=False):
            return self.terms(logits, labels, present, images)


def pseudo_label_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Compute the cross entropy at all labeled positions.

    The mean is over the positions of each image and then over the images, as in the other losses. So several processes
    that share a batch compute the same as one process.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, 255 at ignored positions.
        present: ignored.
        images: ignored.

    Returns:
        ``"cross_entropy"``, a scalar; an image without labels counts as zero.

    Raises:
        ValueError: if a label is neither below L nor 255.
    """
    known = labels_to_seeds(labels, logits.shape[1]).any(dim=1)
    each = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")
    means = each.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)
    return {"cross_entropy": means.mean()}


def sec_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Compute SEC's three losses: seed, expand, and constrain to the boundaries that the CRF finds.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, seeds; 255 elsewhere.
        present: ``(N, L - 1)`` bool, the classes in each image.
        images: ``(N, 3, H, W)`` uint8.

    Returns:
        ``"seed"``, ``"expansion"`` and ``"boundary"``, scalars to be summed.

    Raises:
        ValueError: if shapes do not agree, or a label is neither below L nor 255.
    """
    logits = logits.float()
    probabilities = floored_softmax(logits)
    return {
        "seed": seed_loss(probabilities, labels_to_seeds(labels, logits.shape[1])),
        "expansion": expansion_loss(probabilities, present),
        "boundary": boundary_loss(probabilities, refine_scores(logits.detach(), images)),
    }


def dsrg_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Compute DSRG's two losses: balanced at the grown seeds, and constrained to boundaries.

    The original seeds grow in each step, where the network is confident after the CRF. Differs from the released code:
    the CRF receives logits, as in SEC, instead of probabilities, which give weaker unaries.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, seeds; 255 elsewhere.
        present: ``(N, L - 1)`` bool, the classes in each image.
        images: ``(N, 3, H, W)`` uint8.

    Returns:
        ``"seed"`` and ``"boundary"``, scalars to be summed.

    Raises:
        ValueError: if shapes do not agree, or a label is neither below L nor 255.
    """
    logits = logits.float()
    probabilities = floored_softmax(logits)
    target = refine_scores(logits.detach(), images)
    grown = grow_seeds(labels_to_seeds(labels, logits.shape[1]), target, present)
    return {
        "seed": balanced_seed_loss(probabilities, grown),
        "boundary": boundary_loss(probabilities, target, DSRG_RATIO_LIMITS),
    }


#: Losses by name.
OBJECTIVES: dict[ObjectiveName, Objective] = {
    "pseudo": Objective(pseudo_label_terms, ("cross_entropy",)),
    "sec": Objective(sec_terms, ("seed", "expansion", "boundary")),
    "dsrg": Objective(dsrg_terms, ("seed", "boundary")),
}

#: Limits of the ratio of the two distributions in DSRG's boundary loss.
DSRG_RATIO_LIMITS = (0.05, 20.0)

_FLOOR = 1e-4
_MIN_SEED_COUNT = 1e-4


def floored_softmax(logits: Tensor, floor: float = _FLOOR) -> Tensor:
    """Compute a softmax that is positive for every label: ``(softmax + floor) / (1 + L * floor)``.

    Args:
        logits: ``(N, L, h, w)``.
        floor: added to each probability.

    Returns:
        ``(N, L, h, w)``, at least float32, summing to one over the labels.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (logits.softmax(dim=1, dtype=dtype) + floor) / (1 + logits.shape[1] * floor)


def seed_loss(probabilities: Tensor, seeds: Tensor) -> Tensor:
    r"""Compute SEC's cross entropy at the seeds of all labels: :math:`-\frac{1}{|S|} \sum_{(u, c) \in S} \log p_{u,c}`.

    Args:
        probabilities: ``(N, L, h, w)``, positive.
        seeds: ``(N, L, h, w)`` bool.

    Returns:
        Scalar, the mean over the images; an image without seeds counts as zero.

    Raises:
        ValueError: if shapes do not agree.
    """
    _check_same(probabilities, seeds, "seeds")
    return -_mean_at(probabilities.log(), seeds).mean()


def balanced_seed_loss(probabilities: Tensor, seeds: Tensor) -> Tensor:
    r"""Compute DSRG's cross entropy at the seeds, with equal weight for the background and for all classes together.

    .. math:: -\frac{1}{|S_{bg}|} \sum_{S_{bg}} \log p - \frac{1}{|S_{fg}|} \sum_{S_{fg}} \log p

    FickleNet's slides print the same set of seeds in both terms; the released code of DSRG has two sets, as here.

    Args:
        probabilities: ``(N, L, h, w)``, positive.
        seeds: ``(N, L, h, w)`` bool.

    Returns:
        Scalar, the mean over the images; a mean over no seeds counts as zero.

    Raises:
        ValueError: if shapes do not agree.
    """
    _check_same(probabilities, seeds, "seeds")
    logarithms = probabilities.log()
    background = _mean_at(logarithms[:, :1], seeds[:, :1])
    foreground = _mean_at(logarithms[:, 1:], seeds[:, 1:])
    return -(background + foreground).mean()


def expansion_loss(
    probabilities: Tensor, present: Tensor, foreground_decay: float = 0.996, background_decay: float = 0.999
) -> Tensor:
    r"""Compute SEC's expansion loss: labels in the image should cover much of it, other labels nothing.

    The share of a label is a weighted mean of its probabilities in descending order, with weights that decay by a
    factor per rank: :math:`G = \sum_k q^{k-1} p_{(k)} / \sum_k q^{k-1}`, between the maximum (:math:`q \to 0`) and the
    mean (q = 1).

    .. math:: -mean_{c\ present} \log G_c - mean_{c\ absent} \log (1 - \max p_c) - \log G_{bg}

    Args:
        probabilities: ``(N, L, h, w)``, positive, and below one for absent classes.
        present: ``(N, L - 1)`` bool, the classes in each image.
        foreground_decay: q of classes.
        background_decay: q of the background.

    Returns:
        Scalar, the mean over the images; a mean over no class counts as zero.

    Raises:
        ValueError: if shapes do not agree, or a decay is outside (0, 1].
    """
    _check_present(probabilities, present)
    for name, decay in (("foreground_decay", foreground_decay), ("background_decay", background_decay)):
        if not 0 < decay <= 1:
            raise ValueError(f"{name} is a factor from rank to rank and must lie in (0, 1], got {decay}.")
    background = _rank_weighted(probabilities[:, 0], background_decay).log()
    shares = _rank_weighted(probabilities[:, 1:], foreground_decay).log()
    # The maximum of a present class may be one, which would give infinity times zero.
    maxima = probabilities[:, 1:].amax(dim=(2, 3)).masked_fill(present, 0.0)
    return -(_mean_over(shares, present) + _mean_over((1 - maxima).log(), ~present) + background).mean()


def boundary_loss(probabilities: Tensor, target: Tensor, ratio_limits: tuple[float, float] | None = None) -> Tensor:
    r"""Compute the divergence of the probabilities from the CRF's result: :math:`mean_u \sum_c Q \log (Q / p)`.

    FickleNet's slides print a minus, which would increase the divergence; both released codes have a plus.

    Args:
        probabilities: ``(N, L, h, w)``, positive.
        target: ``(N, L, h, w)``, Q, positive, of :func:`~dcsm_attr.wsss.region_growing.refine_scores`; no gradient
            reaches it.
        ratio_limits: limits of ``Q / p``, beyond which there is no gradient: :data:`DSRG_RATIO_LIMITS` in DSRG. None:
            no limits, as in SEC.

    Returns:
        Scalar, not negative if the ratio is not limited.

    Raises:
        ValueError: if shapes do not agree.
    """
    _check_same(probabilities, target, "target")
    target = target.detach()
    ratio = target / probabilities
    if ratio_limits is not None:
        ratio = ratio.clamp(*ratio_limits)
    return (target * ratio.log()).sum(dim=1).mean()


def _mean_at(logarithms: Tensor, seeds: Tensor) -> Tensor:
    """Return the mean over the seeds of each image, ``(N,)``."""
    chosen = seeds.to(logarithms.dtype)
    return (chosen * logarithms).sum(dim=(1, 2, 3)) / chosen.sum(dim=(1, 2, 3)).clamp(min=_MIN_SEED_COUNT)


def _mean_over(values: Tensor, classes: Tensor) -> Tensor:
    """Return the mean over the chosen classes of each image, ``(N,)``; zero if there are none."""
    chosen = classes.to(values.dtype)
    return (chosen * values).sum(dim=1) / chosen.sum(dim=1).clamp(min=1)


def _rank_weighted(probabilities: Tensor, decay: float) -> Tensor:
    """Return the share G of each label, over the last two dimensions."""
    descending = probabilities.flatten(-2).sort(dim=-1, descending=True).values
    ranks = torch.arange(descending.shape[-1], device=descending.device, dtype=descending.dtype)
    weights = decay**ranks
    return descending @ (weights / weights.sum())


def _check_same(probabilities: Tensor, other: Tensor, name: str) -> None:
    if probabilities.ndim != 4 or probabilities.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of the probabilities, (N, L, h, w); got {tuple(other.shape)} and "
            f"{tuple(probabilities.shape)}."
        )


def _check_present(probabilities: Tensor, present: Tensor) -> None:
    if probabilities.ndim != 4 or present.shape != (probabilities.shape[0], probabilities.shape[1] - 1):
        raise ValueError(
            "present must have shape (N, L - 1) for probabilities (N, L, h, w), one for each label but the background; "
            f"got {tuple(present.shape)} and {tuple(probabilities.shape)}."
        )

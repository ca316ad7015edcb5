"""What a segmentation network learns by: losses of its logits, from pseudo-labels or from seeds, term by term."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.palette import VOID
from dcsm_attr.seeded.growing import grown_seeds
from dcsm_attr.seeded.losses import (
    DSRG_RATIO_LIMITS,
    balanced_seed_loss,
    boundary_loss,
    expansion_loss,
    floored_softmax,
    seed_loss,
)
from dcsm_attr.seeded.refinement import refined
from dcsm_attr.seeded.seeds import seeds_of_labels

__all__ = ["OBJECTIVES", "Objective", "ObjectiveName", "dsrg_terms", "pseudo_label_terms", "sec_terms"]

ObjectiveName = Literal["pseudo", "sec", "dsrg"]


def pseudo_label_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Cross entropy at all labelled positions.

    The mean is taken over the positions of each picture, and then over the pictures, as in the other losses: several
    processes that share a batch then learn as one.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, 255 where nothing is learned.
        present: not looked at.
        images: not looked at.

    Returns:
        ``"cross_entropy"``, a scalar; a picture without labels counts as zero.

    Raises:
        ValueError: if a label is neither below L nor 255.
    """
    known = seeds_of_labels(labels, logits.shape[1]).any(dim=1)
    each = F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")
    means = each.sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)
    return {"cross_entropy": means.mean()}


def sec_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """SEC's three losses: seed, expand, and constrain to the boundaries that the CRF finds.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, seeds; 255 where there is none.
        present: ``(N, L - 1)`` bool: the classes in the picture.
        images: ``(N, 3, H, W)`` uint8.

    Returns:
        ``"seed"``, ``"expansion"`` and ``"boundary"``, scalars to be summed.

    Raises:
        ValueError: if shapes do not agree, or a label is neither below L nor 255.
    """
    logits = logits.float()
    probabilities = floored_softmax(logits)
    return {
        "seed": seed_loss(probabilities, seeds_of_labels(labels, logits.shape[1])),
        "expansion": expansion_loss(probabilities, present),
        "boundary": boundary_loss(probabilities, refined(logits.detach(), images)),
    }


def dsrg_terms(logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> dict[str, Tensor]:
    """DSRG's two losses: balanced at the seeds, which grow first, and constrained to boundaries.

    The seeds grow anew each time, from the original ones, where the CRF makes the network sure. Differs from the
    released code in what the CRF is given: logits, as in SEC, and not probabilities, which are weaker unaries.

    Args:
        logits: ``(N, L, h, w)``.
        labels: ``(N, h, w)`` int64, seeds; 255 where there is none.
        present: ``(N, L - 1)`` bool: the classes in the picture.
        images: ``(N, 3, H, W)`` uint8.

    Returns:
        ``"seed"`` and ``"boundary"``, scalars to be summed.

    Raises:
        ValueError: if shapes do not agree, or a label is neither below L nor 255.
    """
    logits = logits.float()
    probabilities = floored_softmax(logits)
    target = refined(logits.detach(), images)
    grown = grown_seeds(seeds_of_labels(labels, logits.shape[1]), target, present)
    return {
        "seed": balanced_seed_loss(probabilities, grown),
        "boundary": boundary_loss(probabilities, target, DSRG_RATIO_LIMITS),
    }


@dataclass(frozen=True)
class Objective:
    """One way to learn.

    Attributes:
        terms: logits, labels on their grid, classes in the pictures and pictures to the terms of the loss.
        names: of the terms.
    """

    terms: Callable[[Tensor, Tensor, Tensor, Tensor], Mapping[str, Tensor]]
    names: tuple[str, ...]

    def __call__(self, logits: Tensor, labels: Tensor, present: Tensor, images: Tensor) -> Mapping[str, Tensor]:
        """The terms, in float32 also under autocast."""
        with torch.autocast(logits.device.type, enabled=False):
            return self.terms(logits, labels, present, images)


#: By name.
OBJECTIVES: dict[ObjectiveName, Objective] = {
    "pseudo": Objective(pseudo_label_terms, ("cross_entropy",)),
    "sec": Objective(sec_terms, ("seed", "expansion", "boundary")),
    "dsrg": Objective(dsrg_terms, ("seed", "boundary")),
}

"""What the caller asked for: a target, known classes, candidates; checked once the model's output is known."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.attribution.candidates import Candidates, choose_candidates, explicit_classes, given_candidates
from dcsm_attr.attribution.targets import resolve_target

__all__ = ["Request", "Selection"]


@dataclass(frozen=True)
class Selection:
    """The classes that the caller named, for a whole batch; None where they are left to the scores.

    Attributes:
        target: ``(N,)`` int64, the class to attribute to.
        positions: ``(N,)`` int64, the position of the score map to attribute to.
        known: ``(N, C)`` bool, classes known to be in the image.
        candidates: ``(N, K)`` int64, the classes to subtract from each other.
    """

    target: Tensor | None = None
    positions: Tensor | None = None
    known: Tensor | None = None
    candidates: Tensor | None = None

    def __getitem__(self, part: slice) -> "Selection":
        """The selection for a part of the batch."""
        return Selection(*(None if value is None else value[part] for value in self._values()))

    def to(self, device: torch.device) -> "Selection":
        """The selection on another device."""
        return Selection(*(None if value is None else value.to(device) for value in self._values()))

    def _values(self) -> tuple[Tensor | None, ...]:
        return self.target, self.positions, self.known, self.candidates

    def candidates_for(self, ranking: Tensor, detected: Tensor, minimum: int) -> Candidates:
        """Choose the candidates of each image of a batch.

        Args:
            ranking: ``(N, C)``, the order in which other classes fill up.
            detected: ``(N, C)`` bool, by score; known classes take its place.
            minimum: candidates of each image at least.
        """
        detected = detected if self.known is None else self.known
        if self.candidates is not None:
            return given_candidates(self.candidates, detected)
        required = None if self.target is None else F.one_hot(self.target, ranking.shape[1]).bool()
        return choose_candidates(ranking, detected, minimum, required)


@dataclass(frozen=True)
class Request:
    """What the caller passed, before the model's output is known; None where it is left to the scores.

    Attributes:
        target: in any of Captum's forms, see :func:`dcsm_attr.attribution.targets.resolve_target`.
        classes: known to be in the images, see :func:`dcsm_attr.attribution.candidates.explicit_classes`.
        candidates: to be subtracted from each other, in the same forms.
    """

    target: Any = None
    classes: Any = None
    candidates: Any = None

    def resolve(self, images: int, output_shape: torch.Size) -> Selection:
        """Check everything against the output of the model.

        Args:
            images: N of the whole batch.
            output_shape: of a part of it, ``(n, C)`` or ``(n, C, h, w)``.

        Raises:
            AssertionError: if Captum does not accept the form of the target.
            IndexError: if the target is out of range.
            ValueError: if classes or candidates are out of range or malformed, or the candidates lack the target.
        """
        count = output_shape[1]
        target, positions = None, None
        if self.target is not None:
            target, positions = resolve_target(self.target, torch.Size((images, *output_shape[1:])))
        known = None
        if self.classes is not None:
            rows = explicit_classes(self.classes, images, count, "classes")
            known = F.one_hot(rows.where(rows >= 0, count), count + 1)[..., :count].any(dim=1)
        candidates = None
        if self.candidates is not None:
            candidates = explicit_classes(self.candidates, images, count, "candidates")
            _check_among_candidates(candidates, target, known)
        return Selection(target, positions, known, candidates)


def _check_among_candidates(candidates: Tensor, target: Tensor | None, known: Tensor | None) -> None:
    if target is not None:
        lacking = ~(candidates == target[:, None]).any(dim=1)
        if lacking.any():
            image = int(lacking.nonzero()[0])
            raise ValueError(
                f"candidates must include the target: image {image} has target {int(target[image])} and candidates "
                f"{candidates[image].tolist()}."
            )
    if known is not None:
        among = given_candidates(candidates, known).detected.sum(dim=1) == known.sum(dim=1)
        if not among.all():
            image = int((~among).nonzero()[0])
            raise ValueError(
                f"candidates must include all classes: image {image} has classes "
                f"{known[image].nonzero()[:, 0].tolist()} and candidates {candidates[image].tolist()}."
            )

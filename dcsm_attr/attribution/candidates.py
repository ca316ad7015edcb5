"""The candidate classes of each image: detected by score, given by the caller, or added to be subtracted.

A :class:`Request` holds the arguments of the caller. It is resolved to a :class:`Selection` when the shape of the
model's output is known, and the scores of each image turn the selection into :class:`Candidates`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from captum._utils.common import _format_output, _select_targets
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.model import POOLINGS, PoolingName, pool_score_maps

__all__ = [
    "Activation",
    "Candidates",
    "Request",
    "SelectClasses",
    "Selection",
    "check_settings",
    "choose_candidates",
    "class_scores",
    "explicit_candidates",
    "resolve_classes",
    "resolve_target",
    "select_target_map",
]


Activation = Literal["auto", "sigmoid", "softmax"]


def check_settings(activation: str, pooling: str, threshold: float, internal_batch_size: int | None) -> None:
    """Check the settings that all methods share.

    Raises:
        ValueError: if one of them is unknown or out of range.
    """
    if activation not in ("auto", "sigmoid", "softmax"):
        raise ValueError(f"activation must be 'auto', 'sigmoid' or 'softmax', got {activation!r}.")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}; got {pooling!r}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}.")
    if internal_batch_size is not None and internal_batch_size < 1:
        raise ValueError(f"internal_batch_size must be at least 1, got {internal_batch_size}.")


def class_scores(logits: Tensor, activation: Activation, pooling: PoolingName = "max") -> Tensor:
    """Compute the class scores: pool each score map over its positions, then apply the activation (Eq. 2).

    Args:
        logits: ``(N, C)`` or ``(N, C, h, w)``.
        activation: ``"sigmoid"`` for multi-label classifiers, ``"softmax"`` for classifiers that choose one class.
            ``"auto"``: sigmoid for score maps and for a single class, softmax otherwise.
        pooling: of score maps; see :func:`dcsm_attr.attribution.model.pool_score_maps`.

    Returns:
        ``(N, C)`` float32 in [0, 1].

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    pooled = (logits if logits.ndim == 2 else pool_score_maps(logits, pooling)).float()
    if not torch.isfinite(pooled).all():
        raise ValueError(
            "the model's scores contain NaN or infinite values: check its weights and the range of the inputs."
        )
    if activation == "auto":
        activation = "sigmoid" if logits.ndim == 4 or logits.shape[1] == 1 else "softmax"
    return pooled.sigmoid() if activation == "sigmoid" else pooled.softmax(dim=1)


@dataclass(frozen=True)
class Candidates:
    """The candidate classes of each image, in the order of its maps.

    Attributes:
        classes: ``(N, K)`` int64, -1 where an image has fewer than K.
        detected: ``(N, K)`` bool: True for classes in the image, False for classes that are only subtracted.
    """

    classes: Tensor
    detected: Tensor


def choose_candidates(scores: Tensor, detected: Tensor, minimum: int, required: Tensor | None = None) -> Candidates:
    """Choose the detected and the required classes, then the next best up to ``minimum`` (section 3.3 of the paper).

    Args:
        scores: ``(N, C)``, which rank the classes; larger first.
        detected: ``(N, C)`` bool.
        minimum: minimum number of candidates per image, if the model has that many classes.
        required: ``(N, C)`` bool, classes that are candidates regardless of their score.

    Returns:
        The detected and required classes of each image, best score first, then the added ones, best score first. K is
        the largest number of candidates in the batch; the candidates of an image do not depend on the other images.
    """
    always = detected if required is None else detected | required
    count = always.sum(dim=1).clamp(min=min(minimum, scores.shape[1]))
    # Two stable sorts: by score, then required and detected classes before all others.
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    first = always.gather(1, by_score).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    classes = by_score.gather(1, first)[:, : int(count.max())]
    exists = torch.arange(classes.shape[1], device=classes.device) < count[:, None]
    return Candidates(classes.where(exists, -1), detected.gather(1, classes) & exists)


def explicit_candidates(classes: Tensor, detected: Tensor) -> Candidates:
    """Build candidates from the classes that the caller passed.

    Args:
        classes: ``(N, K)`` int64, -1 where an image has fewer.
        detected: ``(N, C)`` bool.

    Returns:
        The same classes in the same order.
    """
    return Candidates(classes, detected.gather(1, classes.clamp(min=0)) & (classes >= 0))


def resolve_classes(classes: object, images: int, count: int, name: str) -> Tensor:
    """Convert the classes that the caller passed to one row per image.

    Args:
        classes: integers ``(K,)`` for all images, or one row per image; rows may be shorter, or end in -1.
        images: N.
        count: C, the number of classes of the model.
        name: the name of the argument, for messages.

    Returns:
        ``(N, K)`` int64 on the CPU.

    Raises:
        ValueError: if the shape is wrong, a class is out of range or named twice, or an image has none.
    """
    try:
        rows = torch.as_tensor(_pad_rows(classes), device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be integers of shape (K,), or a row of them for each image; got {classes!r}."
        ) from error
    if rows.is_floating_point() or rows.dtype == torch.bool or rows.ndim not in (1, 2) or rows.numel() == 0:
        raise ValueError(
            f"{name} must be integers of shape (K,) or (N, K), got {rows.dtype} of shape {tuple(rows.shape)}."
        )
    rows = rows.long()
    if rows.ndim == 2 and len(rows) != images:
        raise ValueError(f"{name} must have a row for each of the {images} images, got {len(rows)}.")
    rows = rows.expand(images, -1)
    if rows.min() < -1 or rows.max() >= count:
        raise ValueError(
            f"{name} must lie between 0 and {count - 1} (the model has {count} classes), got {rows.tolist()}."
        )
    for row in rows.tolist():
        named = [c for c in row if c >= 0]
        if not named or len(named) != len(set(named)):
            raise ValueError(f"{name} must name at least one class for each image, and none twice; got {row}.")
    return rows


def _pad_rows(classes: object) -> object:
    if not isinstance(classes, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in classes):
        return classes
    longest = max((len(row) for row in classes), default=0)
    return [[*row, *[-1] * (longest - len(row))] for row in classes]


def resolve_target(target: Any, output_shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Resolve ``target`` to the class of each image, and to the position if the target contains one.

    Captum's own function selects from a tensor of class indices. Therefore every form that Captum accepts is accepted
    (an int, negative ints, tuples, tensors, a list with one entry per image), with the same errors.

    Args:
        target: as for ``attribute`` of Captum.
        output_shape: ``(N, C)`` or ``(N, C, h, w)``.

    Returns:
        Classes ``(N,)`` int64, and for a target ``(class, y, x)`` positions ``y * w + x``, ``(N,)`` int64; otherwise
        None, which means all positions. Both on the CPU.

    Raises:
        AssertionError: if Captum does not accept the form.
        IndexError: if a class or position is out of range.
    """
    images, classes = output_shape[:2]
    # Targets without a position select from the scores: Captum does not define them for score maps.
    addressed = output_shape if _names_position(target) else output_shape[:2]
    index = torch.arange(addressed.numel(), device="cpu").view(addressed)
    try:
        selected = _select_targets(index, target)
    except (IndexError, RuntimeError) as error:
        maps = "" if len(output_shape) == 2 else f" and score maps of {output_shape[2]} x {output_shape[3]} positions"
        raise IndexError(
            f"target {target!r} is out of range: the model has {classes} classes (0 to {classes - 1}){maps}."
        ) from error
    assert selected.shape == (images,), (
        f"target {target!r} does not select one score per image from an output of shape {tuple(output_shape)}: pass a "
        "class, or a list with one class per image."
    )
    positions = addressed[2:].numel()
    return selected // positions % classes, selected % positions if len(addressed) == 4 else None


def _names_position(target: Any) -> bool:
    first = target[0] if isinstance(target, list) and target else target
    return isinstance(first, tuple) and len(first) > 1


def select_target_map(maps: ClassMaps, target: Any, inputs: Any) -> Tensor | tuple[Tensor, ...]:
    """Select the map of the target of each image, in the form that Captum's ``attribute`` returns.

    Args:
        maps: class maps whose candidates include the target.
        target: in any of Captum's forms. None: the best candidate of each image.
        inputs: the inputs of the user.

    Returns:
        ``(N, 1, H, W)``; if the inputs are a tuple, a tuple with the same map for each input.
    """
    if target is None:
        attribution = maps.best()
    else:
        # The scores have no positions: only the class of a target (class, y, x) is used.
        if _names_position(target):
            target = [entry[0] for entry in target] if isinstance(target, list) else target[0]
        classes, _ = resolve_target(target, maps.scores.shape)
        attribution = maps.select(classes.to(maps.maps.device))
    is_tuple = isinstance(inputs, tuple)
    attributions = tuple(attribution.clone() for _ in (inputs if is_tuple else (inputs,)))
    formatted: Tensor | tuple[Tensor, ...] = _format_output(is_tuple, attributions)
    return formatted


@dataclass(frozen=True)
class Selection:
    """The classes that the caller passed, as tensors; None for those that are chosen from the scores.

    Attributes:
        target: ``(N,)`` int64, the class to attribute to.
        positions: ``(N,)`` int64, the position of the score map to attribute to.
        known: ``(N, C)`` bool, classes known to be in the image.
        candidates: ``(N, K)`` int64, the classes whose maps are subtracted from each other.
    """

    target: Tensor | None = None
    positions: Tensor | None = None
    known: Tensor | None = None
    candidates: Tensor | None = None

    def __getitem__(self, part: slice) -> "Selection":
        """Return the selection for a part of the batch."""
        return Selection(*(None if value is None else value[part] for value in self._values()))

    def to(self, device: torch.device) -> "Selection":
        """Return the selection on another device."""
        return Selection(*(None if value is None else value.to(device) for value in self._values()))

    def _values(self) -> tuple[Tensor | None, ...]:
        return self.target, self.positions, self.known, self.candidates

    def candidates_for(self, ranking: Tensor, detected: Tensor, minimum: int) -> Candidates:
        """Choose the candidates of each image of a batch.

        Args:
            ranking: ``(N, C)``, scores that rank the classes.
            detected: ``(N, C)`` bool, by score; ignored if classes are known.
            minimum: minimum number of candidates per image.
        """
        detected = detected if self.known is None else self.known
        if self.candidates is not None:
            return explicit_candidates(self.candidates, detected)
        required = None if self.target is None else F.one_hot(self.target, ranking.shape[1]).bool()
        return choose_candidates(ranking, detected, minimum, required)


#: Returns the selection for a part of a batch, given the shape of the model's output.
SelectClasses = Callable[[torch.Size], Selection]


@dataclass(frozen=True)
class Request:
    """The arguments of the caller, before the shape of the model's output is known.

    Attributes:
        target: in any of Captum's forms, see :func:`dcsm_attr.attribution.candidates.resolve_target`.
        classes: classes known to be in the images, see :func:`dcsm_attr.attribution.candidates.resolve_classes`.
        candidates: classes whose maps are subtracted from each other, in the same forms.
    """

    target: Any = None
    classes: Any = None
    candidates: Any = None

    def resolve(self, images: int, output_shape: torch.Size) -> Selection:
        """Check the arguments against the output of the model, and convert them to tensors.

        Args:
            images: N of the whole batch.
            output_shape: shape for a part of the batch, ``(n, C)`` or ``(n, C, h, w)``.

        Raises:
            AssertionError: if Captum does not accept the form of the target.
            IndexError: if the target is out of range.
            ValueError: if classes or candidates are out of range or malformed, or the candidates do not include
                the target.
        """
        count = output_shape[1]
        target, positions = None, None
        if self.target is not None:
            target, positions = resolve_target(self.target, torch.Size((images, *output_shape[1:])))
        known = None
        if self.classes is not None:
            rows = resolve_classes(self.classes, images, count, "classes")
            known = F.one_hot(rows.where(rows >= 0, count), count + 1)[..., :count].any(dim=1)
        candidates = None
        if self.candidates is not None:
            candidates = resolve_classes(self.candidates, images, count, "candidates")
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
        among = explicit_candidates(candidates, known).detected.sum(dim=1) == known.sum(dim=1)
        if not among.all():
            image = int((~among).nonzero()[0])
            raise ValueError(
                f"candidates must include all classes: image {image} has classes "
                f"{known[image].nonzero()[:, 0].tolist()} and candidates {candidates[image].tolist()}."
            )

"""Which classes are in the image, and which are taken along to be subtracted."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dcsm_attr.backbones.score_pooling import POOLINGS, PoolingName, pooled_scores

__all__ = [
    "Activation",
    "Candidates",
    "check_detection",
    "choose_candidates",
    "class_scores",
    "explicit_classes",
    "given_candidates",
]

Activation = Literal["auto", "sigmoid", "softmax"]


def check_detection(activation: str, pooling: str, threshold: float) -> None:
    """Check the settings by which classes are detected.

    Raises:
        ValueError: if one of them is not known or out of range.
    """
    if activation not in ("auto", "sigmoid", "softmax"):
        raise ValueError(f"activation must be 'auto', 'sigmoid' or 'softmax', got {activation!r}.")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}; got {pooling!r}.")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}.")


def class_scores(logits: Tensor, activation: Activation, pooling: PoolingName = "max") -> Tensor:
    """Scores of the classes: each score map pooled over its positions, then the activation (Eq. 2).

    Args:
        logits: ``(N, C)`` or ``(N, C, h, w)``.
        activation: ``"sigmoid"`` for classifiers that decide each class for itself, ``"softmax"`` for those that choose
            one class. ``"auto"``: sigmoid for score maps and for a single class, softmax otherwise.
        pooling: of score maps; see :func:`dcsm_attr.backbones.score_pooling.pooled_scores`.

    Returns:
        ``(N, C)`` float32 in [0, 1].

    Raises:
        ValueError: if a score is NaN or infinite.
    """
    pooled = (logits if logits.ndim == 2 else pooled_scores(logits, pooling)).float()
    if not torch.isfinite(pooled).all():
        raise ValueError(
            "the model's scores hold NaN or infinite values: check its weights and the range of the inputs."
        )
    if activation == "auto":
        activation = "sigmoid" if logits.ndim == 4 or logits.shape[1] == 1 else "softmax"
    return pooled.sigmoid() if activation == "sigmoid" else pooled.softmax(dim=1)


@dataclass(frozen=True)
class Candidates:
    """The classes of each image, in the order of its maps: as :func:`choose_candidates` chose them, or as given.

    Attributes:
        classes: ``(N, K)`` int64, -1 where an image has fewer than K.
        detected: ``(N, K)`` bool: True for classes in the image, False for those there only to be subtracted.
    """

    classes: Tensor
    detected: Tensor


def choose_candidates(scores: Tensor, detected: Tensor, minimum: int, required: Tensor | None = None) -> Candidates:
    """Choose the detected and the required classes, filled up with the best of the others (section 3.3 of the paper).

    Args:
        scores: ``(N, C)``, the order in which other classes fill up; larger first.
        detected: ``(N, C)`` bool.
        minimum: candidates of each image, if the model has as many classes.
        required: ``(N, C)`` bool, classes that are candidates whatever their score. None: none.

    Returns:
        The detected and required classes of each image, best score first, then those that fill up, best score first. K
        is the largest number that an image of the batch needs; what an image gets does not depend on the others.
    """
    always = detected if required is None else detected | required
    count = always.sum(dim=1).clamp(min=min(minimum, scores.shape[1]))
    # Two stable sorts: by score, then the required and detected before the rest.
    by_score = scores.argsort(dim=1, descending=True, stable=True)
    first = always.gather(1, by_score).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    classes = by_score.gather(1, first)[:, : int(count.max())]
    exists = torch.arange(classes.shape[1], device=classes.device) < count[:, None]
    return Candidates(classes.where(exists, -1), detected.gather(1, classes) & exists)


def given_candidates(classes: Tensor, detected: Tensor) -> Candidates:
    """Take the caller's candidates as they are.

    Args:
        classes: ``(N, K)`` int64, -1 where an image has fewer.
        detected: ``(N, C)`` bool.

    Returns:
        The same classes in the same order.
    """
    return Candidates(classes, detected.gather(1, classes.clamp(min=0)) & (classes >= 0))


def explicit_classes(classes: object, images: int, count: int, name: str) -> Tensor:
    """Read classes that the caller names: the same for all images, or a row for each.

    Args:
        classes: integers ``(K,)``, or a row for each image; rows of images that have fewer may be shorter, or end in
            -1.
        images: N.
        count: C, the number of classes of the model.
        name: the argument, for messages.

    Returns:
        ``(N, K)`` int64 on the CPU.

    Raises:
        ValueError: if the shape is wrong, a class is out of range or named twice, or an image has none.
    """
    try:
        rows = torch.as_tensor(_padded_rows(classes), device="cpu")
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
        raise ValueError(f"{name} has {len(rows)} rows for {images} images.")
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


def _padded_rows(classes: object) -> object:
    if not isinstance(classes, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in classes):
        return classes
    longest = max((len(row) for row in classes), default=0)
    return [[*row, *[-1] * (longest - len(row))] for row in classes]

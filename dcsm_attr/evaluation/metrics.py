"""The metrics of PASCAL VOC: intersection over union of label maps, and average precision of scores (since 2010)."""

import torch
from torch import Tensor

__all__ = [
    "average_precision",
    "average_precision_per_class",
    "confusion_matrix",
    "iou_per_class",
    "mean_average_precision",
    "mean_iou",
]


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int, ignore: int = 255) -> Tensor:
    """Count the pixels of each pair of true and predicted label. The matrices of several images can be added.

    Args:
        prediction: integer labels of any shape, each from 0 to ``classes - 1``; arbitrary where the truth is void.
        truth: integer labels of the same shape, each from 0 to ``classes - 1``, or ``ignore``.
        classes: number L of labels, including the background.
        ignore: label of void pixels, which are not counted.

    Returns:
        ``(L, L)`` int64 on the device of the labels; row: truth, column: prediction.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if shapes differ or a label is out of range.
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}."
        )
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}.")
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{name} must hold integer labels, got {labels.dtype}.")
    counted = truth != ignore
    predicted, true = prediction[counted].long(), truth[counted].long()
    for name, labels in (("prediction", predicted), ("truth", true)):
        if labels.numel() and not (labels.min() >= 0 and labels.max() < classes):
            raise ValueError(
                f"labels of the {name} must be between 0 and {classes - 1} (truth: or {ignore}, void), got "
                f"{int(labels.min())} to {int(labels.max())}."
            )
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Compute the intersection over union of each label: TP / (TP + FP + FN).

    Args:
        confusion: ``(L, L)`` of :func:`confusion_matrix`, summed over all images.

    Returns:
        ``(L,)`` float64 in [0, 1]; NaN for a label that occurs neither in the truth nor in the prediction.

    Raises:
        ValueError: if the matrix is not square.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise ValueError(f"confusion must have shape (L, L), got {tuple(confusion.shape)}.")
    intersection = confusion.diagonal().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - confusion.diagonal()
    # 0 / 0 is NaN.
    return intersection / union


def mean_iou(confusion: Tensor) -> float:
    """Average :func:`iou_per_class` over the labels that occur, including the background.

    Args:
        confusion: ``(L, L)``, summed over all images.

    Returns:
        In [0, 1]; NaN if nothing was counted.

    Raises:
        ValueError: if the matrix is not square.
    """
    return float(iou_per_class(confusion).nanmean())


def average_precision(scores: Tensor, present: Tensor) -> float:
    """Compute the area under the interpolated precision-recall curve of one class, at all points of the curve.

    The interpolated precision at a recall is the best precision at that or any higher recall. ``scikit-learn`` and
    ``torchmetrics`` use the precision itself, so that their values are never larger; VOC 2007 used eleven points.

    Images with equal scores are one point of the curve: the result does not depend on the order of the images, and is
    the share of positives if all scores are equal. In VOC's development kit it depends on how ties are sorted.

    Args:
        scores: ``(N,)``, higher if the class is more likely in the image; only their order matters.
        present: ``(N,)`` bool, whether the class is in the image.

    Returns:
        In (0, 1]; NaN if the class is in no image.

    Raises:
        TypeError: if ``present`` is not bool.
        ValueError: if shapes differ or are not ``(N,)``, or a score is NaN.
    """
    if scores.ndim != 1 or scores.shape != present.shape:
        raise ValueError(
            f"scores and present must have the same shape (N,), got {tuple(scores.shape)} and {tuple(present.shape)}."
        )
    if present.dtype != torch.bool:
        raise TypeError(f"present must be bool, got {present.dtype}.")
    if scores.isnan().any():
        raise ValueError(f"scores must not be NaN, but {int(scores.isnan().sum())} of them are NaN.")
    if not present.any():
        return float("nan")
    ranked, order = scores.sort(descending=True)
    is_last_of_ties = torch.cat([ranked[1:] != ranked[:-1], ranked.new_ones(1, dtype=torch.bool)])
    retrieved = (is_last_of_ties.nonzero()[:, 0] + 1).double()
    hits = present[order].cumsum(dim=0)[is_last_of_ties].double()
    interpolated = (hits / retrieved).flip(0).cummax(dim=0).values.flip(0)
    new_hits = hits.diff(prepend=hits.new_zeros(1))
    return float((interpolated * new_hits).sum() / hits[-1])


def average_precision_per_class(scores: Tensor, present: Tensor) -> Tensor:
    """Compute :func:`average_precision` of each class.

    Args:
        scores: ``(N, C)``.
        present: ``(N, C)`` bool.

    Returns:
        ``(C,)`` float64 in (0, 1]; NaN for a class that is in no image.

    Raises:
        TypeError: if ``present`` is not bool.
        ValueError: if shapes differ or are not ``(N, C)``, or a score is NaN.
    """
    if scores.ndim != 2 or scores.shape != present.shape:
        raise ValueError(
            f"scores and present must have the same shape (N, C), got {tuple(scores.shape)} and {tuple(present.shape)}."
        )
    values = [average_precision(*of_class) for of_class in zip(scores.T, present.T, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def mean_average_precision(scores: Tensor, present: Tensor) -> float:
    """Average :func:`average_precision_per_class` over the classes that are in at least one image.

    Args:
        scores: ``(N, C)``.
        present: ``(N, C)`` bool.

    Returns:
        In (0, 1]; NaN if no image has a class.

    Raises:
        TypeError: if ``present`` is not bool.
        ValueError: if shapes differ or are not ``(N, C)``, or a score is NaN.
    """
    return float(average_precision_per_class(scores, present).nanmean())

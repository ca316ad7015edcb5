"""Intersection over union as PASCAL VOC counts it."""

import torch
from torch import Tensor

__all__ = ["confusion_matrix", "iou_per_class", "mean_iou"]


def confusion_matrix(prediction: Tensor, truth: Tensor, classes: int, ignore: int = 255) -> Tensor:
    """Count the pixels of each true and each predicted label. The matrices of several images add up.

    Args:
        prediction: integer labels of any shape, each from 0 to ``classes - 1``; where the truth is void, anything.
        truth: integer labels of the same shape, each from 0 to ``classes - 1``, or ``ignore``.
        classes: number L of labels, the background included.
        ignore: the label of void pixels, which do not count.

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
                f"labels of the {name} must lie between 0 and {classes - 1} (truth: or be {ignore}, void), got "
                f"{int(labels.min())} to {int(labels.max())}."
            )
    return torch.bincount(true * classes + predicted, minlength=classes**2).view(classes, classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union of each label: TP / (TP + FP + FN).

    Args:
        confusion: ``(L, L)`` of :func:`confusion_matrix`, summed over all images first.

    Returns:
        ``(L,)`` float64 in [0, 1]; NaN for a label that is neither in the truth nor in a prediction.

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
    """Mean of :func:`iou_per_class` over the labels that occur, background included.

    Args:
        confusion: ``(L, L)``, summed over all images first.

    Returns:
        In [0, 1]; NaN if nothing was counted.

    Raises:
        ValueError: if the matrix is not square.
    """
    return float(iou_per_class(confusion).nanmean())

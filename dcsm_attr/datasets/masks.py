"""Reading label maps, which classes they show, and other sizes of them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.datasets.missing import first_five
from dcsm_attr.images import ImageReadError, opened_picture
from dcsm_attr.palette import VOC_CLASSES, VOID

__all__ = ["MaskError", "MaskReadError", "classes_in_mask", "read_mask", "resized_labels"]


class MaskError(ValueError):
    """A mask that cannot be read or is none; the message names the file and says why."""


class MaskReadError(MaskError):
    """A mask whose file cannot be read."""


def read_mask(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    class_count: int = len(VOC_CLASSES),
    *,
    max_pixels: int | None = None,
) -> Tensor:
    """Read a label map from a palette or grey picture.

    Args:
        path: the picture, whose pixel values are the labels. Its colours are not looked at.
        size: ``(H, W)`` of the photograph. None: any.
        class_count: number of classes, without the background.
        max_pixels: as in :func:`dcsm_attr.images.read_image`.

    Returns:
        ``(H, W)`` int64: 0 background, ``c + 1`` for class ``c``, 255 void.

    Raises:
        MaskReadError: if the file is missing, no complete picture, or too large.
        MaskError: if it has several channels, another size than the photograph, or other labels.
    """
    path = Path(path)
    values = _pixel_values(path, max_pixels)
    if size is not None and values.shape != size:
        raise MaskError(
            f"{path}: a mask must have the size of its photograph, {size[1]} x {size[0]} pixels; it has "
            f"{values.shape[1]} x {values.shape[0]}."
        )
    found = np.unique(values)
    strange = [str(value) for value in found.tolist() if not 0 <= value <= class_count and value != VOID]
    if strange:
        raise MaskError(
            f"{path}: labels must be 0 (background), 1 to {class_count} (classes) or {VOID} (void); got "
            f"{first_five(strange)}."
        )
    return torch.from_numpy(values.astype(np.int64))


def _pixel_values(path: Path, max_pixels: int | None) -> np.ndarray:
    try:
        with opened_picture(path, max_pixels=max_pixels) as picture:
            mode, channels, values = picture.mode, len(picture.getbands()), np.asarray(picture)
    except ImageReadError as error:
        raise MaskReadError(str(error)) from error
    if mode == "F" or channels != 1:
        raise MaskError(
            f"{path}: a mask must be a palette or grey picture, whose pixel values are the labels; it has the mode "
            f"{mode}. Save it without converting it to colours."
        )
    return values


def classes_in_mask(mask: Tensor) -> tuple[int, ...]:
    """The classes that a label map shows, from 0, ascending; background and void are none.

    Args:
        mask: ``(H, W)`` of :func:`read_mask`.
    """
    return tuple(label - 1 for label in torch.unique(mask).tolist() if label not in (0, VOID))


def resized_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a label map without mixing labels; one of that size already is given back as it is.

    Args:
        labels: ``(h, w)`` int64.
        size: ``(H, W)``.

    Returns:
        ``(H, W)`` int64.
    """
    if labels.shape == tuple(size):
        return labels
    # Floating point is resized on every device, and holds labels exactly.
    return F.interpolate(labels[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].long()

"""Reading true label maps, and which classes they show."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcsm_attr.datasets.missing import first_five
from dcsm_attr.palette import VOC_CLASSES, VOID

__all__ = ["MaskError", "classes_in_mask", "read_mask"]


class MaskError(ValueError):
    """A mask that cannot be read or is none; the message names the file and says why."""


def read_mask(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, class_count: int = len(VOC_CLASSES)
) -> Tensor:
    """Read a label map from a palette or grey picture.

    Args:
        path: the picture, whose pixel values are the labels. Its colours are not looked at.
        size: ``(H, W)`` of the photograph. None: any.
        class_count: number of classes, without the background.

    Returns:
        ``(H, W)`` int64: 0 background, ``c + 1`` for class ``c``, 255 void.

    Raises:
        MaskError: if the file is missing or no complete picture, has several channels, another size than the
            photograph, or other labels.
    """
    path = Path(path)
    values = _pixel_values(path)
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


def _pixel_values(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            if picture.mode == "F" or len(picture.getbands()) != 1:
                raise MaskError(
                    f"{path}: a mask must be a palette or grey picture, whose pixel values are the labels; it has the "
                    f"mode {picture.mode}. Save it without converting it to colours."
                )
            return np.asarray(picture)
    except MaskError:
        raise
    except FileNotFoundError as error:
        raise MaskError(f"{path}: there is no such file.") from error
    # Decoders raise all of these on broken files.
    except (OSError, SyntaxError, ValueError, IndexError, Image.DecompressionBombError) as error:
        raise MaskError(f"{path}: cannot be read as a picture ({error}).") from error


def classes_in_mask(mask: Tensor) -> tuple[int, ...]:
    """The classes that a label map shows, from 0, ascending; background and void are none.

    Args:
        mask: ``(H, W)`` of :func:`read_mask`.
    """
    return tuple(label - 1 for label in torch.unique(mask).tolist() if label not in (0, VOID))

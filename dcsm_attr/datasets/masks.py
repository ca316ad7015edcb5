"""Label maps as files and as colors: reads masks, and draws label maps in the class colors of PASCAL VOC."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dcsm_attr.datasets.images import ImageReadError, open_image_file
from dcsm_attr.datasets.labels import summarize_names

__all__ = [
    "VOC_CLASSES",
    "VOID",
    "MaskError",
    "MaskReadError",
    "classes_in_mask",
    "label_image",
    "overlay",
    "read_mask",
    "resize_labels",
    "voc_colors",
]

#: Class names of PASCAL VOC, in the order of their labels from 1; label 0 is the background.
VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

#: Label of pixels that are ignored.
VOID = 255


class MaskError(ValueError):
    """A mask that cannot be read or has invalid labels; the message names the file and the reason."""


class MaskReadError(MaskError):
    """A mask whose file cannot be read."""


def read_mask(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    class_count: int = len(VOC_CLASSES),
    *,
    max_pixels: int | None = None,
) -> Tensor:
    """Reads a label map from a palette or gray image.

    Args:
        path: the file. Its pixel values are the labels; the colors of its palette are ignored.
        size: ``(H, W)`` of the image. None: any size.
        class_count: number of classes, without the background.
        max_pixels: as in :func:`dcsm_attr.datasets.images.read_image`.

    Returns:
        ``(H, W)`` int64: 0 background, ``c + 1`` for class ``c``, 255 void.

    Raises:
        MaskReadError: if the file is missing, not a complete image, or too large.
        MaskError: if the mask has several channels, another size than the image, or other labels.
    """
    path = Path(path)
    values = _read_pixel_values(path, max_pixels)
    if size is not None and values.shape != size:
        raise MaskError(
            f"{path}: a mask must have the size of its image, {size[1]} x {size[0]} pixels; it has "
            f"{values.shape[1]} x {values.shape[0]}."
        )
    found = np.unique(values)
    invalid = [str(value) for value in found.tolist() if not 0 <= value <= class_count and value != VOID]
    if invalid:
        raise MaskError(
            f"{path}: labels must be 0 (background), 1 to {class_count} (classes) or {VOID} (void); got "
            f"{summarize_names(invalid)}."
        )
    return torch.from_numpy(values.astype(np.int64))


def _read_pixel_values(path: Path, max_pixels: int | None) -> np.ndarray:
    try:
        with open_image_file(path, max_pixels=max_pixels) as image:
            mode, channels, values = image.mode, len(image.getbands()), np.asarray(image)
    except ImageReadError as error:
        raise MaskReadError(str(error)) from error
    if mode == "F" or channels != 1:
        raise MaskError(
            f"{path}: a mask must be a palette or gray image whose pixel values are the labels; it has the mode "
            f"{mode}. Save it without converting it to colors."
        )
    return values


def classes_in_mask(mask: Tensor) -> tuple[int, ...]:
    """Returns the classes that a label map shows, as class indices in ascending order.

    Args:
        mask: ``(H, W)`` as returned by :func:`read_mask`; background and void are ignored.
    """
    return tuple(label - 1 for label in torch.unique(mask).tolist() if label not in (0, VOID))


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes a label map with nearest-neighbor interpolation; returns it unchanged if it already has this size.

    Args:
        labels: ``(h, w)`` int64.
        size: ``(H, W)``.

    Returns:
        ``(H, W)`` int64.
    """
    if labels.shape == tuple(size):
        return labels
    # Every device can resize floating point, which represents labels exactly.
    return F.interpolate(labels[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].long()


def voc_colors() -> npt.NDArray[np.uint8]:
    """Returns the 256 colors of the VOC development kit, ``(256, 3)``.

    The bits of a label are distributed over the three channels, from the highest bit of a channel to the lowest.
    """
    labels = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            digit = (labels >> (3 * bit + channel)) & 1
            colors[:, channel] |= (digit << (7 - bit)).astype(np.uint8)
    return colors


def label_image(labels: npt.NDArray[np.integer]) -> Image.Image:
    """Returns a label map as a palette image (mode ``"P"``) whose pixel values are the labels.

    Args:
        labels: ``(H, W)``, 0 to 255.

    Raises:
        ValueError: if a label does not fit into 8 bits.
    """
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(
            f"labels must lie between 0 and 255 for a palette image, got {labels.min()} to {labels.max()}."
        )
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(voc_colors().flatten().tolist())
    return image


def overlay(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    opacity: float = 0.55,
    colors: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Blends the colors of a label map over an image and outlines each region in white.

    Args:
        image: ``(H, W, 3)``.
        labels: ``(H, W)``, 0 to 255. The image is unchanged where the label is 0.
        opacity: of the colors, 0 to 1.
        colors: one per label, ``(labels, 3)``. None: VOC's.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    label_colors = (voc_colors() if colors is None else colors)[labels]
    foreground = (labels > 0)[:, :, None]
    mixed = np.where(foreground, image * (1 - opacity) + label_colors * opacity, image)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = 255
    blended: npt.NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return blended

"""The colours and class names of PASCAL VOC, and pictures of label maps in these colours."""

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["VOC_CLASSES", "VOID", "label_picture", "overlay", "voc_colours"]

#: Names of the classes of PASCAL VOC, in the order of their labels from 1; label 0 is the background.
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

#: The label of pixels that are not to be counted.
VOID = 255


def voc_colours() -> npt.NDArray[np.uint8]:
    """The 256 colours of the VOC development kit, ``(256, 3)``: the bits of a label, spread over the three channels."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            digit = (labels >> (3 * bit + channel)) & 1
            colours[:, channel] |= (digit << (7 - bit)).astype(np.uint8)
    return colours


def label_picture(labels: npt.NDArray[np.integer]) -> Image.Image:
    """A label map as a palette picture (mode ``"P"``), whose pixel values are the labels.

    Args:
        labels: ``(H, W)``, 0 to 255.

    Raises:
        ValueError: if a label does not fit into 8 bits.
    """
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(
            f"labels must lie between 0 and 255 for a palette picture, got {labels.min()} to {labels.max()}."
        )
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(voc_colours().flatten().tolist())
    return picture


def overlay(
    image: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    opacity: float = 0.55,
    colours: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Lay the colours of a label map over a photograph, with a line around each region; the background stays as it is.

    Args:
        image: ``(H, W, 3)``.
        labels: ``(H, W)``, 0 to 255.
        opacity: of the colours, 0 to 1.
        colours: one for each label, ``(labels, 3)``. None: those of VOC.

    Returns:
        ``(H, W, 3)``.
    """
    laid = (voc_colours() if colours is None else colours)[labels]
    covered = (labels > 0)[:, :, None]
    mixed = np.where(covered, image * (1 - opacity) + laid * opacity, image)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = 255
    blended: npt.NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return blended

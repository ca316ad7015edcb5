"""What can be measured: collections with masks, and photographs that can be read together with theirs."""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.masks import MaskError, read_mask
from dcsm_attr.evaluation.result import Protocol
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.palette import VOID

__all__ = ["UNMEASURABLE", "check_collection", "read_with_mask"]


class _NoClassError(ValueError):
    """A photograph of which nothing is known, under the protocol that tells what is in it."""


#: Why one photograph is skipped, where :func:`read_with_mask` raises it.
UNMEASURABLE = (ImageReadError, MaskError, _NoClassError)


def check_collection(collection: Collection, class_names: Sequence[str] | None) -> None:
    """Check that a model's label maps can be compared with the masks of a collection.

    Args:
        collection: photographs with masks.
        class_names: of the model; None where they are not known.

    Raises:
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits.
    """
    if not len(collection):
        raise ValueError("the collection is empty: at least one photograph is needed.")
    if class_names != collection.class_names:
        raise ValueError(
            "the model's class names must be those of the collection, in the same order, for labels are compared by "
            f"number; got {_outline(class_names)} and {_outline(collection.class_names)}."
        )
    if len(collection.class_names) >= VOID:
        raise ValueError(
            f"masks of 8 bits tell at most {VOID - 1} classes from each other, got {len(collection.class_names)}."
        )
    without = [photograph.name for photograph in collection if photograph.mask is None]
    if without:
        raise ValueError(
            f"every photograph needs a mask to be compared with, but {len(without)} of {len(collection)} have none, "
            f"such as {without[0]}. Read the collection together with its masks."
        )


def _outline(names: Sequence[str] | None) -> str:
    if names is None:
        return "none"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def read_with_mask(
    photograph: Photograph, protocol: Protocol, class_count: int, *, max_pixels: int | None = None
) -> tuple[Image.Image, Tensor]:
    """Read a photograph and the truth about it.

    Args:
        photograph: with a mask.
        protocol: what is told about it.
        class_count: number of classes, without the background.
        max_pixels: as in :func:`dcsm_attr.images.read_image`, for both files.

    Returns:
        The picture, and its mask ``(H, W)`` int64.

    Raises:
        ImageReadError, MaskError: if a file cannot be read, or the mask does not fit.
        ValueError: if its classes are to be known, and it has none.
    """
    if protocol is Protocol.KNOWN and not photograph.classes:
        raise _NoClassError("it has no image-level label, and without a class there is nothing to segment.")
    image = read_image(photograph.path, max_pixels=max_pixels)
    assert photograph.mask is not None
    return image, read_mask(photograph.mask, (image.height, image.width), class_count, max_pixels=max_pixels)

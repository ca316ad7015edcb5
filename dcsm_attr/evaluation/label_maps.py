"""How well label maps that stand in a folder agree with the masks of a collection.

What can be measured: collections with masks, and photographs that can be read together with theirs.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import VOID, MaskError, read_mask, resize_labels
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, Protocol

__all__ = ["SKIPPED_ERRORS", "LabelMapEvaluation", "check_collection", "evaluate_label_maps", "read_with_mask"]


class _NoClassError(ValueError):
    """An image of which nothing is known, under the protocol that tells what is in it."""


#: Why one image is skipped, where :func:`read_with_mask` raises it.
SKIPPED_ERRORS = (ImageReadError, MaskError, _NoClassError)


def check_collection(collection: Collection, class_names: Sequence[str] | None) -> None:
    """Check that a model's label maps can be compared with the masks of a collection.

    Args:
        collection: photographs with masks.
        class_names: of the model; None where they are not known.

    Raises:
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits.
    """
    if not len(collection):
        raise ValueError("the collection is empty: at least one image is needed.")
    if class_names != collection.class_names:
        raise ValueError(
            "the model's class names must be those of the collection, in the same order, for labels are compared by "
            f"number; got {_summarize(class_names)} and {_summarize(collection.class_names)}."
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


def _summarize(names: Sequence[str] | None) -> str:
    if names is None:
        return "none"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def read_with_mask(
    photograph: LabeledImage, protocol: Protocol, class_count: int, *, max_pixels: int | None = None
) -> tuple[Image.Image, Tensor]:
    """Read an image and the truth about it.

    Args:
        photograph: with a mask.
        protocol: what is told about it.
        class_count: number of classes, without the background.
        max_pixels: as in :func:`dcsm_attr.datasets.images.read_image`, for both files.

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


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelMapEvaluation:
    """What was measured.

    Attributes:
        class_names: C names, without the background.
        confusion: of the pixels that both have a label for.
        unknown: share of the labeled pixels of the masks for which the label maps have none (255).
        photographs: how many were compared.
        skipped: the reason, by the name of each image that was not.
    """

    class_names: tuple[str, ...]
    confusion: Confusion
    unknown: float
    photographs: int
    skipped: Mapping[str, str]

    @property
    def precision(self) -> tuple[float, float]:
        """Share of the pixels labeled as background, and of those labeled as a class, that are so; NaN for none."""
        counts = self.confusion.counts.double()
        right = counts.diagonal()
        return float(right[0] / counts[:, 0].sum()), float(right[1:].sum() / counts[:, 1:].sum())


def evaluate_label_maps(collection: Collection, folder: str | Path, *, progress: bool = True) -> LabelMapEvaluation:
    """Compare label maps with masks.

    Args:
        collection: photographs with masks.
        folder: with a label map ``NAME.png`` for each: 0 background, ``c + 1`` for class ``c``, 255 unknown. One of
            another size than the mask is resized to it, without mixing labels. Unknown pixels are not counted;
            :attr:`LabelMapEvaluation.unknown` says how many.
        progress: whether to show a bar.

    Returns:
        The measurement; photographs of which a file cannot be read, or does not fit, are logged and left out.

    Raises:
        ValueError: if the collection is empty or has no masks, or no image could be compared.
    """
    check_collection(collection, collection.class_names)
    labels = 1 + len(collection.class_names)
    counts = torch.zeros(labels, labels, dtype=torch.int64)
    unknown = total = 0
    skipped: dict[str, str] = {}
    for photograph in tqdm(collection, unit="photo", desc="compared", disable=not progress):
        try:
            found, mask = _both(photograph, Path(folder), len(collection.class_names))
        except MaskError as error:
            _logger.warning("%s is skipped: %s", photograph.name, error)
            skipped[photograph.name] = str(error)
            continue
        total += int((mask != VOID).sum())
        unknown += int(((mask != VOID) & (found == VOID)).sum())
        counts += confusion_matrix(found.where(found != VOID, 0), mask.where(found != VOID, VOID), labels, VOID)
    if len(skipped) == len(collection):
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"none of the {len(collection)} photographs could be compared, such as {name}: {reason}")
    compared = len(collection) - len(skipped)
    return LabelMapEvaluation(collection.class_names, Confusion(counts), unknown / max(1, total), compared, skipped)


def _both(photograph: LabeledImage, folder: Path, class_count: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert photograph.mask is not None
    mask = read_mask(photograph.mask, class_count=class_count)
    found = read_mask(folder / f"{photograph.name}.png", class_count=class_count)
    return resize_labels(found, mask.shape), mask

"""Evaluation of a segmenter, or of label maps in a folder, on a collection with masks.

The counts of each image are a row. The rows of an evaluation can be kept in a file, so that it resumes.
"""

import json
import logging
import os
import typing
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import dcsm_attr
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import VOID, MaskError, read_mask, resize_labels
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import (
    PROTOCOLS,
    Confusion,
    Evaluation,
    LabelMapEvaluation,
    ProtocolName,
    labels_digest,
    parameters_digest,
)
from dcsm_attr.io import open_run_folder
from dcsm_attr.segmentation import Segmentation, Segmenter
from dcsm_attr.segmentation.segmenter import AttributedImage, PreparedImage, restore_segmentation
from dcsm_attr.segmentation.stream import run_pipeline

__all__ = [
    "ROWS_FILE",
    "SKIPPED_ERRORS",
    "ImageCounts",
    "SkippedImage",
    "append_rows",
    "check_collection",
    "evaluate",
    "evaluate_label_maps",
    "read_rows",
    "read_with_mask",
]


_logger = logging.getLogger(__name__)

#: Name of the file of rows in the folder of an evaluation.
ROWS_FILE = "rows.jsonl"


def evaluate(
    segmenter: Segmenter,
    collection: Collection,
    protocol: ProtocolName,
    *,
    batch_size: int = 4,
    folder: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Segment every image of a collection and compare it with its mask, before and after the CRF.

    An image is skipped if it or its mask cannot be read, if they do not fit, or, under the protocol ``"known"``, if it
    has no class. Skipped images are logged and listed in the result.

    Args:
        segmenter: must have the class names of the collection.
        collection: images with masks.
        protocol: ``"detected"`` or ``"known"``, see :data:`dcsm_attr.evaluation.result.ProtocolName`.
        batch_size: number of images segmented together.
        folder: where to keep the counts of each image, see :func:`dcsm_attr.io.open_run_folder`. The same call resumes
            an interrupted evaluation and gives the same result, bit for bit; images that were skipped stay skipped.
            None: nothing is kept.
        overwrite: whether to start over if the folder contains an evaluation.
        progress: whether to show a progress bar.

    Returns:
        Confusion matrices, scores and settings.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits,
            an argument is out of its range, or the folder contains an evaluation with other settings.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be {' or '.join(map(repr, PROTOCOLS))}, got {protocol!r}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    check_collection(collection, segmenter.class_names)
    # Before the first image: layers that the segmenter still has to choose must not depend on where a run resumes.
    settings: dict[str, Any] = {
        **segmenter.settings,
        "parameters": parameters_digest(segmenter.model),
        "device": segmenter.device.type,
        "batch_size": batch_size,
    }
    rows: list[ImageCounts | SkippedImage] = []
    path = None
    if folder is not None:
        everything = {
            **settings,
            "protocol": protocol,
            "dcsm_attr": dcsm_attr.__version__,
            "class_names": collection.class_names,
            "num_images": len(collection),
            "image-level labels": labels_digest(collection),
        }
        folder = open_run_folder(folder, everything, "an evaluation", results=[ROWS_FILE], overwrite=overwrite)
        path = folder / ROWS_FILE
        rows = read_rows(path, ImageCounts, [item.name for item in collection], batch_size)
    items = tuple(collection)
    counts = _count_images(segmenter, items[len(rows) :], protocol, len(collection.class_names), batch_size)
    bar = tqdm(total=len(items), initial=len(rows), unit="image", desc=f"{protocol} classes", disable=not progress)
    with closing(counts), bar:
        while len(rows) < len(items):
            batch = [_to_row(item.name, next(counts)) for item in items[len(rows) : len(rows) + batch_size]]
            if path is not None:
                append_rows(path, batch)
            rows += batch
            bar.update(len(batch))
    return _summarize(rows, collection, protocol, settings)


@dataclass(frozen=True)
class ImageCounts:
    """Row of an image: its pixels by label.

    Attributes:
        name: of the image.
        unrefined: confusion matrix before the CRF, L rows (truth) of L counts (prediction).
        refined: confusion matrix after the CRF.
        scores: of the classifier, one per class, in [0, 1].
        nothing_detected: whether no class was above the threshold, so that the class with the highest score was used.
    """

    name: str
    unrefined: list[list[int]]
    refined: list[list[int]]
    scores: list[float]
    nothing_detected: bool


@dataclass(frozen=True)
class SkippedImage:
    """Row of an image that was skipped.

    Attributes:
        name: of the image.
        reason: why it was skipped.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class _ImageWithMask:
    name: str
    mask: Tensor
    image: PreparedImage


def _count_images(
    segmenter: Segmenter, items: Sequence[LabeledImage], protocol: ProtocolName, num_classes: int, batch_size: int
) -> Generator[ImageCounts | Exception, None, None]:
    """Yield the counts of each image, or why it is skipped; a GPU works while files are read and pixels counted."""

    def read(item: LabeledImage) -> _ImageWithMask:
        image, mask = read_with_mask(item, protocol, num_classes, max_pixels=segmenter.max_pixels)
        known = item.classes if protocol == "known" else None
        return _ImageWithMask(item.name, mask, segmenter.prepare_image(image, known))

    def attribute(batch: Sequence[_ImageWithMask]) -> list[tuple[_ImageWithMask, AttributedImage]]:
        return list(zip(batch, segmenter.attribute_batch([one.image for one in batch]), strict=True))

    def count(pair: tuple[_ImageWithMask, AttributedImage]) -> ImageCounts:
        one, attributed = pair
        return _count_pixels(one.name, restore_segmentation(attributed), one.mask, 1 + num_classes)

    return run_pipeline(
        items,
        read,
        attribute,
        count,
        batch_size=batch_size,
        workers=segmenter.num_readers,
        allowed_errors=SKIPPED_ERRORS,
    )


def _count_pixels(name: str, result: Segmentation, mask: Tensor, num_labels: int) -> ImageCounts:
    unrefined = torch.from_numpy(result.display_labels(result.unrefined))
    return ImageCounts(
        name,
        unrefined=confusion_matrix(unrefined, mask, num_labels, VOID).tolist(),
        refined=confusion_matrix(result.labels, mask, num_labels, VOID).tolist(),
        scores=result.class_maps.scores[0].tolist(),
        nothing_detected=result.fallback,
    )


def _to_row(name: str, counts: ImageCounts | Exception) -> ImageCounts | SkippedImage:
    if isinstance(counts, ImageCounts):
        return counts
    _logger.warning("%s is skipped: %s", name, counts)
    return SkippedImage(name, str(counts))


def _summarize(
    rows: Sequence[ImageCounts | SkippedImage],
    collection: Collection,
    protocol: ProtocolName,
    settings: Mapping[str, Any],
) -> Evaluation:
    counted = [row for row in rows if isinstance(row, ImageCounts)]
    num_classes = len(collection.class_names)
    return Evaluation(
        protocol,
        collection.class_names,
        unrefined=_sum_matrices([row.unrefined for row in counted], 1 + num_classes),
        refined=_sum_matrices([row.refined for row in counted], 1 + num_classes),
        scores=torch.tensor([row.scores for row in counted], dtype=torch.float64).view(len(counted), num_classes),
        present=collection.presence()[[isinstance(row, ImageCounts) for row in rows]],
        images=tuple(row.name for row in counted),
        skipped={row.name: row.reason for row in rows if isinstance(row, SkippedImage)},
        nothing_detected=tuple(row.name for row in counted if row.nothing_detected),
        settings=settings,
    )


def _sum_matrices(matrices: Sequence[list[list[int]]], num_labels: int) -> Confusion:
    stacked = torch.tensor(matrices, dtype=torch.int64).view(len(matrices), num_labels, num_labels)
    return Confusion(stacked.sum(dim=0))


def evaluate_label_maps(collection: Collection, folder: str | Path, *, progress: bool = True) -> LabelMapEvaluation:
    """Compare label maps in a folder with the masks of a collection.

    Images whose label map or mask cannot be read are logged and listed in the result.

    Args:
        collection: images with masks.
        folder: contains a label map ``NAME.png`` per image: 0 background, ``c + 1`` for class ``c``, 255 unknown. It is
            resized to the mask if necessary, without mixing labels. Unknown pixels are not counted, see
            :attr:`LabelMapEvaluation.unknown`.
        progress: whether to show a progress bar.

    Returns:
        The confusion matrix and the share of unknown pixels.

    Raises:
        ValueError: if the collection is empty or has no masks, or no image could be compared.
    """
    check_collection(collection, collection.class_names)
    num_classes = len(collection.class_names)
    counts = torch.zeros(1 + num_classes, 1 + num_classes, dtype=torch.int64)
    num_unknown = num_labeled = 0
    skipped: dict[str, str] = {}
    for item in tqdm(collection, unit="image", desc="compared", disable=not progress):
        assert item.mask is not None
        try:
            mask = read_mask(item.mask, class_count=num_classes)
            labels = resize_labels(read_mask(Path(folder) / f"{item.name}.png", class_count=num_classes), mask.shape)
        except MaskError as error:
            _logger.warning("%s is skipped: %s", item.name, error)
            skipped[item.name] = str(error)
            continue
        known = labels != VOID
        num_labeled += int((mask != VOID).sum())
        num_unknown += int(((mask != VOID) & ~known).sum())
        counts += confusion_matrix(labels.where(known, 0), mask.where(known, VOID), 1 + num_classes, VOID)
    if len(skipped) == len(collection):
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"none of the {len(collection)} images could be compared, such as {name}: {reason}")
    return LabelMapEvaluation(
        collection.class_names,
        Confusion(counts),
        unknown=num_unknown / max(1, num_labeled),
        num_images=len(collection) - len(skipped),
        skipped=skipped,
    )


def check_collection(collection: Collection, class_names: Sequence[str] | None) -> None:
    """Check that the label maps of a model can be compared with the masks of a collection.

    Args:
        collection: images with masks.
        class_names: of the model; None if they are not known.

    Raises:
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits.
    """
    if not len(collection):
        raise ValueError("the collection is empty: at least one image is needed.")
    if class_names != collection.class_names:
        raise ValueError(
            "the model's class names must be those of the collection, in the same order: labels are compared by "
            f"number; got {_abbreviate(class_names)} and {_abbreviate(collection.class_names)}."
        )
    if len(collection.class_names) >= VOID:
        raise ValueError(f"masks of 8 bits have at most {VOID - 1} classes, got {len(collection.class_names)}.")
    without = [item.name for item in collection if item.mask is None]
    if without:
        raise ValueError(
            f"every image needs a mask to be compared with, but {len(without)} of {len(collection)} have none, such as "
            f"{without[0]}. Read the collection together with its masks."
        )


def _abbreviate(names: Sequence[str] | None) -> str:
    if names is None:
        return "none"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


class _NoClassError(ValueError):
    """An image without image-level labels, under the protocol ``"known"``."""


#: Errors of :func:`read_with_mask` because of which a single image is skipped.
SKIPPED_ERRORS = (ImageReadError, MaskError, _NoClassError)


def read_with_mask(
    item: LabeledImage, protocol: ProtocolName, num_classes: int, *, max_pixels: int | None = None
) -> tuple[Image.Image, Tensor]:
    """Read an image and its mask.

    Args:
        item: has a mask.
        protocol: of the evaluation.
        num_classes: number of classes, without the background.
        max_pixels: see :func:`dcsm_attr.datasets.images.read_image`; for both files.

    Returns:
        The image, and its mask ``(H, W)`` int64.

    Raises:
        ImageReadError, MaskError: if a file cannot be read, or the mask does not fit.
        ValueError: if the protocol is ``"known"`` and the image has no class.
    """
    if protocol == "known" and not item.classes:
        raise _NoClassError("it has no image-level label, so that there is nothing to segment.")
    image = read_image(item.path, max_pixels=max_pixels)
    assert item.mask is not None
    return image, read_mask(item.mask, (image.height, image.width), num_classes, max_pixels=max_pixels)


class _HasName(typing.Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_HasName)

_REMEDY = "Remove it to start over."


def read_rows(path: Path, row_type: type[_Row], names: Sequence[str], batch_size: int) -> list[_Row | SkippedImage]:
    """Read the rows of an interrupted run.

    Rows of an incomplete batch are removed from the file: a batch is computed as a whole, so that a resumed run gives
    the same result, bit for bit.

    Args:
        path: the file of rows, one line of JSON each; it may be missing.
        row_type: dataclass of the row of a counted image; it has the field ``name`` and no field ``reason``.
        names: of all images, in order.
        batch_size: number of images that are computed together.

    Returns:
        The rows of the first images.

    Raises:
        OSError: if the file cannot be read or written to.
        ValueError: if a line is damaged, or the rows are not those of the first images.
    """
    if not path.exists():
        return []
    # The part after the last line break is empty, or a line that is cut off.
    *lines, _ = path.read_bytes().split(b"\n")
    rows = [_parse_row(path, number, line, row_type) for number, line in enumerate(lines, start=1)]
    if [row.name for row in rows] != list(names[: len(rows)]):
        raise ValueError(f"{path}: its images are not those of the collection, in order. {_REMEDY}")
    kept = len(rows) if len(rows) == len(names) else len(rows) // batch_size * batch_size
    os.truncate(path, sum(len(line) + 1 for line in lines[:kept]))
    return rows[:kept]


def _parse_row(path: Path, number: int, line: bytes, row_type: type[_Row]) -> _Row | SkippedImage:
    try:
        values = json.loads(line)
        return SkippedImage(**values) if "reason" in values else row_type(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: damaged ({error}). {_REMEDY}") from error


def append_rows(path: Path, rows: Sequence[Any]) -> None:
    """Append rows to their file, one line of JSON each. Numbers are read back without a loss.

    Args:
        path: the file; created if missing.
        rows: dataclasses.

    Raises:
        OSError: if the file cannot be written to.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{json.dumps(asdict(row))}\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())

"""Rows of measurements in a file that grows while they are taken, so that a killed run can go on.

The first line holds everything that the result depends on; each further line is an image, in order.

What one image adds to an evaluation, and its line in a file.

How well a segmenter labels the images of a collection, under the two protocols of the literature.
"""

import json
import logging
import os
import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

import dcsm_attr
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.evaluation.label_maps import SKIPPED_ERRORS, check_collection, read_with_mask
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, Evaluation, Protocol, labels_digest, parameters_digest
from dcsm_attr.io import atomic_path, diff_settings, make_writable_folder
from dcsm_attr.segmentation import Segmentation, Segmenter
from dcsm_attr.segmentation.segmenter import AttributedImage, PreparedImage, restore_segmentation
from dcsm_attr.segmentation.stream import run_pipeline

__all__ = [
    "ImageCounts",
    "Row",
    "SkippedImage",
    "append_lines",
    "evaluate",
    "format_row",
    "load_rows",
    "parse_row",
    "row_parser",
]


_REMEDY = "Remove it to start again, or choose another file."


class _Named(typing.Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)


def load_rows(
    path: Path,
    depends_on: Mapping[str, Any],
    names: Sequence[str],
    batch_size: int,
    read: Callable[[bytes], _Row],
) -> list[_Row]:
    """Read the rows that an earlier run has left, or begin the file.

    Rows of a batch that was not finished are removed from the file: to give the same result to the last bit, a batch is
    computed as a whole.

    Args:
        path: the file; folders above it are made.
        depends_on: everything that the result depends on, JSON-serializable.
        names: of all images, in order.
        batch_size: photographs that are computed together.
        read: makes a row, which has a name, of a line, or raises a ValueError.

    Returns:
        The rows of the first images.

    Raises:
        OSError: if the file cannot be read or written to.
        ValueError: if it was written with other settings, which are named, is damaged, or is another kind of file.
    """
    make_writable_folder(path.parent)
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(depends_on) + "\n", encoding="utf-8")
        return []
    # What follows the last line break is empty, or a line that was cut off.
    *lines, _ = path.read_bytes().split(b"\n")
    _check_settings(path, lines, depends_on)
    rows = [_read_row(path, number, line, read) for number, line in enumerate(lines[1:], start=2)]
    if [row.name for row in rows] != list(names[: len(rows)]):
        raise ValueError(f"{path}: its images are not those of the collection, in order. {_REMEDY}")
    kept = len(rows) if len(rows) == len(names) else len(rows) // batch_size * batch_size
    os.truncate(path, sum(len(line) + 1 for line in lines[: 1 + kept]))
    return rows[:kept]


def _check_settings(path: Path, lines: list[bytes], depends_on: Mapping[str, Any]) -> None:
    try:
        before = json.loads(lines[0])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: is not the state of an evaluation. {_REMEDY}") from error
    if not isinstance(before, dict):
        raise ValueError(f"{path}: is not the state of an evaluation. {_REMEDY}")
    # Tuples have become lists in the file.
    different = diff_settings(before, json.loads(json.dumps(depends_on)))
    if different:
        raise ValueError(f"{path}: belongs to another evaluation, which differs in {'; '.join(different)}. {_REMEDY}")


def _read_row(path: Path, number: int, line: bytes, read: Callable[[bytes], _Row]) -> _Row:
    try:
        return read(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: damaged ({error}). {_REMEDY}") from error


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add the rows of one batch at the end of the file, one line per entry.

    Raises:
        OSError: if it cannot be written to.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class ImageCounts:
    """An image that was measured.

    Attributes:
        name: its id.
        unrefined: confusion matrix before the CRF, L rows (truth) of L counts (prediction).
        refined: the same after the CRF.
        scores: the classifier's, one per class, in [0, 1].
        nothing_detected: whether no class was above the threshold, so that the best one took its place.
    """

    name: str
    unrefined: list[list[int]]
    refined: list[list[int]]
    scores: list[float]
    nothing_detected: bool


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be measured.

    Attributes:
        name: its id.
        reason: why.
    """

    name: str
    reason: str


Row = ImageCounts | SkippedImage


_Counted = TypeVar("_Counted")


def format_row(row: Any) -> str:
    """One line of JSON, without its end. Numbers come back from it as they were, to the last bit."""
    return json.dumps(asdict(row))


def row_parser(counted: type[_Counted], what: str) -> Callable[[str | bytes], _Counted | SkippedImage]:
    """Make the inverse of :func:`format_row`.

    Args:
        counted: the row of an image that was measured; a dataclass without a field ``reason``.
        what: what the rows belong to, for messages.

    Returns:
        Reads a line, and raises a ValueError if it is no such row.
    """

    def read(line: str | bytes) -> _Counted | SkippedImage:
        values = json.loads(line)
        try:
            return SkippedImage(**values) if "reason" in values else counted(**values)
        except TypeError as error:
            raise ValueError(f"not a row of {what} ({error})") from error

    return read


parse_row: Callable[[str | bytes], Row] = row_parser(ImageCounts, "an evaluation")


_logger = logging.getLogger(__name__)


def evaluate(
    segmenter: Segmenter,
    collection: Collection,
    protocol: Protocol | str,
    *,
    batch_size: int = 4,
    state: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Segment every image of a collection and compare with its mask, before the CRF and after it.

    A photograph that cannot be read, or whose mask cannot be read or does not fit, is skipped: it is logged and named
    in the result. So is, under the protocol "known", one without a class.

    Args:
        segmenter: its class names are those of the collection.
        collection: photographs with masks.
        protocol: "detected" or "known".
        batch_size: photographs segmented together.
        state: a file in which the images that are done are kept. If it is there already, the evaluation goes on
            where it ended, and its result is that of an undisturbed one; photographs that were skipped stay skipped.
            None: nothing is kept.
        progress: whether to show a bar.

    Returns:
        The measurement.

    Raises:
        OSError: if ``state`` cannot be written to.
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits,
            an argument is out of its range, or ``state`` belongs to another evaluation.
    """
    protocol = _check_protocol(protocol)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    check_collection(collection, segmenter.class_names)
    # Asked for before the first image: layers that are still to be chosen must not depend on where a run goes on.
    settings = _settings(segmenter, batch_size)
    path = None if state is None else Path(state)
    rows: list[Row] = []
    if path is not None:
        depends_on = {**settings, "protocol": protocol.value, **_described(collection)}
        rows = load_rows(path, depends_on, [photograph.name for photograph in collection], batch_size, parse_row)
    description = f"{protocol.value} classes"
    found = _measured(segmenter, collection.images[len(rows) :], protocol, len(collection.class_names), batch_size)
    with (
        closing(found),
        tqdm(total=len(collection), initial=len(rows), unit="photo", desc=description, disable=not progress) as bar,
    ):
        while len(rows) < len(collection):
            batch = collection.images[len(rows) : len(rows) + batch_size]
            done = [_row(photograph.name, next(found)) for photograph in batch]
            if path is not None:
                append_lines(path, [format_row(row) for row in done])
            rows += done
            bar.update(len(done))
    return _summed(rows, collection, protocol, settings)


def _check_protocol(protocol: Protocol | str) -> Protocol:
    try:
        return Protocol(protocol)
    except ValueError as error:
        known = " or ".join(repr(choice.value) for choice in Protocol)
        raise ValueError(f"protocol must be {known}, got {protocol!r}.") from error


def _settings(segmenter: Segmenter, batch_size: int) -> dict[str, Any]:
    return {
        **segmenter.settings,
        "parameters": parameters_digest(segmenter.model),
        "device": segmenter.device.type,
        "batch_size": batch_size,
    }


def _described(collection: Collection) -> dict[str, Any]:
    return {
        "dcsm_attr": dcsm_attr.__version__,
        "class_names": collection.class_names,
        "photographs": len(collection),
        "image-level labels": labels_digest(collection),
    }


@dataclass(frozen=True)
class _Read:
    """An image and the truth about it."""

    name: str
    mask: Tensor
    photograph: PreparedImage


def _measured(
    segmenter: Segmenter, photographs: Sequence[LabeledImage], protocol: Protocol, class_count: int, batch_size: int
) -> Generator[ImageCounts | Exception, None, None]:
    """For each image its counts, or why it is skipped; files are read and pixels counted while a GPU works."""

    def read(photograph: LabeledImage) -> _Read:
        image, mask = read_with_mask(photograph, protocol, class_count, max_pixels=segmenter.max_pixels)
        known = photograph.classes if protocol is Protocol.KNOWN else None
        return _Read(photograph.name, mask, segmenter.prepare_image(image, known))

    def attributed(batch: Sequence[_Read]) -> list[tuple[_Read, AttributedImage]]:
        return list(zip(batch, segmenter.attribute_batch([one.photograph for one in batch]), strict=True))

    def counted(pair: tuple[_Read, AttributedImage]) -> ImageCounts:
        one, result = pair
        return _counted(one.name, restore_segmentation(result), one.mask, 1 + class_count)

    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": segmenter.num_readers,
        "allowed_errors": SKIPPED_ERRORS,
    }
    return run_pipeline(photographs, read, attributed, counted, **settings)


def _row(name: str, found: ImageCounts | Exception) -> Row:
    if isinstance(found, ImageCounts):
        return found
    _logger.warning("%s is skipped: %s", name, found)
    return SkippedImage(name, str(found))


def _counted(name: str, result: Segmentation, mask: Tensor, labels: int) -> ImageCounts:
    unrefined = torch.from_numpy(result.display_labels(result.unrefined))
    return ImageCounts(
        name,
        unrefined=confusion_matrix(unrefined, mask, labels, VOID).tolist(),
        refined=confusion_matrix(result.labels, mask, labels, VOID).tolist(),
        scores=result.class_maps.scores[0].tolist(),
        nothing_detected=result.fallback,
    )


def _summed(rows: Sequence[Row], collection: Collection, protocol: Protocol, settings: Mapping[str, Any]) -> Evaluation:
    counted = [row for row in rows if isinstance(row, ImageCounts)]
    classes = len(collection.class_names)
    return Evaluation(
        protocol,
        collection.class_names,
        unrefined=_total([row.unrefined for row in counted], 1 + classes),
        refined=_total([row.refined for row in counted], 1 + classes),
        scores=torch.tensor([row.scores for row in counted], dtype=torch.float64).view(len(counted), classes),
        present=collection.presence()[[isinstance(row, ImageCounts) for row in rows]],
        photographs=tuple(row.name for row in counted),
        skipped={row.name: row.reason for row in rows if isinstance(row, SkippedImage)},
        nothing_detected=tuple(row.name for row in counted if row.nothing_detected),
        settings=settings,
    )


def _total(matrices: Sequence[list[list[int]]], labels: int) -> Confusion:
    return Confusion(torch.tensor(matrices, dtype=torch.int64).view(len(matrices), labels, labels).sum(dim=0))

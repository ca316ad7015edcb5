"""Batches of a collection: which images go through the model together, and how each becomes files.

The class maps of an image depend on the other images of its batch, by rounding. Batches are therefore fixed by the
order of the collection and always processed as a whole: a run that was killed and resumed, divided into shards, or
distributed over machines writes the same files as an uninterrupted one.

An image passes through four steps, which may run in different threads, processes or machines: :func:`load_image`,
:meth:`Labeler.prepare`, :meth:`Labeler.attribute` (with the model, for all images of a batch) and
:meth:`Labeler.finish`. The files that result are written by :func:`write_image_files`; :func:`write_records` then marks
the batch as finished.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.io import Storage, json_bytes
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.segmenter import AttributedImage, PreparedImage, Segmenter, restore_segmentation
from dcsm_attr.segmentation.stream import run_pipeline

__all__ = [
    "WHOLE",
    "ImageBatch",
    "LabeledFiles",
    "Labeler",
    "LoadedImage",
    "Outputs",
    "PendingImage",
    "Shard",
    "check_overwrite",
    "collection_digest",
    "count_batches",
    "encode_image",
    "failure_record",
    "failures_by_name",
    "finished_batches",
    "load_image",
    "plan_batches",
    "process_batches",
    "read_records",
    "write_image_files",
    "write_records",
]


@dataclass(frozen=True)
class Shard:
    """The part of a collection that one of several processes handles; all of them write to the same folder.

    Attributes:
        index: number of this process, from 0.
        count: number of processes.

    Raises:
        ValueError: if the index is not in 0 to ``count - 1``.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"a shard's index must be in 0 to count - 1 = {self.count - 1}, got {self.index}.")

    @classmethod
    def from_environment(cls) -> "Shard":
        """The part of this process among those that ``torchrun`` started; without ``torchrun``, everything."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


#: The shard of a single process.
WHOLE = Shard()


def check_overwrite(overwrite: bool, shard: Shard) -> None:
    """Check that only a single process overwrites a folder.

    Raises:
        ValueError: if there are several processes.
    """
    if overwrite and shard.count > 1:
        raise ValueError(
            f"overwrite must be False for one of {shard.count} shards, got True: each would remove the results of the "
            "others. Remove the folder before the first one starts."
        )


@dataclass(frozen=True)
class ImageBatch:
    """Consecutive images that go through the model together.

    Attributes:
        number: from 0.
        first: position of its first image in the collection.
        items: its images.
    """

    number: int
    first: int
    items: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[int, LabeledImage]]:
        """Each image with its position in the collection."""
        return enumerate(self.items, self.first)


def plan_batches(collection: Collection, batch_size: int, shard: Shard = WHOLE) -> list[ImageBatch]:
    """Divide a collection into batches.

    Args:
        collection: in its order.
        batch_size: images per batch; the last batch of the collection may be smaller.
        shard: every ``count``-th batch is taken, from the ``index``-th on.

    Raises:
        ValueError: if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    items = tuple(collection)
    numbers = range(shard.index, count_batches(len(items), batch_size), shard.count)
    starts = ((number, number * batch_size) for number in numbers)
    return [ImageBatch(number, start, items[start : start + batch_size]) for number, start in starts]


def count_batches(num_images: int, batch_size: int) -> int:
    """Number of batches of a whole collection."""
    return -(-num_images // batch_size)


def collection_digest(collection: Collection) -> str:
    """SHA-256 of names and classes in order: equal if and only if the batches have the same content."""
    digest = hashlib.sha256()
    for item in collection:
        digest.update(f"{item.name}\0{item.classes}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


_Read = TypeVar("_Read")
_Labeled = TypeVar("_Labeled")
_Finished = TypeVar("_Finished")


def process_batches(
    batches: Sequence[ImageBatch],
    read: Callable[[int, LabeledImage], _Read],
    label: Callable[[Sequence[_Read]], Sequence[_Labeled]],
    finish: Callable[[_Labeled], _Finished],
    *,
    num_readers: int,
) -> Generator[tuple[ImageBatch, list[_Finished | ImageReadError]], None, None]:
    """Process batches in this process; see :func:`dcsm_attr.segmentation.stream.run_pipeline`.

    Args:
        batches: of any sizes.
        read: called for each image and its position; may raise ``ImageReadError``.
        label: called for the images of one batch that could be read, if there are any.
        finish: called for each image.
        num_readers: number of threads that read. 0: reading, labeling and finishing take turns in the caller's thread.

    Yields:
        Each batch when it is finished, with the result of each image, or the reason why it could not be read.
    """
    # Only the last batch of a collection is smaller than the others; a pipeline has one batch size.
    for size, group in groupby(sorted(batches, key=len, reverse=True), key=len):
        same_size = list(group)
        results = run_pipeline(
            (image for batch in same_size for image in batch),
            lambda image: read(*image),
            label,
            finish,
            batch_size=size,
            workers=num_readers,
            allowed_errors=ImageReadError,
        )
        with closing(results):
            for batch in same_size:
                yield batch, list(islice(results, size))


@dataclass(frozen=True)
class LoadedImage:
    """An image of a collection with its pixels.

    Attributes:
        position: in the collection, from 0.
        item: its entry in the collection.
        pixels: ``(H, W, 3)`` uint8.
        seconds: time taken to read it.
    """

    position: int
    item: LabeledImage
    pixels: npt.NDArray[np.uint8]
    seconds: float


def load_image(position: int, item: LabeledImage, max_pixels: int | None) -> LoadedImage:
    """Read an image; the first step, which needs no model.

    Args:
        position: in the collection.
        item: its entry in the collection.
        max_pixels: see :func:`dcsm_attr.datasets.images.read_image`.

    Raises:
        ImageReadError: if the image cannot be read.
    """
    start = time.perf_counter()
    pixels = np.asarray(read_image(item.path, max_pixels=max_pixels))
    return LoadedImage(position, item, pixels, time.perf_counter() - start)


@dataclass(frozen=True)
class Outputs:
    """Optional outputs in addition to label maps.

    Attributes:
        maps: whether to write ``maps/NAME.npz``, with ``maps`` ``(K, H, W)`` of the ``classes`` ``(K,)`` and
            ``probabilities`` ``(1 + K, H, W)`` of background and classes; maps and probabilities are float16.
        overlays: write ``overlays/NAME.jpg`` for every N-th image; 0 writes none.

    Raises:
        ValueError: if ``overlays`` is negative.
    """

    maps: bool = False
    overlays: int = 0

    def __post_init__(self) -> None:
        """Check the number."""
        if self.overlays < 0:
            raise ValueError(f"overlays must not be negative, got {self.overlays}; 0 writes none.")


@dataclass(frozen=True)
class PendingImage:
    """An image between the steps of :class:`Labeler`.

    Attributes:
        loaded: the image.
        result: the image on its canvas, then with label probabilities. None: the image is known to show no class.
        seconds: time taken, by the name of the step.
    """

    loaded: LoadedImage
    result: PreparedImage | AttributedImage | None
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class LabeledFiles:
    """Everything to be written for one image.

    Attributes:
        record: its line of the manifest.
        files: contents by file name.
    """

    record: Mapping[str, Any]
    files: Mapping[str, bytes]


class Labeler:
    """Labels images by the classes that they are known to show; the steps after :func:`load_image`.

    Attributes:
        segmenter: on the device where it runs.
        outputs: what to write.
    """

    def __init__(self, segmenter: Segmenter, outputs: Outputs = Outputs()) -> None:
        """See the attributes."""
        self.segmenter = segmenter
        self.outputs = outputs

    def prepare(self, loaded: LoadedImage) -> PendingImage:
        """Put an image on the canvas of the model; may run in any thread."""
        start = time.perf_counter()
        classes = loaded.item.classes
        prepared = self.segmenter.prepare_image(loaded.pixels, classes) if classes else None
        return PendingImage(loaded, prepared, {"read": loaded.seconds + time.perf_counter() - start})

    def attribute(self, images: Sequence[PendingImage]) -> list[PendingImage]:
        """Compute class maps, background and CRF of the images of a batch.

        Args:
            images: results of :meth:`prepare`, at least one.
        """
        start = time.perf_counter()
        prepared = [image.result for image in images if isinstance(image.result, PreparedImage)]
        results = iter(self.segmenter.attribute_batch(prepared) if prepared else ())
        labeled = [image if image.result is None else replace(image, result=next(results)) for image in images]
        # The time of the batch in equal shares. On a GPU part of it appears in the next step, which waits for values.
        seconds = (time.perf_counter() - start) / len(images)
        return [replace(image, seconds={**image.seconds, "label": seconds}) for image in labeled]

    def finish(self, image: PendingImage) -> LabeledFiles:
        """Bring the labels to the size of the image and encode the files; may run in any thread.

        Args:
            image: a result of :meth:`attribute`.
        """
        start = time.perf_counter()
        loaded, name = image.loaded, image.loaded.item.name
        result = restore_segmentation(image.result) if isinstance(image.result, AttributedImage) else None
        labels = np.zeros(loaded.pixels.shape[:2], dtype=np.int64) if result is None else result.display_labels()
        files = {"labels": (f"labels/{name}.png", encode_image(label_image(labels), "PNG"))}
        if self.outputs.overlays and loaded.position % self.outputs.overlays == 0:
            overlay = Image.fromarray(loaded.pixels) if result is None else result.overlay()
            files["overlay"] = (f"overlays/{name}.jpg", encode_image(overlay, "JPEG", quality=90))
        if self.outputs.maps:
            files["maps"] = (f"maps/{name}.npz", _encode_maps(result, labels.shape))
        seconds = {**image.seconds, "write": time.perf_counter() - start}
        record = {
            "name": name,
            "image": str(loaded.item.path),
            **{kind: file for kind, (file, _) in files.items()},
            "size": list(labels.shape),
            **({"classes": [], "confidence": 1.0} if result is None else _describe_labels(result)),
            "seconds": {step: round(value, 4) for step, value in seconds.items()},
        }
        return LabeledFiles(record, dict(files.values()))


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of an image file.

    Args:
        image: any.
        kind: a format of PIL, such as ``"PNG"``.
        options: of the format.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _encode_maps(result: Segmentation | None, size: Sequence[int]) -> bytes:
    if result is None:
        maps, classes, probabilities = np.zeros((0, *size)), np.zeros(0, np.int64), np.ones((1, *size))
    else:
        maps = result.class_maps.select_classes(result.classes).numpy()
        classes = np.array(result.classes, dtype=np.int64)
        probabilities = result.probabilities.numpy()
    buffer = io.BytesIO()
    half = np.float16
    np.savez_compressed(buffer, maps=maps.astype(half), classes=classes, probabilities=probabilities.astype(half))
    return buffer.getvalue()


_DECIMALS = 6


def _describe_labels(result: Segmentation) -> dict[str, Any]:
    classes = [
        {
            "class": c,
            "name": name,
            "value": value,
            "score": round(float(result.class_maps.scores[0, c]), _DECIMALS),
            "share": round(float((result.labels == c + 1).float().mean()), _DECIMALS),
        }
        for c, name, value in zip(result.classes, result.names, result.label_values, strict=True)
    ]
    return {"classes": classes, "confidence": round(float(result.probabilities.amax(dim=0).mean()), _DECIMALS)}


def write_image_files(storage: Storage, labeled: LabeledFiles) -> Mapping[str, Any]:
    """Write the files of an image.

    Returns:
        Its line of the manifest.

    Raises:
        OSError: if a file cannot be written.
    """
    start = time.perf_counter()
    for name, content in labeled.files.items():
        storage.write(name, content)
    seconds = labeled.record["seconds"]
    # Encoding the files, in the step before, is part of writing them.
    total = seconds["write"] + time.perf_counter() - start
    return {**labeled.record, "seconds": {**seconds, "write": round(total, 4)}}


def failure_record(item: LabeledImage, reason: str) -> dict[str, Any]:
    """The line of the manifest of an image that could not be read."""
    return {"name": item.name, "image": str(item.path), "error": reason}


_RECORDS_FOLDER = "parts"


def write_records(storage: Storage, number: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Mark a batch as finished.

    Args:
        storage: where all files of its images have been written.
        number: of the batch.
        records: the lines of the manifest of its images.

    Raises:
        OSError: if they cannot be written.
    """
    storage.write(_records_name(number), b"".join(map(json_bytes, records)))


def finished_batches(storage: Storage) -> set[int]:
    """Numbers of the batches that any process has finished."""
    return {int(name.split(".")[0]) for name in storage.names(_RECORDS_FOLDER) if name.endswith(".jsonl")}


def read_records(storage: Storage, number: int) -> bytes:
    """The lines of the manifest of a finished batch.

    Raises:
        FileNotFoundError: if the batch is not finished.
    """
    return storage.read(_records_name(number))


def _records_name(number: int) -> str:
    return f"{_RECORDS_FOLDER}/{number:08d}.jsonl"


def failures_by_name(lines: bytes) -> dict[str, str]:
    """Why images of a batch could not be read, by their names."""
    records = (json.loads(line) for line in lines.splitlines())
    return {record["name"]: record["error"] for record in records if "error" in record}

"""Which photographs go through the model together: fixed, whoever does it, and however often it is interrupted.

Class maps depend on what else is in a batch, by rounding. With batches that are always the same, and always done as a
whole, the results of a run that was killed, divided, or spread over machines are those of an undisturbed one.

The photographs of a batch, read: without the model, and without what only it imports.

The files of a batch: those of its images, and last the manifest lines that describe them.

From an image that was read to the files that are written for it, in steps that may run in different places.
"""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.io import Storage, json_bytes
from dcsm_attr.pipelines.label_files import Shard
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.segmenter import Segmenter
from dcsm_attr.segmentation.stream import AttributedImage, PreparedImage, restore_segmentation

__all__ = [
    "ImageBatch",
    "Labeled",
    "Labeler",
    "Outputs",
    "Reading",
    "Step",
    "collection_digest",
    "count_batches",
    "failure",
    "failures_by_name",
    "finished_batches",
    "load_image",
    "plan_batches",
    "read_records",
    "write_records",
    "written",
]


@dataclass(frozen=True)
class ImageBatch:
    """Photographs that go through the model together.

    Attributes:
        number: from 0.
        first: the place of its first image in the collection.
        photographs: consecutive ones.
    """

    number: int
    first: int
    photographs: tuple[LabeledImage, ...]

    def __iter__(self) -> Iterator[tuple[int, LabeledImage]]:
        """Each image with its place in the collection."""
        return enumerate(self.photographs, self.first)


def plan_batches(collection: Collection, batch_size: int, shard: Shard) -> list[ImageBatch]:
    """The batches of one part of a collection.

    Args:
        collection: in its order.
        batch_size: photographs of each batch but the last.
        shard: every ``count``-th batch is taken.

    Raises:
        ValueError: if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    numbers = range(shard.index, count_batches(len(collection), batch_size), shard.count)
    return [_batch(number, batch_size, collection.images) for number in numbers]


def count_batches(photographs: int, batch_size: int) -> int:
    """How many batches so many images make."""
    return -(-photographs // batch_size)


def collection_digest(collection: Collection) -> str:
    """SHA-256 of names and classes, in order: the same if and only if the batches hold the same."""
    digest = hashlib.sha256()
    for photograph in collection:
        digest.update(f"{photograph.name}\0{photograph.classes}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _batch(number: int, size: int, photographs: Sequence[LabeledImage]) -> ImageBatch:
    first = number * size
    return ImageBatch(number, first, tuple(photographs[first : first + size]))


@dataclass(frozen=True)
class Reading:
    """An image that was read.

    Attributes:
        position: its place in the collection, from 0.
        photograph: what is known of it.
        image: ``(H, W, 3)`` uint8.
        seconds: that it took.
    """

    position: int
    photograph: LabeledImage
    image: npt.NDArray[np.uint8]
    seconds: float


def load_image(position: int, photograph: LabeledImage, max_pixels: int | None) -> Reading:
    """First step, in whatever thread, process or machine.

    Raises:
        ImageReadError: if the image cannot be read.
    """
    begun = time.perf_counter()
    image = np.asarray(read_image(photograph.path, max_pixels=max_pixels))
    return Reading(position, photograph, image, time.perf_counter() - begun)


def failure(photograph: LabeledImage, reason: str) -> dict[str, Any]:
    """The line of the manifest of an image that could not be read."""
    return {"name": photograph.name, "photograph": str(photograph.path), "error": reason}


_FOLDER = "parts"


@dataclass(frozen=True)
class Labeled:
    """What is to be written for an image.

    Attributes:
        record: its line of the manifest.
        files: contents by name.
    """

    record: Mapping[str, Any]
    files: Mapping[str, bytes]


def written(storage: Storage, labeled: Labeled) -> Mapping[str, Any]:
    """Write the files of an image.

    Returns:
        Its line of the manifest.

    Raises:
        OSError: if they cannot be written.
    """
    begun = time.perf_counter()
    for name, content in labeled.files.items():
        storage.write(name, content)
    seconds = labeled.record["seconds"]
    # What came before, its encoding, belongs to it.
    total = seconds["write"] + time.perf_counter() - begun
    return {**labeled.record, "seconds": {**seconds, "write": round(total, 4)}}


def write_records(storage: Storage, number: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Declare a batch finished.

    Args:
        storage: where all files of its images are already.
        number: of the batch.
        records: the lines of its images.

    Raises:
        OSError: if they cannot be written.
    """
    storage.write(f"{_FOLDER}/{_name(number)}", b"".join(map(json_bytes, records)))


def finished_batches(storage: Storage) -> set[int]:
    """Numbers of the batches that are finished, by whichever process."""
    return {int(name.split(".")[0]) for name in storage.names(_FOLDER) if name.endswith(".jsonl")}


def read_records(storage: Storage, number: int) -> bytes:
    """The lines of a finished batch.

    Raises:
        FileNotFoundError: if it is not finished.
    """
    return storage.read(f"{_FOLDER}/{_name(number)}")


def failures_by_name(lines: bytes) -> dict[str, str]:
    """Why images of the batch could not be read, by their names."""
    records = (json.loads(line) for line in lines.splitlines())
    return {record["name"]: record["error"] for record in records if "error" in record}


def _name(number: int) -> str:
    return f"{number:08d}.jsonl"


_DIGITS = 6


@dataclass(frozen=True)
class Outputs:
    """What is written beside the label maps.

    Attributes:
        maps: whether ``maps/NAME.npz`` is: ``maps`` ``(K, H, W)`` of the ``classes`` ``(K,)``, and ``probabilities``
            ``(1 + K, H, W)`` of background and classes, all float16.
        overlays: ``overlays/NAME.jpg`` of every so many images; 0: of none.

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
class Step:
    """An image between the steps.

    Attributes:
        reading: as it was read.
        found: on its canvas, then with label probabilities. None: it is known to show no class.
        seconds: by the name of the step.
    """

    reading: Reading
    found: PreparedImage | AttributedImage | None
    seconds: Mapping[str, float]


class Labeler:
    """The further steps: they need the model, or its settings.

    Attributes:
        segmenter, outputs: as given.
    """

    def __init__(self, segmenter: Segmenter, outputs: Outputs = Outputs()) -> None:
        """Take a segmenter, on the device where it is to run."""
        self.segmenter = segmenter
        self.outputs = outputs

    def prepared(self, reading: Reading) -> Step:
        """Second step, in whatever thread: onto the canvas."""
        begun = time.perf_counter()
        classes = reading.photograph.classes
        found = self.segmenter.prepare_image(reading.image, classes) if classes else None
        return Step(reading, found, {"read": reading.seconds + time.perf_counter() - begun})

    def attributed(self, steps: Sequence[Step]) -> list[Step]:
        """Third step, with the model: class maps, background, CRF, of images that go through it together.

        Args:
            steps: of :meth:`prepared`.
        """
        begun = time.perf_counter()
        showing = [step.found for step in steps if isinstance(step.found, PreparedImage)]
        found = iter(self.segmenter.attribute_batch(showing) if showing else ())
        results = [step if step.found is None else replace(step, found=next(found)) for step in steps]
        # Of the batch, in equal shares; on a GPU some of it shows in the next step, which waits for the values.
        share = (time.perf_counter() - begun) / len(steps)
        return [replace(step, seconds={**step.seconds, "label": share}) for step in results]

    def finished(self, step: Step) -> Labeled:
        """Last step, in whatever thread: at the size of the image, as the content of files.

        Args:
            step: of :meth:`attributed`.
        """
        begun = time.perf_counter()
        reading, name = step.reading, step.reading.photograph.name
        if isinstance(step.found, AttributedImage):
            result = restore_segmentation(step.found)
            labels, described = result.display_labels(), _described(result)
        else:
            result = None
            labels = np.zeros(reading.image.shape[:2], dtype=np.int64)
            described = {"classes": [], "confidence": 1.0}
        written = {"labels": (f"labels/{name}.png", _encoded(label_image(labels), "PNG"))}
        if self.outputs.overlays and reading.position % self.outputs.overlays == 0:
            picture = Image.fromarray(reading.image) if result is None else result.overlay()
            written["overlay"] = (f"overlays/{name}.jpg", _encoded(picture, "JPEG", quality=90))
        if self.outputs.maps:
            written["maps"] = (f"maps/{name}.npz", _arrays(result, labels.shape))
        seconds = {**step.seconds, "write": time.perf_counter() - begun}
        record = {
            "name": name,
            "photograph": str(reading.photograph.path),
            **{kind: file for kind, (file, _) in written.items()},
            "size": list(labels.shape),
            **described,
            "seconds": {part: round(value, 4) for part, value in seconds.items()},
        }
        return Labeled(record, dict(written.values()))


def _described(result: Segmentation) -> dict[str, Any]:
    classes = [
        {
            "class": c,
            "name": name,
            "value": value,
            "score": round(float(result.class_maps.scores[0, c]), _DIGITS),
            "share": round(float((result.labels == c + 1).float().mean()), _DIGITS),
        }
        for c, name, value in zip(result.classes, result.names, result.label_values, strict=True)
    ]
    return {"classes": classes, "confidence": round(float(result.probabilities.amax(dim=0).mean()), _DIGITS)}


def _arrays(result: Segmentation | None, size: Sequence[int]) -> bytes:
    if result is None:
        maps, classes, probabilities = np.zeros((0, *size)), np.zeros(0, np.int64), np.ones((1, *size))
    else:
        maps = result.class_maps.of_classes(result.classes).numpy()
        classes = np.array(result.classes, dtype=np.int64)
        probabilities = result.probabilities.numpy()
    buffer = io.BytesIO()
    half = np.float16
    np.savez_compressed(buffer, maps=maps.astype(half), classes=classes, probabilities=probabilities.astype(half))
    return buffer.getvalue()


def _encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()

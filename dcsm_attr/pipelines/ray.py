"""Engine for a cluster: Ray Data does the scheduling, the retries and the autoscaling.

A row of the data set is a batch; its values are numbers and pickled bytes. Three pools of actors process it:
``_Reader`` reads the images, ``_ModelActor`` labels them, ``_Writer`` writes the files.
"""

import json
import math
import pickle
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.io import Storage, is_uri
from dcsm_attr.pipelines.batches import (
    ImageBatch,
    LabeledFiles,
    Labeler,
    LoadedImage,
    failure_record,
    load_image,
    write_image_files,
    write_records,
)
from dcsm_attr.pipelines.local import FinishedBatch, Job

__all__ = ["RayEngine"]

# With more blocks of rows, Ray spends its time on scheduling.
_MAX_BLOCKS = 4096
# Images of a batch that are read or written at once: decoding releases Python's lock, and object stores are slow to
# answer.
_NUM_THREADS = 8

_Row = dict[str, Any]


@dataclass(frozen=True)
class RayEngine:
    """Process batches on Ray, with pools of actors that read, that hold the model, and that write.

    The cluster is that of ``RAY_ADDRESS``, or a local one that lives as long as the program. The package and the images
    must be available on its machines.

    If a machine or process dies, Ray processes its rows again. Files appear only when they are complete, so that
    writing them twice does no harm.

    Attributes:
        actors: smallest and largest number of actors that hold the model; there are half as many readers, and half as
            many writers.
        cpus: cores per actor that holds the model.
        gpus: GPUs per such actor; with a fraction, several actors share one.

    Raises:
        ValueError: if ``actors`` are not two ascending positive numbers, or a number is negative.
    """

    actors: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        smallest, largest = self.actors
        if not 1 <= smallest <= largest:
            raise ValueError(f"actors must be two numbers, 1 <= smallest <= largest; got {self.actors}.")
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if value < 0:
                raise ValueError(f"{name} of an actor must not be negative, got {value}.")

    def __call__(self, job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
        """See :class:`dcsm_attr.pipelines.local.Engine`.

        Raises:
            ImportError: if Ray is missing.
        """
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ImportError("--engine ray needs Ray: pip install 'dcsm_attr[ray]'.") from error
        if not batches:
            return
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        # The run has its own progress bar.
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"number": batch.number, "images": pickle.dumps(list(batch))} for batch in batches]
        num_blocks = min(len(rows), _MAX_BLOCKS)

        def pool(share: float) -> Any:
            smallest, largest = (min(num_blocks, math.ceil(share * number)) for number in self.actors)
            return ray.data.ActorPoolStrategy(min_size=smallest, max_size=largest)

        # Readers and writers reserve no core: if the model actors have reserved all cores, the run would wait forever.
        # They are actors, not tasks: Ray ends an idle process of tasks without a core, and the next one would import
        # PyTorch again. They use threads, so that one of each serves two models.
        without_core: dict[str, Any] = {"compute": pool(0.5), "num_cpus": 0}
        # Ray's annotations accept functions only, not classes.
        data: Any = ray.data.from_items(rows, override_num_blocks=num_blocks)
        finished = (
            data.map(_Reader, fn_constructor_args=(job.max_pixels, Path.cwd()), **without_core)
            .map(_ModelActor, fn_constructor_args=(job,), compute=pool(1.0), num_cpus=self.cpus, num_gpus=self.gpus)
            .map(_Writer, fn_constructor_args=(job.storage,), **without_core)
        )
        for row in finished.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield FinishedBatch(row["number"], json.loads(row["records"]))


class _Reader:
    """Reads the images of a batch, several at once."""

    def __init__(self, max_pixels: int | None, folder: Path) -> None:
        """Take the largest number of pixels of an image, and the folder to which paths are relative."""
        self._max_pixels, self._folder = max_pixels, folder

    def __call__(self, row: _Row) -> _Row:
        """Replace the images by their pixels, or by the lines of the manifest of those that cannot be read."""
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            loaded = list(threads.map(self._load, pickle.loads(row["images"])))
        return {"number": row["number"], "loaded": pickle.dumps(loaded)}

    def _load(self, image: tuple[int, LabeledImage]) -> LoadedImage | dict[str, Any]:
        position, item = image
        # The manifest has paths as they were given, relative to where the run was started.
        path = item.path if is_uri(item.path) else self._folder / item.path
        try:
            return replace(load_image(position, replace(item, path=path), self._max_pixels), item=item)
        except ImageReadError as error:
            return failure_record(item, str(error))


class _ModelActor:
    """Holds the model and labels the images of a batch."""

    def __init__(self, job: Job) -> None:
        self._labeler = Labeler(job.build_segmenter(), job.outputs)

    def __call__(self, row: _Row) -> _Row:
        images = pickle.loads(row["loaded"])
        pending = [self._labeler.prepare(image) for image in images if isinstance(image, LoadedImage)]
        labeled = iter(self._labeler.attribute(pending) if pending else ())
        results = [self._labeler.finish(next(labeled)) if isinstance(image, LoadedImage) else image for image in images]
        return {"number": row["number"], "results": pickle.dumps(results)}


class _Writer:
    """Writes the files of a batch, several at once, and marks it as finished."""

    def __init__(self, storage: Storage) -> None:
        """Take the storage to write to."""
        self._storage = storage

    def __call__(self, row: _Row) -> _Row:
        """Replace the contents of files by the lines of the manifest, or by the error."""
        results, number = pickle.loads(row["results"]), row["number"]
        try:
            with ThreadPoolExecutor(_NUM_THREADS) as threads:
                records = list(threads.map(self._write, results))
            write_records(self._storage, number, records)
        except OSError as error:
            # Returned as a value: Ray would wrap the text of an exception in its own.
            return {"number": number, "records": "", "error": pickle.dumps(error)}
        return {"number": number, "records": json.dumps(records), "error": b""}

    def _write(self, result: LabeledFiles | Mapping[str, Any]) -> Mapping[str, Any]:
        return write_image_files(self._storage, result) if isinstance(result, LabeledFiles) else result

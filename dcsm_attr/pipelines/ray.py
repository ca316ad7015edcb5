"""The actors of a cluster that do without the model: they read and write.

Apart from the engine, so that what they import is little: not torchvision, nor what captum brings.

The engine of a cluster: Ray Data, of which everything that is distributed is: scheduling, retries, autoscaling.
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
    Labeled,
    Labeler,
    Reading,
    failure,
    load_image,
    write_records,
    written,
)
from dcsm_attr.pipelines.local import FinishedBatch, Job

__all__ = ["RayEngine", "Reader", "Row", "Writer"]


# Photographs of a batch that are read, or written, at once: decoding leaves Python's lock, and an object store answers
# late.
_THREADS = 8

#: A batch, as Ray Data has it: numbers and bytes by name.
Row = dict[str, Any]


class Reader:
    """A batch, to its images; several are read at once."""

    def __init__(self, max_pixels: int | None, here: Path) -> None:
        """Take the size of an image at most, and the folder that paths are relative to."""
        self._max_pixels, self._here = max_pixels, here

    def __call__(self, row: Row) -> Row:
        """Read what can be read."""
        with ThreadPoolExecutor(_THREADS) as threads:
            readings = list(threads.map(self._read, pickle.loads(row["photographs"])))
        return {"number": row["number"], "readings": pickle.dumps(readings)}

    def _read(self, item: tuple[int, LabeledImage]) -> Reading | dict[str, Any]:
        position, photograph = item
        try:
            # Paths are told as they were given, and read from where they were given.
            path = photograph.path if is_uri(photograph.path) else self._here / photograph.path
            found = load_image(position, replace(photograph, path=path), self._max_pixels)
            return replace(found, photograph=photograph)
        except ImageReadError as error:
            return failure(photograph, str(error))


class Writer:
    """The content of the files of a batch, to its lines of the manifest; several files are written at once."""

    def __init__(self, storage: Storage) -> None:
        """Take the place to write to."""
        self._storage = storage

    def __call__(self, row: Row) -> Row:
        """Write, and vouch for it; an error is told as a value."""
        results, number = pickle.loads(row["results"]), row["number"]
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                records = list(threads.map(self._record, results))
            write_records(self._storage, number, records)
        except OSError as error:
            # As a value: an exception would come back as text within Ray's own.
            return {"number": number, "records": "", "error": pickle.dumps(error)}
        return {"number": number, "records": json.dumps(records), "error": b""}

    def _record(self, result: Labeled | Mapping[str, Any]) -> Mapping[str, Any]:
        return written(self._storage, result) if isinstance(result, Labeled) else result


# Work is handed out in so many pieces at most: with more, Ray is busy with itself.
_BLOCKS = 4096


@dataclass(frozen=True)
class RayEngine:
    """Do a job on Ray: pools of actors that read, that hold the model, and that write.

    The cluster is that of ``RAY_ADDRESS``, or one on this machine that lives as long as the program. The package, and
    the files that are read, must be there on its machines.

    A row of the data is a batch. A machine or process that dies loses the rows that it was at, which Ray does again;
    files are written whole, so that doing it twice does no harm.

    Attributes:
        actors: the smallest and the largest number of those that hold the model; there are half as many readers,
            and half as many writers.
        cpus: cores of an actor that holds the model.
        gpus: of such an actor; may be a fraction, so that several share one.

    Raises:
        ValueError: if ``actors`` are not two ascending positive numbers, or a number is negative.
    """

    actors: tuple[int, int] = (1, 1)
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        least, most = self.actors
        if not 1 <= least <= most:
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
        # The run has its own bar.
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = [{"number": batch.number, "photographs": pickle.dumps(list(batch))} for batch in batches]
        blocks = min(len(rows), _BLOCKS)

        def pool(share: float) -> Any:
            least, most = (min(blocks, math.ceil(share * number)) for number in self.actors)
            return ray.data.ActorPoolStrategy(min_size=least, max_size=most)

        # Readers and writers count as no core: where the models have taken all, a run would wait for ever. They are
        # actors, not tasks: Ray ends the process of a task without a core when it is idle, and a new one imports
        # PyTorch anew. They have threads, so that one serves two models.
        without_core: dict[str, Any] = {"compute": pool(0.5), "num_cpus": 0}
        # Ray's annotations know functions only, not classes.
        data: Any = ray.data.from_items(rows, override_num_blocks=blocks)
        finished = (
            data.map(Reader, fn_constructor_args=(job.max_pixels, Path.cwd()), **without_core)
            .map(_Model, fn_constructor_args=(job,), compute=pool(1.0), num_cpus=self.cpus, num_gpus=self.gpus)
            .map(Writer, fn_constructor_args=(job.storage,), **without_core)
        )
        for row in finished.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield FinishedBatch(row["number"], json.loads(row["records"]))


class _Model:
    """Holds the model; from photographs to the content of their files."""

    def __init__(self, job: Job) -> None:
        self._labeler = Labeler(job.recipe(), job.outputs)

    def __call__(self, row: Row) -> Row:
        readings = pickle.loads(row["readings"])
        steps = [self._labeler.prepared(one) for one in readings if isinstance(one, Reading)]
        found = iter(self._labeler.attributed(steps) if steps else ())
        results = [self._labeler.finished(next(found)) if isinstance(one, Reading) else one for one in readings]
        return {"number": row["number"], "results": pickle.dumps(results)}

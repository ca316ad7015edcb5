"""The engine of a cluster: Ray Data, of which everything that is distributed is: scheduling, retries, autoscaling."""

import json
import pickle
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dcsm_attr.images import ImageReadError
from dcsm_attr.pipelines.batch_files import write_records, written
from dcsm_attr.pipelines.engine import FinishedBatch, Job
from dcsm_attr.pipelines.labeller import Labelled, Labeller, Reading, failure, read_photograph
from dcsm_attr.pipelines.plan import PhotographBatch
from dcsm_attr.storage import Storage, is_uri

__all__ = ["OnRay"]

# Work is handed out in so many pieces at most: with more, Ray is busy with itself.
_BLOCKS = 4096

# For each actor, tasks at once. They count as no core: where actors have taken all, a run would wait for ever.
_READERS = 4
_WRITERS = 2

_Row = dict[str, Any]


@dataclass(frozen=True)
class OnRay:
    """Do a job on Ray: tasks that read, a pool of actors that hold the model, tasks that write.

    The cluster is that of ``RAY_ADDRESS``, or one on this machine that lives as long as the program. The package, and
    the files that are read, must be there on its machines.

    A row of the data is a batch. A machine or process that dies loses the rows that it was at, which Ray does again;
    files are written whole, so that doing it twice does no harm.

    Attributes:
        actors: the smallest and the largest number of them.
        cpus: of an actor, cores.
        gpus: of an actor; may be a fraction, so that several share one.
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

    def __call__(self, job: Job, batches: Sequence[PhotographBatch]) -> Generator[FinishedBatch, None, None]:
        """See :class:`dcsm_attr.pipelines.engine.Engine`.

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
        rows = [{"batch": pickle.dumps(batch)} for batch in batches]
        blocks = min(len(rows), _BLOCKS)
        readers, writers = (min(blocks, each * self.actors[1]) for each in (_READERS, _WRITERS))
        finished = (
            ray.data.from_items(rows, override_num_blocks=blocks)
            .map(partial(_read, max_pixels=job.max_pixels, here=Path.cwd()), num_cpus=0, concurrency=readers)
            .map_batches(
                _Actor,
                fn_constructor_args=(job,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(min_size=self.actors[0], max_size=self.actors[1]),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            .map(partial(_write, storage=job.storage), num_cpus=0, concurrency=writers)
        )
        for row in finished.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield FinishedBatch(row["number"], json.loads(row["records"]))


def _read(row: _Row, max_pixels: int | None, here: Path) -> _Row:
    batch: PhotographBatch = pickle.loads(row["batch"])
    readings: list[Reading | dict[str, Any]] = []
    for position, photograph in batch:
        try:
            # Paths are told as they were given, and read from where they were given.
            path = photograph.path if is_uri(photograph.path) else here / photograph.path
            found = read_photograph(position, replace(photograph, path=path), max_pixels)
            readings.append(replace(found, photograph=photograph))
        except ImageReadError as error:
            readings.append(failure(photograph, str(error)))
    return {"number": batch.number, "readings": pickle.dumps(readings)}


class _Actor:
    """Holds the model; from photographs to the content of their files."""

    def __init__(self, job: Job) -> None:
        self._labeller = Labeller(job.recipe(), job.outputs)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        readings = pickle.loads(rows["readings"][0])
        steps = [self._labeller.prepared(one) for one in readings if isinstance(one, Reading)]
        found = iter(self._labeller.attributed(steps) if steps else ())
        results = [self._labeller.finished(next(found)) if isinstance(one, Reading) else one for one in readings]
        return {"number": [rows["number"][0]], "results": [pickle.dumps(results)]}


def _write(row: _Row, storage: Storage) -> _Row:
    results = pickle.loads(row["results"])
    try:
        records = [written(storage, result) if isinstance(result, Labelled) else result for result in results]
        write_records(storage, row["number"], records)
    except OSError as error:
        # As a value: an exception would come back as text within Ray's own.
        return {"number": row["number"], "records": "", "error": pickle.dumps(error)}
    return {"number": row["number"], "records": json.dumps(records), "error": b""}

"""Engines of one machine: this process, whose steps overlap, or several processes.

What does the work of a run: this process, several, or a cluster.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.io import Storage
from dcsm_attr.pipelines.batches import (
    ImageBatch,
    Labeler,
    Outputs,
    Step,
    failure,
    load_image,
    write_records,
    written,
)
from dcsm_attr.segmentation.segmenter import Segmenter
from dcsm_attr.segmentation.stream import run_pipeline

__all__ = ["Engine", "FinishedBatch", "Job", "MultiprocessEngine", "SegmenterFactory", "local_engine"]


#: Builds the segmenter, on the device where it is to run, from nothing: it is called where the work is done.
SegmenterFactory = Callable[[], Segmenter]


@dataclass(frozen=True)
class Job:
    """What is to be done with each batch; it can be sent to other processes if its parts can.

    Attributes:
        recipe: of the segmenter.
        outputs: what is written.
        storage: where.
        max_pixels: of an image, see :func:`dcsm_attr.datasets.images.read_image`.
    """

    recipe: SegmenterFactory
    outputs: Outputs
    storage: Storage
    max_pixels: int | None = None


@dataclass(frozen=True)
class FinishedBatch:
    """A batch whose files are written.

    Attributes:
        number: of the batch.
        records: the lines of its images.
    """

    number: int
    records: Sequence[Mapping[str, Any]]


class Engine(Protocol):
    """A way to do a job."""

    def __call__(self, job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
        """Do the job, and write the files.

        Returns:
            The batches, as they are finished, in any order. Closed before its end, it ends what it began.
        """
        ...


# So often in a row, without a batch finished between, processes may die before the run gives up.
_MAX_WORKER_DEATHS = 3


def local_engine(job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
    """Do a job here: beside a GPU, reading, the model, and writing at once; on the CPU, whose cores it shares, in turn.

    See :class:`dcsm_attr.pipelines.local.Engine`.
    """
    labeler = Labeler(job.recipe(), job.outputs)
    return _finished(labeler, job, batches, labeler.segmenter.num_readers)


def _finished(
    labeler: Labeler, job: Job, batches: Sequence[ImageBatch], workers: int
) -> Generator[FinishedBatch, None, None]:
    def read(item: tuple[int, LabeledImage]) -> Step:
        return labeler.prepared(load_image(*item, job.max_pixels))

    for size, alike in _uniform_batches(batches):
        results = run_pipeline(
            (item for batch in alike for item in batch),
            read,
            labeler.attributed,
            lambda step: written(job.storage, labeler.finished(step)),
            batch_size=size,
            workers=workers,
            allowed_errors=ImageReadError,
        )
        with closing(results):
            for batch in alike:
                records = _records(batch, islice(results, size))
                write_records(job.storage, batch.number, records)
                yield FinishedBatch(batch.number, records)


def _uniform_batches(batches: Sequence[ImageBatch]) -> Iterator[tuple[int, list[ImageBatch]]]:
    """The last batch of a collection may be smaller, and the others must keep their borders."""
    sizes = sorted({len(batch.photographs) for batch in batches}, reverse=True)
    return ((size, [batch for batch in batches if len(batch.photographs) == size]) for size in sizes)


def _records(batch: ImageBatch, results: Iterable[Mapping[str, Any] | ImageReadError]) -> list[Mapping[str, Any]]:
    return [
        failure(photograph, str(result)) if isinstance(result, ImageReadError) else result
        for photograph, result in zip(batch.photographs, results, strict=True)
    ]


@dataclass(frozen=True)
class MultiprocessEngine:
    """Do a job in several processes of this machine, which take batches as they come to them.

    GPUs are dealt out in turn; on the CPU each process gets its share of the cores. A process that is killed is
    replaced, and its batch is done again.

    Attributes:
        workers: how many processes.
    """

    workers: int

    def __call__(self, job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
        """See :class:`dcsm_attr.pipelines.local.Engine`.

        Raises:
            ChildProcessError: if processes die again and again.
        """
        left = {batch.number: batch for batch in batches}
        deaths = 0
        while left:
            try:
                for finished in self._run_pool(job, list(left.values())):
                    del left[finished.number]
                    deaths = 0
                    yield finished
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == _MAX_WORKER_DEATHS:
                    raise ChildProcessError(
                        f"{_MAX_WORKER_DEATHS} times in a row, a process was killed before a batch was finished, most "
                        f"likely for want of memory. Fewer workers or a smaller batch take less; the same command "
                        f"goes on."
                    ) from error

    def _run_pool(self, job: Job, batches: Sequence[ImageBatch]) -> Iterator[FinishedBatch]:
        # A process that is forked inherits threads of torch that do not run, and cannot use a GPU.
        context = multiprocessing.get_context("spawn")
        numbers = context.SimpleQueue()
        for number in range(self.workers):
            numbers.put(number)
        pool = ProcessPoolExecutor(self.workers, context, _init_worker, (job, numbers, self.workers))
        try:
            yield from _as_completed(pool, batches, 2 * self.workers)
        finally:
            pool.shutdown(cancel_futures=True)


def _as_completed(pool: ProcessPoolExecutor, batches: Iterable[ImageBatch], ahead: int) -> Iterator[FinishedBatch]:
    left = iter(batches)
    running: set[Future[FinishedBatch]] = {pool.submit(_label, batch) for batch in islice(left, ahead)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            running |= {pool.submit(_label, batch) for batch in islice(left, 1)}
            yield future.result()


class _WorkerState:
    """What a process of the pool has, from its beginning to its end."""

    labeler: Labeler
    job: Job


def _init_worker(job: Job, numbers: Any, workers: int) -> None:
    # The parent process is told of an interruption, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.cuda.is_available():
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _WorkerState.labeler = Labeler(job.recipe(), job.outputs)
    _WorkerState.job = job


def _label(batch: ImageBatch) -> FinishedBatch:
    [finished] = _finished(_WorkerState.labeler, _WorkerState.job, [batch], 0)
    return finished

"""Engines: they process the batches of a run, here in this process or in several processes of this machine.

:class:`dcsm_attr.pipelines.ray.RayEngine` does the same on a cluster.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
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
    PendingImage,
    failure_record,
    load_image,
    process_batches,
    write_image_files,
    write_records,
)
from dcsm_attr.segmentation.segmenter import Segmenter

__all__ = ["Engine", "FinishedBatch", "Job", "MultiprocessEngine", "SegmenterFactory", "local_engine"]


#: Builds the segmenter on the device where it runs; called once in each process that labels images.
SegmenterFactory = Callable[[], Segmenter]


@dataclass(frozen=True)
class Job:
    """What to do with each batch; it can be sent to other processes if its parts can be pickled.

    Attributes:
        build_segmenter: builds the segmenter.
        outputs: what to write.
        storage: where to write.
        max_pixels: images with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
    """

    build_segmenter: SegmenterFactory
    outputs: Outputs
    storage: Storage
    max_pixels: int | None = None


@dataclass(frozen=True)
class FinishedBatch:
    """A batch whose files are written.

    Attributes:
        number: of the batch.
        records: the lines of the manifest of its images.
    """

    number: int
    records: Sequence[Mapping[str, Any]]


class Engine(Protocol):
    """Processes the batches of a run."""

    def __call__(self, job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
        """Label the images of batches and write their files.

        Returns:
            The batches as they are finished, in any order. Closing the generator early stops the work.
        """
        ...


def local_engine(job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
    """Process batches in this process: see :class:`Engine`.

    On a GPU, reading, the model and writing overlap. On the CPU they take turns, because they would share its cores.
    """
    labeler = Labeler(job.build_segmenter(), job.outputs)
    return _process(labeler, job, batches, labeler.segmenter.num_readers)


def _process(
    labeler: Labeler, job: Job, batches: Sequence[ImageBatch], num_readers: int
) -> Generator[FinishedBatch, None, None]:
    def read(position: int, item: LabeledImage) -> PendingImage:
        return labeler.prepare(load_image(position, item, job.max_pixels))

    def finish(image: PendingImage) -> Mapping[str, Any]:
        return write_image_files(job.storage, labeler.finish(image))

    for batch, results in process_batches(batches, read, labeler.attribute, finish, num_readers=num_readers):
        records = [
            failure_record(item, str(result)) if isinstance(result, ImageReadError) else result
            for item, result in zip(batch.items, results, strict=True)
        ]
        write_records(job.storage, batch.number, records)
        yield FinishedBatch(batch.number, records)


# The run ends when processes die this many times in a row without finishing a batch.
_MAX_WORKER_DEATHS = 3


@dataclass(frozen=True)
class MultiprocessEngine:
    """Process batches in several processes of this machine.

    GPUs are assigned to processes in turn; on the CPU each process gets its share of the cores. A process that is
    killed is replaced, and its batch is processed again.

    Attributes:
        workers: number of processes.
    """

    workers: int

    def __call__(self, job: Job, batches: Sequence[ImageBatch]) -> Generator[FinishedBatch, None, None]:
        """See :class:`Engine`.

        Raises:
            ChildProcessError: if processes die repeatedly without finishing a batch.
        """
        unfinished = {batch.number: batch for batch in batches}
        deaths = 0
        while unfinished:
            try:
                for finished in self._run_pool(job, list(unfinished.values())):
                    del unfinished[finished.number]
                    deaths = 0
                    yield finished
            except BrokenProcessPool as error:
                deaths += 1
                if deaths == _MAX_WORKER_DEATHS:
                    raise ChildProcessError(
                        f"{_MAX_WORKER_DEATHS} times in a row, a process was killed before a batch was finished, most "
                        "likely for lack of memory. Use fewer workers or a smaller batch size; the same command "
                        "resumes the run."
                    ) from error

    def _run_pool(self, job: Job, batches: Sequence[ImageBatch]) -> Iterator[FinishedBatch]:
        # A forked process inherits threads of torch that do not run, and cannot use a GPU.
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
    waiting = iter(batches)
    running: set[Future[FinishedBatch]] = {pool.submit(_process_in_worker, batch) for batch in islice(waiting, ahead)}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            running |= {pool.submit(_process_in_worker, batch) for batch in islice(waiting, 1)}
            yield future.result()


class _WorkerState:
    """Global state of a process of the pool."""

    labeler: Labeler
    job: Job


def _init_worker(job: Job, numbers: Any, workers: int) -> None:
    # Ctrl-C reaches the parent process, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch.cuda.is_available():
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _WorkerState.labeler = Labeler(job.build_segmenter(), job.outputs)
    _WorkerState.job = job


def _process_in_worker(batch: ImageBatch) -> FinishedBatch:
    [finished] = _process(_WorkerState.labeler, _WorkerState.job, [batch], 0)
    return finished

"""Runs three steps (read, work, finish) over many items so that the steps overlap, with results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch

__all__ = ["default_num_readers", "run_pipeline"]

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_Worked = TypeVar("_Worked")
_Finished = TypeVar("_Finished")
_AllowedError = TypeVar("_AllowedError", bound=Exception)


def run_pipeline(
    items: Iterable[_Item],
    read: Callable[[_Item], _Read],
    work: Callable[[Sequence[_Read]], Sequence[_Worked]],
    finish: Callable[[_Worked], _Finished],
    *,
    batch_size: int = 4,
    workers: int = 2,
    allowed_errors: type[_AllowedError] | tuple[type[_AllowedError], ...] = (),
) -> Generator[_Finished | _AllowedError, None, None]:
    """Reads items one by one, works on them in batches, and finishes them one by one; lazy and overlapping.

    ``read`` runs in a pool of threads, ``work`` and the iteration over ``items`` in the caller's thread, and ``finish``
    in one further thread, in order. While the caller processes the results of one batch, the next batch is being
    finished and the one after it is being read; at most ``2 * batch_size`` items are ahead of the caller's batch.

    An exception of the items or of a step is raised in the caller's thread, after the results of the previous batches.
    The threads end when the iterator is exhausted, closed, or fails. Thread-local state of torch and Python, such as
    the gradient mode, is the caller's in ``work`` only.

    Args:
        items: consumed only as far as described above.
        read: called for several items at the same time.
        work: returns one value per argument, in order. It receives ``batch_size`` consecutive items (fewer at the end)
            without those for which ``read`` raised an allowed error, and is not called if none are left.
        finish: called for one item at a time.
        batch_size: number of items per batch.
        workers: number of threads that read. 0: no threads; each batch is read, worked on and finished before the next
            one starts.
        allowed_errors: exceptions of ``read`` that are returned in place of the result instead of being raised.

    Returns:
        An iterator with the result of ``finish``, or an allowed exception, for each item in order. The steps start when
        the first result is requested.

    Raises:
        ValueError: if ``batch_size`` is not positive, or ``workers`` is negative.
    """
    for name, number, minimum in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {number}.")

    def read_or_fail(item: _Item) -> _Read | _FailedItem:
        try:
            return read(item)
        except allowed_errors as error:
            return _FailedItem(error)

    if workers == 0:
        return _run_in_turn(items, read_or_fail, work, finish, batch_size)
    return _run_overlapping(items, read_or_fail, work, finish, batch_size, workers)


def default_num_readers(device: torch.device) -> int:
    """Returns the number of threads that read images beside a model: 0 on the CPU, whose cores the model needs."""
    return 0 if device.type == "cpu" else 2


@dataclass(frozen=True)
class _FailedItem:
    """An item whose reading raised an allowed error; it skips the other steps."""

    error: Any  # one of the allowed errors


def _run_in_turn(
    items: Iterable[_Item],
    read: Callable[[_Item], _Read | _FailedItem],
    work: Callable[[Sequence[_Read]], Sequence[_Worked]],
    finish: Callable[[_Worked], _Finished],
    batch_size: int,
) -> Generator[_Finished | _AllowedError, None, None]:
    remaining = iter(items)
    while batch := list(islice(remaining, batch_size)):
        for value in _work_on_readable([read(item) for item in batch], work):
            yield value.error if isinstance(value, _FailedItem) else finish(value)


def _run_overlapping(
    items: Iterable[_Item],
    read: Callable[[_Item], _Read | _FailedItem],
    work: Callable[[Sequence[_Read]], Sequence[_Worked]],
    finish: Callable[[_Worked], _Finished],
    batch_size: int,
    workers: int,
) -> Generator[_Finished | _AllowedError, None, None]:
    with _thread_pool(workers) as readers, _thread_pool(1) as finisher:
        reads = _submit_reads(items, read, readers)
        ahead = deque[Future[_Read | _FailedItem]]()
        previous: list[Future[_Finished] | _FailedItem] = []
        while True:
            try:
                # One batch more than is waited for, so that the readers have work meanwhile.
                ahead.extend(islice(reads, 2 * batch_size - len(ahead)))
                batch = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
                current = [
                    value if isinstance(value, _FailedItem) else finisher.submit(finish, value)
                    for value in _work_on_readable(batch, work)
                ]
            except BaseException:
                yield from _results(previous)
                raise
            yield from _results(previous)
            if not current:
                return
            previous = current


def _work_on_readable(
    batch: Sequence[_Read | _FailedItem], work: Callable[[Sequence[_Read]], Sequence[_Worked]]
) -> Iterator[_Worked | _FailedItem]:
    """Replaces the readable items of a batch by the results of ``work``."""
    readable = [value for value in batch if not isinstance(value, _FailedItem)]
    worked = iter(work(readable) if readable else ())
    return (value if isinstance(value, _FailedItem) else next(worked) for value in batch)


def _submit_reads(
    items: Iterable[_Item], read: Callable[[_Item], _Read], readers: ThreadPoolExecutor
) -> Iterator[Future[_Read]]:
    """Yields a future per item, submitted when it is requested; if the items raise, a last future that failed."""
    try:
        for item in items:
            yield readers.submit(read, item)
    except Exception as error:
        failed = Future[_Read]()
        failed.set_exception(error)
        yield failed


def _results(values: Iterable[Future[_Finished] | _FailedItem]) -> Iterator[_Finished | _AllowedError]:
    for value in values:
        yield value.error if isinstance(value, _FailedItem) else value.result()


@contextmanager
def _thread_pool(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the ``with`` block; at its end, tasks that have not started are canceled."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

"""What an image is between the steps of its segmentation, and the last step.

Three steps over many items, each step at work on other items at the same time, with results in order.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.segmentation.result import Segmentation

__all__ = ["AttributedImage", "PreparedImage", "default_num_readers", "restore_segmentation", "run_pipeline"]


@dataclass(frozen=True)
class PreparedImage:
    """An image that was read and put on its canvas.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        source: its path as it was given; None if it was no file.
        canvas: the canvas.
        known_classes: the classes known to be in it. None: those that are detected.
    """

    image: npt.NDArray[np.uint8]
    source: str | None
    canvas: CanvasImage
    known_classes: Sequence[int] | None


@dataclass(frozen=True)
class AttributedImage:
    """The same with maps and label probabilities, on the device of the model.

    Attributes:
        prepared: as it was prepared.
        class_maps: of all candidates, ``(1, K, S, S)``, on the canvas.
        unrefined: ``(L, h, w)``, the label probabilities where the image lies on it, before the CRF.
        refined: ``(L, h, w)``, after it.
        class_names: of all classes of the model.
        settings: everything that the result depends on, JSON-serializable.
        stream: the queue of the GPU in which all of this is computed; None on other devices.
    """

    prepared: PreparedImage
    class_maps: ClassMaps
    unrefined: Tensor
    refined: Tensor
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]
    stream: torch.cuda.Stream | None


def restore_segmentation(attributed: AttributedImage) -> Segmentation:
    """Bring a result to the size of the image and to the CPU; in whatever thread.

    Args:
        attributed: the result on the canvas.

    Returns:
        The segmentation.
    """
    # Each thread has a stream of its own: in another one, values might be read before they are there.
    with torch.no_grad(), nullcontext() if attributed.stream is None else torch.cuda.stream(attributed.stream):
        canvas, class_maps = attributed.prepared.canvas, attributed.class_maps
        classes = class_maps.classes[0][class_maps.foreground[0]].tolist()
        probabilities = canvas.restore(attributed.refined).cpu()
        return Segmentation(
            image=attributed.prepared.image,
            labels=torch.tensor([0, *(c + 1 for c in classes)], device="cpu")[probabilities.argmax(dim=0)],
            probabilities=probabilities,
            unrefined=canvas.restore(attributed.unrefined).cpu(),
            classes=tuple(classes),
            class_maps=class_maps.mapped(lambda maps: canvas.restore(canvas.crop(maps[0]))[None]).cpu(),
            class_names=attributed.class_names,
            source=attributed.prepared.source,
            fallback=bool(class_maps.nothing_detected[0]),
            settings=attributed.settings,
        )


_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_Worked = TypeVar("_Worked")
_Finished = TypeVar("_Finished")
_AllowedError = TypeVar("_AllowedError", bound=Exception)


def default_num_readers(device: torch.device) -> int:
    """How many threads best read beside a model: none where it runs on the cores that they need."""
    return 0 if device.type == "cpu" else 2


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
    """Read items one by one, work on them in batches, finish them one by one; lazily, and everything at once.

    ``read`` runs in a pool of threads; ``work`` in the thread of the caller, as do the items themselves; ``finish`` in
    a thread of its own, in order. While the caller has the results of one batch, the next batch has been worked on and
    is being finished, and the one after it is being read: never more than ``2 * batch_size`` items are ahead of the
    batch that the caller is at.

    An exception, of the items or of a step, reaches the caller as itself, after the results of the batches before.
    The threads end with the iterator: when it is exhausted, closed, or fails.

    State that torch or Python keep for each thread, such as gradient mode, is that of the caller in ``work`` alone.

    Args:
        items: read from no further than is said above.
        read: called for several items at a time.
        work: returns one value per argument, in order. It receives ``batch_size`` consecutive items (fewer at the end)
            without those for which ``read`` raised an allowed error, and is not called if none are left.
        finish: called for one item at a time.
        batch_size: of ``work``.
        workers: number of threads that read. 0: no threads at all; each batch is read, worked on and finished before
            the next one is begun.
        allowed_errors: exceptions of ``read`` that are returned in place of the result instead of being raised.

    Returns:
        For each item, in order, what ``finish`` gave, or the exception that was allowed. The steps begin when the first
        result is asked for.

    Raises:
        ValueError: if ``batch_size`` is not positive, or ``workers`` is negative.
    """
    for name, number, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    if workers == 0:
        return _in_turn(items, read, work, finish, batch_size, allowed_errors)
    return _pipelined(items, read, work, finish, batch_size, workers, allowed_errors)


@dataclass(frozen=True)
class _FailedItem(Generic[_AllowedError]):
    """What is given in the place of a result, past the further steps."""

    error: _AllowedError


def _in_turn(
    items: Iterable[_Item],
    read: Callable[[_Item], _Read],
    work: Callable[[Sequence[_Read]], Sequence[_Worked]],
    finish: Callable[[_Worked], _Finished],
    batch_size: int,
    allowed_errors: type[_AllowedError] | tuple[type[_AllowedError], ...],
) -> Generator[_Finished | _AllowedError, None, None]:
    left = iter(items)
    while batch := list(islice(left, batch_size)):
        outcomes = [_outcome(read, item, allowed_errors) for item in batch]
        readable = [value for value in outcomes if not isinstance(value, _FailedItem)]
        worked = iter(work(readable) if readable else ())
        for value in outcomes:
            yield value.error if isinstance(value, _FailedItem) else finish(next(worked))


def _outcome(
    read: Callable[[_Item], _Read], item: _Item, allowed_errors: type[_AllowedError] | tuple[type[_AllowedError], ...]
) -> _Read | _FailedItem[_AllowedError]:
    try:
        return read(item)
    except allowed_errors as error:
        return _FailedItem(error)


def _pipelined(
    items: Iterable[_Item],
    read: Callable[[_Item], _Read],
    work: Callable[[Sequence[_Read]], Sequence[_Worked]],
    finish: Callable[[_Worked], _Finished],
    batch_size: int,
    workers: int,
    allowed_errors: type[_AllowedError] | tuple[type[_AllowedError], ...],
) -> Generator[_Finished | _AllowedError, None, None]:
    def begun(
        outcomes: Sequence[_Read | _FailedItem[_AllowedError]],
    ) -> list[Future[_Finished] | _FailedItem[_AllowedError]]:
        readable = [value for value in outcomes if not isinstance(value, _FailedItem)]
        worked = iter(work(readable) if readable else ())
        return [
            value if isinstance(value, _FailedItem) else finisher.submit(finish, next(worked)) for value in outcomes
        ]

    with _threads(workers) as readers, _threads(1) as finisher:
        readings = _readings(items, lambda item: _outcome(read, item, allowed_errors), readers)
        ahead = deque[Future[_Read | _FailedItem[_AllowedError]]]()
        before: list[Future[_Finished] | _FailedItem[_AllowedError]] = []
        while True:
            try:
                # One batch more than is waited for, so that no reader stands still meanwhile.
                ahead.extend(islice(readings, 2 * batch_size - len(ahead)))
                batch = begun([ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))])
            except BaseException:
                yield from _results(before)
                raise
            yield from _results(before)
            if not batch:
                return
            before = batch


def _results(values: Iterable[Future[_Finished] | _FailedItem[_AllowedError]]) -> Iterator[_Finished | _AllowedError]:
    for value in values:
        yield value.error if isinstance(value, _FailedItem) else value.result()


def _readings(
    items: Iterable[_Item], outcome: Callable[[_Item], _Read], readers: ThreadPoolExecutor
) -> Iterator[Future[_Read]]:
    """The reading of each item, which begins when it is asked for; where the items themselves fail, one that failed."""
    try:
        for item in items:
            yield readers.submit(outcome, item)
    except Exception as error:
        failed = Future[_Read]()
        failed.set_exception(error)
        yield failed


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for the block; what none of them has begun at its end is never begun."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)

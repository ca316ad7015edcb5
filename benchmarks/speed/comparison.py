"""One piece of work that several implementations do, and what came out.

Contenders timed in turn, so that what disturbs the machine disturbs all of them.

The peak memory of one piece of work, each in a process of its own.

How the cost grows with the number of classes and of images.
"""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

__all__ = [
    "OURS",
    "Comparison",
    "Outcome",
    "Scaling",
    "Timing",
    "held",
    "measure_peak_memory",
    "peak_memory",
    "time_interleaved",
]


@dataclass(frozen=True)
class Timing:
    """What one implementation took.

    Attributes:
        seconds: of each run, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the runs took longer."""
        return statistics.median(self.seconds)

    def content(self) -> dict[str, float]:
        """Ready for JSON, in seconds."""
        return {"median": self.median, "fastest": min(self.seconds), "slowest": max(self.seconds)}


def time_interleaved(
    implementations: Mapping[str, Callable[[], Any]], rounds: int, *, progress: bool = True
) -> dict[str, Timing]:
    """Run each implementation once to warm it up, then all of them in turn, round by round.

    Args:
        implementations: by name; each does the whole work once, on the CPU or the current GPU.
        rounds: at least 1.
        progress: whether to show a bar.

    Raises:
        ValueError: if there is nothing to run.
    """
    if not implementations or rounds < 1:
        raise ValueError(
            f"at least one implementation and one round are needed, got {len(implementations)} and {rounds}."
        )
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    with tqdm(total=len(implementations) * (rounds + 1), unit="run", disable=not progress, leave=False) as bar:
        for round_ in range(rounds + 1):
            for name, run in implementations.items():
                bar.set_description(name)
                taken = _time(run)
                if round_:
                    seconds[name].append(taken)
                bar.update()
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def _time(run: Callable[[], Any]) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def _nothing() -> None:
    pass


_STATUS = Path("/proc/self/status")


def peak_memory(prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str) -> int:
    """How much more memory was in use at the peak of an implementation's work than before it.

    Args:
        prepare: a function of a module, which gives the implementations. It runs in a new process, so that memory which
            other implementations left behind does not hide what this one needs.
        arguments: of ``prepare``; must pickle.
        name: of the implementation.

    Returns:
        Bytes: of the device's allocator on a GPU; of the process's resident memory elsewhere, 0 where the system does
        not tell it (anywhere but on Linux).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_in_process, prepare, arguments, name).result()


def _measure_in_process(
    prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str
) -> int:
    return measure_peak_memory(prepare(*arguments)[name])


def measure_peak_memory(run: Callable[[], Any]) -> int:
    """How much more memory is in use at the peak of ``run`` than before it, in this process.

    Returns:
        Bytes, as of :func:`peak_memory`; of the first run of its kind in a process, for later ones find memory that is
        free already.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not _STATUS.is_file():
        return 0
    # What preparing left behind goes back to the system, and the high-water mark begins anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Scaling:
    """Times for growing counts, and the straight line through them by least squares.

    Attributes:
        title: for the report.
        what: is counted, in the plural.
        counts: at least two.
        seconds: for each count.
        partial_backward: seconds of one backward pass from the score of a class to the first layer, by plain PyTorch:
            what one more class must cost. None: it says nothing about what is counted.
    """

    title: str
    what: str
    counts: Sequence[int]
    seconds: Sequence[float]
    partial_backward: float | None = None

    @property
    def slope(self) -> float:
        """Seconds for one more."""
        return float(np.polyfit(self.counts, self.seconds, 1)[0])

    @property
    def explained(self) -> float:
        """The share of the variance of the seconds that the line explains."""
        return float(np.corrcoef(self.counts, self.seconds)[0, 1] ** 2)

    def content(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "title": self.title,
            "seconds": dict(zip(map(str, self.counts), self.seconds, strict=True)),
            "seconds for one more": self.slope,
            "explained": self.explained,
            **({} if self.partial_backward is None else {"seconds of a partial backward pass": self.partial_backward}),
        }


#: The name of this package among the implementations.
OURS = "dcsm_attr"


@dataclass(frozen=True)
class Comparison:
    """What is done, and by whom.

    Attributes:
        title: for the report.
        prepare: a function of a module: the work to the implementations, each a function without arguments.
        work: its argument; pickles.
        memory_of: the implementations whose peak memory is measured too.
        exact: a function of the work: what every implementation should give, a tensor. None: that is not asked.
    """

    title: str
    prepare: Callable[[Any], Mapping[str, Callable[[], Any]]]
    work: Any
    memory_of: Sequence[str] = ()
    exact: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out of a comparison.

    Attributes:
        title: of the comparison.
        timings: by implementation.
        memory: peak memory in bytes, by implementation, of those for which it was asked.
        errors: the largest difference from what is exact, by implementation, if that is known.
    """

    title: str
    timings: Mapping[str, Timing]
    memory: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """How many times as long as ours an implementation took, by medians."""
        return self.timings[name].median / self.timings[OURS].median


def held(comparison: Comparison, rounds: int, *, memory: bool = True, progress: bool = True) -> Outcome:
    """Hold a comparison.

    Args:
        comparison: whose implementations run in turn.
        rounds: how often each runs, after one run to warm up.
        memory: whether to measure peak memory too, in a process of its own for each.
        progress: whether to show a bar.
    """
    implementations = comparison.prepare(comparison.work)
    timings = time_interleaved(implementations, rounds, progress=progress)
    asked = [name for name in comparison.memory_of if memory and name in implementations]
    return Outcome(
        comparison.title,
        timings,
        {name: peak_memory(comparison.prepare, (comparison.work,), name) for name in asked},
        {} if comparison.exact is None else _errors(implementations, comparison.exact(comparison.work)),
    )


def _errors(implementations: Mapping[str, Callable[[], Any]], exact: Tensor) -> dict[str, float]:
    return {name: (run() - exact).abs().max().item() for name, run in implementations.items()}

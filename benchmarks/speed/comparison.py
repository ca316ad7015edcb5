"""Compare implementations of the same work: interleaved timing, peak memory, deviation from the exact result.

Implementations run in turn, so that a disturbance of the machine affects all of them alike. Peak memory is measured in
a separate process per implementation. :class:`Scaling` fits a line through the times for growing amounts of work.
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
    "measure_peak_memory",
    "peak_memory",
    "run_comparison",
    "time_interleaved",
]

#: The name of this package among the implementations.
OURS = "dcsm_attr"

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Comparison:
    """Work and the implementations that are compared on it.

    Attributes:
        title: for the report.
        prepare: a module-level function from the work to implementations, each a function without arguments.
        work: argument of ``prepare``; can be pickled.
        memory_of: names of the implementations whose peak memory is measured.
        exact: a function from the work to the tensor that every implementation should return. None: not compared.
    """

    title: str
    prepare: Callable[[Any], Mapping[str, Callable[[], Any]]]
    work: Any
    memory_of: Sequence[str] = ()
    exact: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class Timing:
    """Times of one implementation.

    Attributes:
        seconds: one value per run, in order.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, float]:
        """Return median, fastest and slowest run in seconds, for JSON."""
        return {"median": self.median, "fastest": min(self.seconds), "slowest": max(self.seconds)}


@dataclass(frozen=True)
class Outcome:
    """Result of a comparison.

    Attributes:
        title: title of the comparison.
        timings: by implementation.
        memory: peak memory in bytes, by implementation, where it was measured.
        errors: largest absolute difference from the exact result, by implementation, if this is known.
    """

    title: str
    timings: Mapping[str, Timing]
    memory: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """Return the median time of an implementation, as a multiple of that of this package."""
        return self.timings[name].median / self.timings[OURS].median


def run_comparison(comparison: Comparison, rounds: int, *, memory: bool = True, progress: bool = True) -> Outcome:
    """Run a comparison.

    Args:
        comparison: its implementations run in turn.
        rounds: number of timed runs of each implementation, after one warm-up run.
        memory: whether to measure peak memory too, in a separate process per implementation.
        progress: whether to show a bar.
    """
    implementations = comparison.prepare(comparison.work)
    timings = time_interleaved(implementations, rounds, progress=progress)
    names = [name for name in comparison.memory_of if memory and name in implementations]
    peaks = {name: peak_memory(comparison.prepare, (comparison.work,), name) for name in names}
    errors = {}
    if comparison.exact is not None:
        exact = comparison.exact(comparison.work)
        errors = {name: (run() - exact).abs().max().item() for name, run in implementations.items()}
    return Outcome(comparison.title, timings, peaks, errors)


def time_interleaved(
    implementations: Mapping[str, Callable[[], Any]], rounds: int, *, progress: bool = True
) -> dict[str, Timing]:
    """Run each implementation once as a warm-up, then all of them in turn, round by round.

    Args:
        implementations: by name; each does the whole work once, on the CPU or the current GPU.
        rounds: at least 1.
        progress: whether to show a bar.

    Raises:
        ValueError: if there are no implementations or no rounds.
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
                elapsed = _time(run)
                if round_:
                    seconds[name].append(elapsed)
                bar.update()
    return {name: Timing(tuple(elapsed)) for name, elapsed in seconds.items()}


def _time(run: Callable[[], Any]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str) -> int:
    """Measure by how much memory grows at the peak of an implementation's run.

    Args:
        prepare: a module-level function that returns the implementations. It runs in a new process, so that memory that
            other implementations have allocated does not hide what this one needs.
        arguments: arguments of ``prepare``; can be pickled.
        name: name of the implementation.

    Returns:
        Bytes: of the device's allocator on a GPU; of the process's resident memory elsewhere, 0 where the system does
        not report it (other systems than Linux).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure_in_process, prepare, arguments, name).result()


def _measure_in_process(
    prepare: Callable[..., Mapping[str, Callable[[], Any]]], arguments: tuple[Any, ...], name: str
) -> int:
    return measure_peak_memory(prepare(*arguments)[name])


def measure_peak_memory(run: Callable[[], Any]) -> int:
    """Measure by how much memory grows at the peak of ``run``, in this process.

    Returns:
        Bytes, as :func:`peak_memory`. Only the first run in a process gives the full value: later runs reuse memory
        that the process has freed.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not _STATUS.is_file():
        return 0
    # Return freed memory to the system and reset the high-water mark.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _read_status("VmRSS")
    run()
    return max(0, _read_status("VmHWM") - before)


def _read_status(field_name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field_name}:"))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Scaling:
    """Times for growing counts, and the line through them by least squares.

    Attributes:
        title: for the report.
        unit: what is counted, in the plural.
        counts: at least two.
        seconds: one value per count.
        partial_backward: seconds of one backward pass from the score of a class to the first layer, in plain PyTorch:
            the least that one more class can cost. None: does not apply to what is counted.
    """

    title: str
    unit: str
    counts: Sequence[int]
    seconds: Sequence[float]
    partial_backward: float | None = None

    @property
    def slope(self) -> float:
        """Seconds per additional unit."""
        return float(np.polyfit(self.counts, self.seconds, 1)[0])

    @property
    def r_squared(self) -> float:
        """Share of the variance of the seconds that the line explains."""
        return float(np.corrcoef(self.counts, self.seconds)[0, 1] ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, seconds and the line, for JSON."""
        return {
            "title": self.title,
            "seconds": dict(zip(map(str, self.counts), self.seconds, strict=True)),
            "seconds for one more": self.slope,
            "explained": self.r_squared,
            **({} if self.partial_backward is None else {"seconds of a partial backward pass": self.partial_backward}),
        }

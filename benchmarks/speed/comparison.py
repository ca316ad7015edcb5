"""One piece of work that several implementations do, and what came out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.speed.memory import peak_memory
from benchmarks.speed.timing import Timing, time_interleaved

__all__ = ["OURS", "Comparison", "Outcome", "held"]


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

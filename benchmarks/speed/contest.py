"""One piece of work that several contenders do, and what came out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.speed.memory import peak_memory
from benchmarks.speed.timing import Timing, timed_in_turn

__all__ = ["OURS", "Contest", "Outcome", "held"]


#: The name of this package among the contenders.
OURS = "dcsm_attr"


@dataclass(frozen=True)
class Contest:
    """What is done, and by whom.

    Attributes:
        title: for the report.
        prepare: a function of a module: the work to the contenders, each a function without arguments.
        work: its argument; pickles.
        memory_of: the contenders whose peak memory is measured too.
        exact: a function of the work: what every contender should give, a tensor. None: that is not asked.
    """

    title: str
    prepare: Callable[[Any], Mapping[str, Callable[[], Any]]]
    work: Any
    memory_of: Sequence[str] = ()
    exact: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out of a contest.

    Attributes:
        title: of the contest.
        timings: by contender.
        memory: peak memory in bytes, by contender, of those for which it was asked.
        errors: the largest difference from what is exact, by contender, if that is known.
    """

    title: str
    timings: Mapping[str, Timing]
    memory: Mapping[str, int] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """How many times as long as ours a contender took, by medians."""
        return self.timings[name].median / self.timings[OURS].median


def held(contest: Contest, rounds: int, *, memory: bool = True, progress: bool = True) -> Outcome:
    """Hold a contest.

    Args:
        contest: whose contenders run in turn.
        rounds: how often each runs, after one run to warm up.
        memory: whether to measure peak memory too, in a process of its own for each.
        progress: whether to show a bar.
    """
    contenders = contest.prepare(contest.work)
    timings = timed_in_turn(contenders, rounds, progress=progress)
    asked = [name for name in contest.memory_of if memory and name in contenders]
    return Outcome(
        contest.title,
        timings,
        {name: peak_memory(contest.prepare, (contest.work,), name) for name in asked},
        {} if contest.exact is None else _errors(contenders, contest.exact(contest.work)),
    )


def _errors(contenders: Mapping[str, Callable[[], Any]], exact: Tensor) -> dict[str, float]:
    return {name: (run() - exact).abs().max().item() for name, run in contenders.items()}

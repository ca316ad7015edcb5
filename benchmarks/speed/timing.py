"""Contenders timed in turn, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

__all__ = ["Timing", "time_interleaved"]


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

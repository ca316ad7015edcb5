"""Contenders timed in turn, so that what disturbs the machine disturbs all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

__all__ = ["Timing", "timed_in_turn"]


@dataclass(frozen=True)
class Timing:
    """What one contender took.

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


def timed_in_turn(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, *, progress: bool = True
) -> dict[str, Timing]:
    """Run each contender once to warm it up, then all of them in turn, round by round.

    Args:
        contenders: by name; each does the whole work once, on the CPU or the current GPU.
        rounds: at least 1.
        progress: whether to show a bar.

    Raises:
        ValueError: if there is nothing to run.
    """
    if not contenders or rounds < 1:
        raise ValueError(f"at least one contender and one round are needed, got {len(contenders)} and {rounds}.")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=len(contenders) * (rounds + 1), unit="run", disable=not progress, leave=False) as bar:
        for round_ in range(rounds + 1):
            for name, run in contenders.items():
                bar.set_description(name)
                taken = _timed(run)
                if round_:
                    seconds[name].append(taken)
                bar.update()
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def _timed(run: Callable[[], Any]) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def _nothing() -> None:
    pass

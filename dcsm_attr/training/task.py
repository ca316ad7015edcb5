"""What a training is about: a network, its loss, its photographs, and how it is judged; the loop does the rest."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dcsm_attr.training.batches import BatchPlan, Draw
from dcsm_attr.training.processes import Processes

__all__ = ["Batch", "Task", "Validation", "batches_of"]


class Batch(Protocol):
    """What a step learns from."""

    @property
    def numbers(self) -> Tensor:
        """``(n,)`` int64, which photographs could be read; none, if none could."""
        ...

    @property
    def failures(self) -> tuple[str, ...]:
        """A line for each photograph that could not be read."""
        ...


_Batch = TypeVar("_Batch", bound=Batch)


@dataclass(frozen=True)
class Validation:
    """What was found about the network between two steps.

    Attributes:
        columns: of the log, by name; those that the task says it measures.
        score: the network is kept where it is higher than ever before. None: it is kept anyway.
        failures: a line for each photograph that could not be read.
        error: why nothing could be measured, which ends the training once the failures are written; empty if it could.
    """

    columns: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    failures: Sequence[str] = ()
    error: str = ""


class Task(ABC, Generic[_Batch]):
    """What is learned, by which loss, and from what; how, is the loop's.

    Attributes:
        network: has the parts ``trunk`` and ``head``; trained in place.
        measured: names of the columns that :meth:`validate` adds to the log.
        photographs: to learn from, their number.
        side: of their canvas, in pixels.
        fewest: images that the network can take at once in training.
    """

    measured: tuple[str, ...] = ()
    network: Any
    photographs: int
    side: int
    fewest: int = 1

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What the training depends on beside its settings, ready for JSON."""

    @abstractmethod
    def batches(self, plan: BatchPlan, workers: int) -> "DataLoader[Any]":
        """The batches of a plan; see :func:`batches_of`."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: _Batch, ratio: float) -> Tensor:
        """The loss of one batch.

        Args:
            network: :attr:`network`, or that wrapped for several processes.
            batch: with at least one photograph.
            ratio: that the images are to be resized by.

        Returns:
            Scalar.
        """

    def loss_of_nothing(self, network: nn.Module) -> Tensor:
        """Zero, with zero gradients of all that learns: the share of a process that could read no photograph."""
        empty = torch.zeros(self.fewest, 3, self.side, self.side, device=self.device)
        nothing: Tensor = 0.0 * network(empty).sum()
        return nothing

    def validate(self, processes: Processes, workers: int) -> Validation:
        """Measure the network, which is in evaluation mode, in all processes; by default not at all."""
        return Validation()

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Write the network, the best one so far, into the folder of the run."""


def batches_of(
    dataset: "Dataset[Any]",
    batches: Iterable[list[Draw]],
    workers: int,
    collate: Callable[[list[Any]], Any],
) -> "DataLoader[Any]":
    """Read batches ahead.

    Args:
        dataset: takes a :class:`Draw`.
        batches: of draws.
        workers: processes that read; 0: this one does.
        collate: makes a batch of what the dataset gave.
    """
    # A generator of its own: the loader would draw from the global one, and a resumed run at another point.
    generator = torch.Generator()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        generator=generator,  # type: ignore[arg-type]
    )

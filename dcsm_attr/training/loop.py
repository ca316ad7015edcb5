"""The loop of every training: steps, logs, checkpoints, resuming, several processes.

What a training is about: a network, its loss, its images, and how it is judged; the loop does the rest.
"""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dcsm_attr.attribution.model import fork_rng
from dcsm_attr.io import make_writable_folder, write_json
from dcsm_attr.training.checkpoints import TensorBoardLog, TrainingLog, load_checkpoint, save_checkpoint
from dcsm_attr.training.data import BatchPlan, Draw
from dcsm_attr.training.distributed import Processes, local_device, process_group
from dcsm_attr.training.optimizer import Preset, optimization

__all__ = ["Batch", "Settings", "Task", "Validation", "data_loader", "run_training"]


class Batch(Protocol):
    """What a step learns from."""

    @property
    def numbers(self) -> Tensor:
        """``(n,)`` int64, which images could be read; none, if none could."""
        ...

    @property
    def failures(self) -> tuple[str, ...]:
        """A line for each image that could not be read."""
        ...


_Batch = TypeVar("_Batch", bound=Batch)


@dataclass(frozen=True)
class Validation:
    """What was found about the network between two steps.

    Attributes:
        columns: of the log, by name; those that the task says it measures.
        score: the network is kept where it is higher than ever before. None: it is kept anyway.
        failures: a line for each image that could not be read.
        error: why nothing could be measured, which ends the training once the failures are written; empty if it could.
    """

    columns: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    failures: Sequence[str] = ()
    error: str = ""


class Task(ABC, Generic[_Batch]):
    """What is learned, by which loss, and from what; how, is the loop's.

    Attributes:
        network: has the parts ``backbone`` and ``head``; trained in place.
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
        """What the training depends on beside its settings, JSON-serializable."""

    @abstractmethod
    def batches(self, plan: BatchPlan, workers: int) -> "DataLoader[Any]":
        """The batches of a plan; see :func:`data_loader`."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: _Batch, ratio: float) -> Tensor:
        """The loss of one batch.

        Args:
            network: :attr:`network`, or that wrapped for several processes.
            batch: with at least one image.
            ratio: that the images are to be resized by.

        Returns:
            Scalar.
        """

    def zero_loss(self, network: nn.Module) -> Tensor:
        """Zero, with zero gradients of all that learns: the share of a process that could read no image."""
        empty = torch.zeros(self.fewest, 3, self.side, self.side, device=self.device)
        nothing: Tensor = 0.0 * network(empty).sum()
        return nothing

    def validate(self, processes: Processes, workers: int) -> Validation:
        """Measure the network, which is in evaluation mode, in all processes; by default not at all."""
        return Validation()

    @abstractmethod
    def keep(self, folder: Path) -> None:
        """Write the network, the best one so far, into the folder of the run."""


def data_loader(
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


_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_UNREADABLE_FILE = "unreadable.json"


@dataclass(frozen=True)
class Settings:
    """What a training depends on beside the network and the images.

    Attributes:
        preset: optimizer, rates, steps.
        seed: of the order of the images, mirroring, resizing and dropout.
        frozen_batch_norm: whether the backbone's batch norms keep their statistics and their parameters. Those of a new
            head always learn; their statistics are of each process's share of the batch.
        validate_every: steps between validations, each of which may give the best network.
        mixed_precision: autocast to bfloat16 on a GPU.

    Raises:
        ValueError: if ``validate_every`` is not positive.
    """

    preset: Preset
    seed: int = 0
    frozen_batch_norm: bool = True
    validate_every: int = 100
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, got {self.validate_every}.")


def run_training(
    task: Task[Any],
    folder: str | Path,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 2,
    tensorboard: bool = False,
    progress: bool = True,
) -> None:
    """Train.

    Writes into the folder: ``last.pt``, from which a run that was cut off goes on as if nothing had happened; what the
    task keeps of the best network; ``log.csv``, a line for each validation; ``settings.json``; and
    ``unreadable.json``, why images could not be read, if any. Under ``torchrun``, the processes share each batch.

    Args:
        task: what is learned.
        folder: where to write; a run that stands there is continued.
        settings: of the training.
        device: where to train.
        workers: processes that read photographs ahead; 0: this one reads them.
        tensorboard: whether to write the curves of the log for TensorBoard too, into ``tensorboard`` in the folder.
        progress: whether to show a bar.

    Raises:
        ValueError: if the processes cannot share a batch evenly, or nothing could be read that the network is measured
            on.
        CheckpointError: if the folder holds a run with other settings.
        ImportError: if TensorBoard is asked for and not installed.
        OSError: if the folder cannot be written to.
    """
    # Before the folder: a library that is missing is found out now.
    drawn = ("loss", "learning_rate", *task.measured)
    board = TensorBoardLog(Path(folder) / "tensorboard", drawn) if tensorboard else None
    folder = make_writable_folder(folder)
    device = local_device(torch.device(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with fork_rng(device), process_group(device) as processes:
        run = _Run(task, folder, settings, device, processes, board)
        try:
            run.go(workers, progress)
        finally:
            if board is not None:
                board.close()


class _Run:
    """One training: the network with its optimizer, and how far they are."""

    def __init__(
        self,
        task: Task[Any],
        folder: Path,
        settings: Settings,
        device: torch.device,
        processes: Processes,
        board: TensorBoardLog | None,
    ) -> None:
        self._task = task
        self._folder = folder
        self._settings = settings
        self._device = device
        self._processes = processes
        self._network = task.network.to(device)
        self._optimizer, self._schedule = optimization(self._network, settings.preset)
        self._step = 0
        self._best = -1.0
        self._loss = 0.0
        self._unreadable = 0
        self._failures: list[str] = []
        self._seconds = 0.0
        log = TrainingLog(folder / "log.csv", ("loss", "learning_rate", *task.measured, "seconds", "unreadable"))
        self._logs: list[TrainingLog | TensorBoardLog] = [log] if board is None else [log, board]
        # Lists instead of tuples, as JSON gives them back.
        self._description = json.loads(json.dumps({**task.described(), **asdict(settings)}))

    def go(self, workers: int, progress: bool) -> None:
        """Train from where the folder stands to the end."""
        settings, preset, processes = self._settings, self._settings.preset, self._processes
        torch.manual_seed(settings.seed + processes.rank)
        description = {**self._description, "photographs": self._task.photographs, "processes": processes.count}
        last = self._folder / "last.pt"
        if last.exists():
            self._resume(last, description)
        elif processes.is_first:
            self._truncate_after(0)
            (self._folder / _UNREADABLE_FILE).unlink(missing_ok=True)
            write_json(self._folder / "settings.json", description)
        plan = BatchPlan(
            self._task.photographs,
            preset.batch_size,
            preset.steps,
            settings.seed,
            first=self._step,
            rank=processes.rank,
            processes=processes.count,
        )
        network: nn.Module | None = None
        start = time.perf_counter() - self._seconds
        bar = tqdm(
            self._task.batches(plan, workers),
            initial=self._step,
            total=preset.steps,
            unit="step",
            desc="training",
            disable=not (progress and processes.is_first),
        )
        for batch in bar:
            # The gradients of a distributed network are known at its construction: anew for each phase.
            if network is None or self._step == preset.head_only:
                network = self._set_trainable()
            self._train_step(network, batch, plan.ratio(self._step, preset.ratios), bar.write)
            bar.set_postfix(loss=f"{self._loss:.3f}", refresh=False)
            self._step += 1
            if self._step % settings.validate_every == 0 or self._step == preset.steps:
                self._seconds = time.perf_counter() - start
                self._validate(workers)
                if processes.is_first:
                    self._save(last, description)
                processes.wait()

    def _resume(self, last: Path, description: dict[str, Any]) -> None:
        state = load_checkpoint(last, self._network, self._optimizer, self._schedule, settings=description)
        self._step, self._best = state["step"], state["best"]
        self._loss, self._unreadable, self._seconds = state["loss"], state["unreadable"], state["seconds"]
        self._failures = state["failures"]
        if self._processes.is_first:
            self._truncate_after(self._step)

    def _truncate_after(self, step: int) -> None:
        for log in self._logs:
            log.truncate_after(step)

    def _set_trainable(self) -> nn.Module:
        """Choose what learns: the head alone at first, then everything that may."""
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        for parameter in self._network.backbone.parameters():
            parameter.requires_grad_(self._step >= self._settings.preset.head_only)
        if self._settings.frozen_batch_norm:
            for module in self._network.backbone.modules():
                if isinstance(module, _BATCH_NORMS):
                    for parameter in module.parameters():
                        parameter.requires_grad_(False)
        if self._processes.count == 1:
            only: nn.Module = self._network
            return only
        return DistributedDataParallel(self._network)

    def _training_mode(self) -> None:
        self._network.train()
        if self._step < self._settings.preset.head_only:
            self._network.backbone.eval()
        if self._settings.frozen_batch_norm:
            for module in self._network.backbone.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()

    def _train_step(self, network: nn.Module, batch: Batch, ratio: float, say: Callable[[str], None]) -> None:
        self._unreadable += len(batch.failures)
        self._failures += batch.failures
        for failure in batch.failures:
            say(f"skipped: {failure}")
        self._training_mode()
        self._optimizer.zero_grad(set_to_none=True)
        if len(batch.numbers) or self._processes.count > 1:
            with self._autocast():
                # The other processes wait for this one's gradients.
                readable = len(batch.numbers)
                loss = self._task.loss(network, batch, ratio) if readable else self._task.zero_loss(network)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._settings.preset.gradient_limit is not None:
                nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.preset.gradient_limit)
            self._optimizer.step()
            value = float(loss.detach())
            self._loss = value if self._step == 0 else 0.98 * self._loss + 0.02 * value
        self._schedule.step()

    def _autocast(self) -> Any:
        if self._device.type != "cuda" or not self._settings.mixed_precision:
            return nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def _validate(self, workers: int) -> None:
        processes = self._processes
        self._network.eval()
        found = self._task.validate(processes, workers)
        self._failures = sorted(set(processes.gathered([*self._failures, *found.failures])))
        if processes.is_first and self._failures:
            write_json(self._folder / _UNREADABLE_FILE, {"failures": self._failures})
        if found.error:
            raise ValueError(found.error)
        if not processes.is_first:
            return
        line = {
            "step": self._step,
            "loss": f"{self._loss:.5f}",
            "learning_rate": f"{self._schedule.get_last_lr()[0]:.3g}",
            **{name: f"{value:.5f}" for name, value in found.columns.items()},
            "seconds": f"{self._seconds:.1f}",
            "unreadable": self._unreadable,
        }
        for log in self._logs:
            log.append(line)
        if found.score is None or found.score > self._best:
            self._best = self._best if found.score is None else found.score
            self._task.keep(self._folder)

    def _save(self, path: Path, description: dict[str, Any]) -> None:
        progress = {
            "step": self._step,
            "best": self._best,
            "loss": self._loss,
            "unreadable": self._unreadable,
            "failures": self._failures,
            "seconds": self._seconds,
        }
        save_checkpoint(path, self._network, self._optimizer, self._schedule, progress=progress, settings=description)

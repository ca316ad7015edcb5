"""The training loop of all networks: steps, validations, logs, checkpoints, resuming, several processes.

A :class:`Task` defines what is learned: the network, its images, its loss and its validation. :func:`run_training`
trains it.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from dcsm_attr.attribution.model import fork_rng
from dcsm_attr.io import open_run_folder, write_json
from dcsm_attr.training.checkpoints import TensorBoardLog, TrainingLog, load_checkpoint, save_checkpoint
from dcsm_attr.training.data import Batch, BatchPlan, TrainingImages, data_loader
from dcsm_attr.training.distributed import Processes, local_device, process_group
from dcsm_attr.training.optimizer import Schedule, build_optimizer

__all__ = ["Task", "TrainingSettings", "Validation", "run_training"]


@dataclass(frozen=True)
class TrainingSettings:
    """What a training depends on, other than the network and the images.

    Attributes:
        schedule: optimizer, learning rates, batches and steps.
        seed: random seed of the order of the images, of mirroring, resizing and dropout.
        frozen_batch_norm: whether the backbone's batch norms keep their statistics and parameters. Those of a new head
            always learn; their statistics are of each process's part of the batch.
        validate_every: number of steps between validations, after each of which a checkpoint is written.
        mixed_precision: whether to use autocast to bfloat16 on a GPU.

    Raises:
        ValueError: if ``validate_every`` is not positive.
    """

    schedule: Schedule
    seed: int = 0
    frozen_batch_norm: bool = True
    validate_every: int = 100
    mixed_precision: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, got {self.validate_every}.")


@dataclass(frozen=True)
class Validation:
    """Result of a validation.

    Attributes:
        metrics: columns of the log; their names are :attr:`Task.metric_names`.
        score: the network is saved if this is higher than ever before. None: it is always saved.
        failures: one line per image that could not be read.
        error: why nothing could be measured; it ends the training after the failures are written. Empty if there is
            none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    score: float | None = None
    failures: Sequence[str] = ()
    error: str = ""


class Task(ABC):
    """What is learned: a network, its images, its loss and its validation.

    Attributes:
        network: has the parts ``backbone`` and ``head``; trained in place.
        images: the images to learn from.
        file_name: name of the file that :meth:`save` writes.
        metric_names: names of the columns that :meth:`validate` adds to the log.
    """

    network: Any
    images: TrainingImages
    file_name: str
    metric_names: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        device: torch.device = next(self.network.parameters()).device
        return device

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the training depends on, other than its :class:`TrainingSettings`; JSON-serializable."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, scale: float) -> Tensor:
        """Compute the loss of a batch.

        Args:
            network: :attr:`network`, or its wrapper for several processes.
            batch: at least one image, on the CPU.
            scale: factor to resize the images by.

        Returns:
            Scalar.
        """

    def validate(self, processes: Processes, workers: int) -> Validation:
        """Measure the network, which is in evaluation mode; called in all processes. By default, measure nothing."""
        return Validation()

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the network to a file."""


_CHECKPOINT = "last.pt"
_LOG = "log.csv"
_UNREADABLE = "unreadable.json"
_TENSORBOARD = "tensorboard"


def run_training(
    task: Task,
    folder: str | Path,
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 2,
    tensorboard: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Train the network of a task, or resume its training.

    Writes into the folder: the network (the one with the best score, if the task has scores); ``log.csv``, one line per
    validation; ``settings.json``; ``unreadable.json``, why images could not be read, if any; and the checkpoint
    ``last.pt``. The same call resumes an interrupted training and gives the same network, bit for bit, as one that was
    not interrupted. Under ``torchrun``, the processes share each batch.

    Args:
        task: what is learned.
        folder: where to write, see :func:`dcsm_attr.io.open_run_folder`.
        settings: settings of the training.
        device: where to train.
        workers: number of processes that read images; 0: the current process.
        tensorboard: whether to write the curves of the log for TensorBoard too, into ``tensorboard`` in the folder.
        overwrite: whether to start over if the folder contains a training.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if the folder contains a training with other settings, the processes cannot share a batch evenly, or
            no image for validation could be read.
        CheckpointError: if the checkpoint cannot be read.
        ImportError: if TensorBoard is requested and not installed.
        OSError: if the folder cannot be written to.
    """
    folder = Path(folder)
    # Before the folder is created: a missing library raises here.
    curves = ("loss", "learning_rate", *task.metric_names)
    board = TensorBoardLog(folder / _TENSORBOARD, curves) if tensorboard else None
    device = local_device(torch.device(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with fork_rng(device), process_group(device) as processes:
        if processes.is_first:
            everything = {
                **task.settings(),
                **asdict(settings),
                "num_images": len(task.images),
                "processes": processes.world_size,
            }
            results = (_CHECKPOINT, _LOG, _UNREADABLE, _TENSORBOARD, task.file_name)
            open_run_folder(folder, everything, "a training", results=results, overwrite=overwrite)
        processes.wait()
        log = TrainingLog(folder / _LOG, (*curves, "seconds", "unreadable"))
        try:
            _Loop(task, folder, settings, device, processes, [log] if board is None else [log, board]).run(
                workers, progress
            )
        finally:
            if board is not None:
                board.close()


@dataclass
class _Progress:
    """How far a training is; a part of the checkpoint.

    Attributes:
        step: number of steps that are done.
        best_score: of all validations.
        loss: exponential moving average.
        num_unreadable: number of images of this process that could not be read, counted in each epoch.
        failures: why images could not be read, without repetitions.
        seconds: time spent in training.
    """

    step: int = 0
    best_score: float = -1.0
    loss: float = 0.0
    num_unreadable: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Loop:
    """A training in one process."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        settings: TrainingSettings,
        device: torch.device,
        processes: Processes,
        logs: Sequence[TrainingLog | TensorBoardLog],
    ) -> None:
        self._task = task
        self._folder = folder
        self._settings = settings
        self._schedule = settings.schedule
        self._processes = processes
        self._logs = logs
        self._mixed_precision = settings.mixed_precision and device.type == "cuda"
        self._network = task.network.to(device)
        self._optimizer, self._lr_scheduler = build_optimizer(self._network, settings.schedule)
        self._progress = _Progress()

    def run(self, workers: int, show_bar: bool) -> None:
        """Train from the last checkpoint to the last step."""
        schedule, processes = self._schedule, self._processes
        torch.manual_seed(self._settings.seed + processes.rank)
        self._resume()
        progress = self._progress
        plan = BatchPlan(
            len(self._task.images),
            schedule.batch_size,
            schedule.steps,
            self._settings.seed,
            first_step=progress.step,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        bar = tqdm(
            data_loader(self._task.images, plan, workers),
            initial=progress.step,
            total=schedule.steps,
            unit="step",
            desc="training",
            disable=not (show_bar and processes.is_first),
        )
        network: nn.Module | None = None
        start = time.perf_counter() - progress.seconds
        for batch in bar:
            # DistributedDataParallel reads which parameters are trained when it is constructed.
            if network is None or progress.step == schedule.head_only_steps:
                network = self._trainable_network()
            for failure in batch.failures:
                bar.write(f"skipped: {failure}")
            self._train_step(network, batch, plan.scale(progress.step, schedule.scale_range))
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            progress.step += 1
            if progress.step % self._settings.validate_every == 0 or progress.step == schedule.steps:
                progress.seconds = time.perf_counter() - start
                self._validate(workers)
                if processes.is_first:
                    self._save_checkpoint()
                processes.wait()

    def _resume(self) -> None:
        """Load the last checkpoint, if there is one, and remove what was logged after it."""
        path = self._folder / _CHECKPOINT
        if path.exists():
            self._progress = _Progress(**load_checkpoint(path, self._network, self._optimizer, self._lr_scheduler))
        elif self._processes.is_first:
            (self._folder / _UNREADABLE).unlink(missing_ok=True)
        if self._processes.is_first:
            for log in self._logs:
                log.truncate_after(self._progress.step)

    def _save_checkpoint(self) -> None:
        path, progress = self._folder / _CHECKPOINT, asdict(self._progress)
        save_checkpoint(path, self._network, self._optimizer, self._lr_scheduler, progress)

    def _trainable_network(self) -> nn.Module:
        """Select the parameters to train, those of the head alone at first, and wrap the network for the processes."""
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        for parameter in self._network.backbone.parameters():
            parameter.requires_grad_(self._progress.step >= self._schedule.head_only_steps)
        for module in self._frozen_batch_norms():
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        network: nn.Module = self._network
        return network if self._processes.world_size == 1 else DistributedDataParallel(network)

    def _frozen_batch_norms(self) -> list[nn.Module]:
        if not self._settings.frozen_batch_norm:
            return []
        return [m for m in self._network.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def _train_step(self, network: nn.Module, batch: Batch, scale: float) -> None:
        progress = self._progress
        progress.num_unreadable += len(batch.failures)
        progress.failures += batch.failures
        self._set_training_mode()
        self._optimizer.zero_grad(set_to_none=True)
        # Without a readable image, this process still takes part in averaging the gradients of all processes.
        if len(batch) or self._processes.world_size > 1:
            with torch.autocast("cuda", dtype=torch.bfloat16) if self._mixed_precision else nullcontext():
                loss = self._task.loss(network, batch, scale) if len(batch) else self._zero_loss(network)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._schedule.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(self._network.parameters(), self._schedule.max_gradient_norm)
            self._optimizer.step()
            value = float(loss.detach())
            progress.loss = value if progress.step == 0 else 0.98 * progress.loss + 0.02 * value
        self._lr_scheduler.step()

    def _set_training_mode(self) -> None:
        self._network.train()
        if self._progress.step < self._schedule.head_only_steps:
            self._network.backbone.eval()
        for module in self._frozen_batch_norms():
            module.eval()

    def _zero_loss(self, network: nn.Module) -> Tensor:
        """Return zero, with zero gradients of all trained parameters."""
        side = self._task.images.preprocess.side
        # Two images, because a batch norm may have one value per image and channel.
        zero: Tensor = 0.0 * network(torch.zeros(2, 3, side, side, device=self._task.device)).sum()
        return zero

    def _validate(self, workers: int) -> None:
        """Measure the network, log the result, and save the network if it is the best."""
        progress, processes = self._progress, self._processes
        self._network.eval()
        validation = self._task.validate(processes, workers)
        progress.failures = sorted(set(processes.gather([*progress.failures, *validation.failures])))
        if processes.is_first and progress.failures:
            write_json(self._folder / _UNREADABLE, {"failures": progress.failures})
        if validation.error:
            raise ValueError(validation.error)
        if not processes.is_first:
            return
        line = {
            "step": progress.step,
            "loss": f"{progress.loss:.5f}",
            "learning_rate": f"{self._lr_scheduler.get_last_lr()[0]:.3g}",
            **{name: f"{value:.5f}" for name, value in validation.metrics.items()},
            "seconds": f"{progress.seconds:.1f}",
            "unreadable": progress.num_unreadable,
        }
        for log in self._logs:
            log.append(line)
        if validation.score is None or validation.score > progress.best_score:
            progress.best_score = progress.best_score if validation.score is None else validation.score
            self._task.save(self._folder / self._task.file_name)

"""Training a classifier from image-level labels."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader
from tqdm import tqdm

from dcsm_attr.attribution.inputs import rescaled
from dcsm_attr.backbones.classifier import Classifier, load_classifier, save_classifier
from dcsm_attr.backbones.score_pooling import pooled_scores
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.average_precision import mean_average_precision
from dcsm_attr.files import writable_folder, write_json
from dcsm_attr.guest import preserved_random_state
from dcsm_attr.training.canvases import BatchPlan, CanvasBatch, Canvases, Draw, collate
from dcsm_attr.training.checkpoint import load_checkpoint, save_checkpoint
from dcsm_attr.training.log import TrainingLog
from dcsm_attr.training.losses import multi_label_loss
from dcsm_attr.training.presets import Preset
from dcsm_attr.training.processes import Processes, own_device, process_group
from dcsm_attr.training.tensorboard import TensorBoardLog

__all__ = ["Settings", "train_classifier"]

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
_LOGGED = ("loss", "learning_rate", "validation_map", "seconds", "unreadable")
_UNREADABLE = "unreadable.json"
_DRAWN = ("loss", "learning_rate", "validation_map")


@dataclass(frozen=True)
class Settings:
    """What a training depends on beside the network and the photographs.

    Attributes:
        preset: optimiser, rates, steps.
        seed: of the order of the photographs, mirroring, resizing and dropout.
        frozen_batch_norm: whether the trunk's batch norms keep their statistics and their parameters. Those of a new
            head always learn; their statistics are of each process's share of the batch.
        validate_every: steps between validations, each of which may give the best network.
        mixed_precision: autocast to bfloat16 on a GPU.
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


def train_classifier(
    classifier: Classifier,
    training: Collection,
    validation: Collection,
    folder: str | Path,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Classifier:
    """Train on image-level labels; masks are never read.

    Writes into the folder: ``last.pt``, from which a run that was cut off goes on as if nothing had happened;
    ``best.safetensors``, the classifier with the best mean average precision on the validation photographs;
    ``log.csv``, a line for each validation; ``settings.json``; and ``unreadable.json``, why photographs of both
    collections could not be read, if any. Under ``torchrun``, the processes share each batch.

    Args:
        classifier: where to start; it is trained in place.
        training: photographs to learn from.
        validation: photographs to choose the best step by.
        folder: where to write; a run that stands there is continued.
        settings: of the training.
        device: where to train.
        workers: processes that read photographs ahead; 0: this one reads them.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.images.read_image`.
        tensorboard: whether to write the curves of the log for TensorBoard too, into ``tensorboard`` in the folder.
        progress: whether to show a bar.

    Returns:
        The best classifier, on the CPU, in evaluation mode.

    Raises:
        ValueError: if a collection is empty, or its classes are not those of the classifier.
        CheckpointError: if the folder holds a run with other settings.
        ImportError: if TensorBoard is asked for and not installed.
        OSError: if the folder cannot be written to.
    """
    for name, collection in (("training", training), ("validation", validation)):
        if not len(collection):
            raise ValueError(f"the {name} collection is empty: at least one photograph is needed.")
        if collection.class_names != classifier.class_names:
            raise ValueError(
                f"the {name} collection has the classes {collection.class_names}, the classifier "
                f"{classifier.class_names}."
            )
    # Before the folder: a library that is missing is found out now.
    board = TensorBoardLog(Path(folder) / "tensorboard", _DRAWN) if tensorboard else None
    folder = writable_folder(folder)
    device = own_device(torch.device(device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with preserved_random_state(device), process_group(device) as processes:
        run = _Run(classifier, folder, settings, device, processes, board, max_pixels)
        try:
            run.go(training, validation, workers, progress)
        finally:
            if board is not None:
                board.close()
    return load_classifier(folder / "best.safetensors")


class _Run:
    """One training: the network with its optimiser, and how far they are."""

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        settings: Settings,
        device: torch.device,
        processes: Processes,
        board: TensorBoardLog | None,
        max_pixels: int | None,
    ) -> None:
        self._classifier = replace(classifier, pooling=settings.preset.pooling)
        self._folder = folder
        self._settings = settings
        self._device = device
        self._processes = processes
        self._max_pixels = max_pixels
        self._network = classifier.network.to(device)
        self._optimiser, self._schedule = _optimisation(self._network, settings.preset)
        self._step = 0
        self._best = -1.0
        self._loss = 0.0
        self._unreadable = 0
        self._failures: list[str] = []
        self._seconds = 0.0
        log = TrainingLog(folder / "log.csv", _LOGGED)
        self._logs: list[TrainingLog | TensorBoardLog] = [log] if board is None else [log, board]
        self._description = _as_plain(
            {
                "architecture": asdict(classifier.architecture),
                "preprocess": asdict(classifier.preprocess),
                **asdict(settings),
            }
        )

    def go(self, training: Collection, validation: Collection, workers: int, progress: bool) -> None:
        """Train from where the folder stands to the end."""
        settings, preset, processes = self._settings, self._settings.preset, self._processes
        torch.manual_seed(settings.seed + processes.rank)
        description = {**self._description, "photographs": len(training), "processes": processes.count}
        last = self._folder / "last.pt"
        if last.exists():
            self._resume(last, description)
        elif processes.is_first:
            self._forget_after(0)
            (self._folder / _UNREADABLE).unlink(missing_ok=True)
            write_json(self._folder / "settings.json", description)
        plan = BatchPlan(
            len(training),
            preset.batch_size,
            preset.steps,
            settings.seed,
            first=self._step,
            rank=processes.rank,
            processes=processes.count,
        )
        loader = _loader(Canvases(training, self._classifier.preprocess, self._max_pixels), plan, workers)
        network: nn.Module | None = None
        start = time.perf_counter() - self._seconds
        bar = tqdm(
            loader,
            initial=self._step,
            total=preset.steps,
            unit="step",
            desc="training",
            disable=not (progress and processes.is_first),
        )
        for batch in bar:
            # The gradients of a distributed network are known at its construction: anew for each phase.
            if network is None or self._step == preset.head_only:
                network = self._for_phase()
            self._train_step(network, batch, plan.ratio(self._step, preset.ratios), bar.write)
            bar.set_postfix(loss=f"{self._loss:.3f}", refresh=False)
            self._step += 1
            if self._step % settings.validate_every == 0 or self._step == preset.steps:
                self._seconds = time.perf_counter() - start
                self._validate(validation, workers)
                if processes.is_first:
                    self._save(last, description)
                processes.wait()

    def _resume(self, last: Path, description: dict[str, Any]) -> None:
        state = load_checkpoint(last, self._network, self._optimiser, self._schedule, settings=description)
        self._step, self._best = state["step"], state["best"]
        self._loss, self._unreadable, self._seconds = state["loss"], state["unreadable"], state["seconds"]
        self._failures = state["failures"]
        if self._processes.is_first:
            self._forget_after(self._step)

    def _forget_after(self, step: int) -> None:
        for log in self._logs:
            log.forget_after(step)

    def _for_phase(self) -> nn.Module:
        """Choose what learns: the head alone at first, then everything that may."""
        for parameter in self._network.parameters():
            parameter.requires_grad_(True)
        for parameter in self._network.trunk.parameters():
            parameter.requires_grad_(self._step >= self._settings.preset.head_only)
        if self._settings.frozen_batch_norm:
            for module in self._network.trunk.modules():
                if isinstance(module, _BATCH_NORMS):
                    for parameter in module.parameters():
                        parameter.requires_grad_(False)
        if self._processes.count == 1:
            return self._network
        return DistributedDataParallel(self._network)

    def _training_mode(self) -> None:
        self._network.train()
        if self._step < self._settings.preset.head_only:
            self._network.trunk.eval()
        if self._settings.frozen_batch_norm:
            for module in self._network.trunk.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()

    def _train_step(self, network: nn.Module, batch: CanvasBatch, ratio: float, say: Callable[[str], None]) -> None:
        self._unreadable += len(batch.failures)
        self._failures += batch.failures
        for failure in batch.failures:
            say(f"skipped: {failure}")
        self._training_mode()
        self._optimiser.zero_grad(set_to_none=True)
        if len(batch.numbers) or self._processes.count > 1:
            loss = self._loss_of(network, batch, ratio)
            loss.backward()  # type: ignore[no-untyped-call]
            if self._settings.preset.gradient_limit is not None:
                nn.utils.clip_grad_norm_(self._network.parameters(), self._settings.preset.gradient_limit)
            self._optimiser.step()
            value = float(loss.detach())
            self._loss = value if self._step == 0 else 0.98 * self._loss + 0.02 * value
        self._schedule.step()

    def _loss_of(self, network: nn.Module, batch: CanvasBatch, ratio: float) -> Tensor:
        images = batch.images.to(self._device, non_blocking=True)
        if not len(images):
            # The other processes wait for this one's gradients, which are zero.
            side = self._classifier.preprocess.side
            nothing: Tensor = 0.0 * network(images.new_zeros(1, 3, side, side)).sum()
            return nothing
        with self._autocast():
            score_maps = network(*rescaled((images,), ratio, "bilinear"))
        logits = pooled_scores(score_maps.float(), self._settings.preset.pooling)
        return multi_label_loss(logits, batch.present.to(self._device, non_blocking=True))

    def _autocast(self) -> Any:
        if self._device.type != "cuda" or not self._settings.mixed_precision:
            return nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def _validate(self, validation: Collection, workers: int) -> None:
        settings, processes = self._settings, self._processes
        mine = range(processes.rank, len(validation), processes.count)
        draws = [Draw(number) for number in mine]
        size = max(1, settings.preset.batch_size // processes.count)
        batches = [draws[i : i + size] for i in range(0, len(draws), size)]
        loader = _loader(Canvases(validation, self._classifier.preprocess, self._max_pixels), batches, workers)
        self._network.eval()
        rows: list[tuple[int, list[float]]] = []
        with torch.no_grad():
            for batch in loader:
                self._failures += batch.failures
                if not len(batch.numbers):
                    continue
                logits = pooled_scores(self._network(batch.images.to(self._device)).float(), settings.preset.pooling)
                rows += zip(batch.numbers.tolist(), logits.tolist(), strict=True)
        rows = sorted(processes.gathered(rows))
        self._failures = sorted(set(processes.gathered(self._failures)))
        if processes.is_first and self._failures:
            write_json(self._folder / _UNREADABLE, {"failures": self._failures})
        if not rows:
            raise ValueError(
                f"none of the {len(validation)} validation photographs could be read; the first: {self._failures[0]}"
            )
        scores = torch.tensor([scores for _, scores in rows])
        present = validation.presence()[[number for number, _ in rows]]
        value = float(mean_average_precision(scores, present))
        if not processes.is_first:
            return
        line = {
            "step": self._step,
            "loss": f"{self._loss:.5f}",
            "learning_rate": f"{self._schedule.get_last_lr()[0]:.3g}",
            "validation_map": f"{value:.5f}",
            "seconds": f"{self._seconds:.1f}",
            "unreadable": self._unreadable,
        }
        for log in self._logs:
            log.append(line)
        if value > self._best:
            self._best = value
            save_classifier(self._classifier, self._folder / "best.safetensors")

    def _save(self, path: Path, description: dict[str, Any]) -> None:
        progress = {
            "step": self._step,
            "best": self._best,
            "loss": self._loss,
            "unreadable": self._unreadable,
            "failures": self._failures,
            "seconds": self._seconds,
        }
        save_checkpoint(path, self._network, self._optimiser, self._schedule, progress=progress, settings=description)


def _loader(canvases: Canvases, batches: Iterable[list[Draw]], workers: int) -> "DataLoader[Any]":
    # A generator of its own: the loader would draw from the global one, and a resumed run at another point.
    generator = torch.Generator()
    return DataLoader(
        canvases,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        generator=generator,  # type: ignore[arg-type]
    )


def _optimisation(network: nn.Module, preset: Preset) -> tuple[torch.optim.Optimizer, LRScheduler]:
    groups = list(_parameter_groups(network, preset))
    rates = [group["lr"] for group in groups]
    optimiser: torch.optim.Optimizer
    if preset.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=preset.learning_rate, momentum=0.9)
    else:
        optimiser = torch.optim.AdamW(groups, lr=preset.learning_rate)
    if preset.schedule == "constant":
        return optimiser, LambdaLR(optimiser, lambda step: 1.0)
    # The momentum stays: the last step of the schedule is one more than there are.
    total = preset.steps + 1
    # The rise takes a fifth of the steps, but one at least: PyTorch divides by its length.
    return optimiser, OneCycleLR(
        optimiser, rates, total_steps=total, cycle_momentum=False, pct_start=max(0.2, 2 / total)
    )


def _parameter_groups(network: Any, preset: Preset) -> Iterator[dict[str, Any]]:
    for part, rate in ((network.trunk, 1.0), (network.head, preset.head_rate)):
        for decays in (True, False):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == decays]
            if parameters:
                yield {
                    "params": parameters,
                    "lr": rate * preset.learning_rate,
                    "weight_decay": preset.weight_decay if decays else 0.0,
                }


def _as_plain(values: Any) -> Any:
    """The same as JSON would give it back: lists instead of tuples."""
    return json.loads(json.dumps(values))

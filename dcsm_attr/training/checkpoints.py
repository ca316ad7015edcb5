"""The state of a training, from which it goes on as if it had never stopped.

The log of a training: a CSV file with a line for each validation, never half-written.

The log of a training for TensorBoard, beside the CSV file.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dcsm_attr.io import atomic_path, diff_settings
from dcsm_attr.models.weights import load_weights_only

__all__ = ["CheckpointError", "TensorBoardLog", "TrainingLog", "load_checkpoint", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another training; the message says what differs."""


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    progress: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write everything that the next step depends on; the file appears when it is complete.

    Args:
        path: to write, ``.pt``.
        network: its parameters and buffers are kept.
        optimizer: its state is kept.
        schedule: its state is kept.
        progress: how far the training is, of plain values.
        settings: what the training depends on, of plain values.
    """
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random_state": random_state,
        "progress": dict(progress),
        "settings": dict(settings),
    }
    # Given a path, PyTorch 2.4 does not notice that the disk is full at the last bytes; a file of Python's does.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: Optimizer, schedule: LRScheduler, *, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a training back to where it was, random state included.

    Args:
        path: written by :func:`save_checkpoint`; opened without executing anything in it.
        network: takes the parameters and buffers.
        optimizer: takes its state.
        schedule: takes its state.
        settings: of this training, which must be those of the checkpoint.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: if the file cannot be read, or comes from a training with other settings.
    """
    try:
        content = load_weights_only(path)
        kept = content["settings"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint ({error}). Remove it to start the training again."
        ) from error
    different = diff_settings(kept, settings)
    if different:
        raise CheckpointError(
            f"{path}: comes from another training, which differs in {'; '.join(different)}. Go on with the same "
            "settings, or choose another folder."
        )
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["random_state"]["cpu"])
    if "cuda" in content["random_state"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random_state"]["cuda"])
    progress: dict[str, Any] = content["progress"]
    return progress


class TrainingLog:
    """Lines of one table, of which ``step`` is the first column."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Name the file; it is written with the first line.

        Args:
            path: of the CSV file.
            columns: after ``step``.
        """
        self._path = path
        self._columns = ["step", *columns]

    def append(self, line: Mapping[str, object]) -> None:
        """Add a line."""
        self._write([*self._lines(), {name: str(line[name]) for name in self._columns}])

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed training logs again."""
        self._write([line for line in self._lines() if int(line["step"]) <= step])

    def _lines(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, lines: list[dict[str, str]]) -> None:
        with atomic_path(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(lines)


class TensorBoardLog:
    """Curves of some columns of :class:`~dcsm_attr.training.checkpoints.TrainingLog`, with the same values."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        """Name the folder; an event file is written into it with the first line.

        Args:
            folder: of the event files; those of an interrupted run may stand there.
            columns: to draw.

        Raises:
            ImportError: if TensorBoard is not installed.
        """
        self._open = _summary_writer()
        self._folder = folder
        self._columns = columns
        self._kept = 0
        self._writer: Any = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a point to each curve, at ``line["step"]``."""
        if self._writer is None:
            # Tells TensorBoard to forget what event files of earlier runs say of this step and later ones.
            self._writer = self._open(self._folder, purge_step=self._kept + 1)
        for name in self._columns:
            self._writer.add_scalar(name, float(line[name]), int(line["step"]))
        self._writer.flush()

    def truncate_after(self, step: int) -> None:
        """Have the points of later steps replaced, which a resumed training logs again; before the first line."""
        self._kept = step

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError('logs for TensorBoard need it: pip install "dcsm_attr[tensorboard]".') from error
    return SummaryWriter

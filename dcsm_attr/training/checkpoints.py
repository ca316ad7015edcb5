"""The state of a training, from which it resumes exactly, and its logs: a CSV file and TensorBoard."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dcsm_attr.io import atomic_path
from dcsm_attr.models.weights import load_weights_only

__all__ = ["CheckpointError", "TensorBoardLog", "TrainingLog", "load_checkpoint", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint cannot be read."""


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler, progress: Mapping[str, Any]
) -> None:
    """Write everything that the next step depends on; the file appears when it is complete.

    Args:
        path: the ``.pt`` file to write.
        network: its parameters and buffers are written.
        optimizer: its state is written.
        lr_scheduler: its state is written.
        progress: numbers, strings and lists that describe how far the training is.

    Raises:
        OSError: if the file cannot be written.
    """
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    content = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": lr_scheduler.state_dict(),
        "random_state": random_state,
        "progress": dict(progress),
    }
    # PyTorch 2.4, given a path, does not notice a disk that is full at the last bytes; a Python file object does.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(path: Path, network: nn.Module, optimizer: Optimizer, lr_scheduler: LRScheduler) -> dict[str, Any]:
    """Restore the state of a training, including PyTorch's random state.

    Args:
        path: written by :func:`save_checkpoint`; nothing in it is executed.
        network: receives the parameters and buffers.
        optimizer: receives its state.
        lr_scheduler: receives its state.

    Returns:
        The ``progress`` that was saved.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    try:
        content = load_weights_only(path)
        progress: dict[str, Any] = content["progress"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint ({error}). Remove it to start the training again."
        ) from error
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    lr_scheduler.load_state_dict(content["lr_scheduler"])
    torch.set_rng_state(content["random_state"]["cpu"])
    if "cuda" in content["random_state"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random_state"]["cuda"])
    return progress


class TrainingLog:
    """A CSV file with one line per validation and ``step`` as its first column."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Describe the file; it is written with the first line.

        Args:
            path: the CSV file.
            columns: names of the columns after ``step``.
        """
        self._path = path
        self._columns = ["step", *columns]

    def append(self, line: Mapping[str, object]) -> None:
        """Add a line; the file is replaced as a whole."""
        self._write([*self._read(), {name: str(line[name]) for name in self._columns}])

    def truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed training logs again."""
        self._write([line for line in self._read() if int(line["step"]) <= step])

    def _read(self) -> list[dict[str, str]]:
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
    """Curves of some columns of a :class:`TrainingLog` for TensorBoard."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        """Describe the curves; an event file is written with the first line.

        Args:
            folder: folder of the event files; it may contain those of an interrupted run.
            columns: names of the columns to plot.

        Raises:
            ImportError: if TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError('logs for TensorBoard need it: pip install "dcsm_attr[tensorboard]".') from error
        self._writer_class: Any = SummaryWriter
        self._folder = folder
        self._columns = columns
        self._last_step = 0
        self._writer: Any = None

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a point to each curve, at ``line["step"]``."""
        if self._writer is None:
            # TensorBoard then ignores points of this step and later ones in event files of earlier runs.
            self._writer = self._writer_class(self._folder, purge_step=self._last_step + 1)
        for name in self._columns:
            self._writer.add_scalar(name, float(line[name]), int(line["step"]))
        self._writer.flush()

    def truncate_after(self, step: int) -> None:
        """Replace the points of later steps, which a resumed training logs again. Call it before the first line."""
        self._last_step = step

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

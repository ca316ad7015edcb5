"""The state of a training, from which it goes on as if it had never stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dcsm_attr.backbones.torch_file import load_plain
from dcsm_attr.files import atomic_path
from dcsm_attr.settings import differences

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or belongs to another training; the message says what differs."""


def save_checkpoint(
    path: Path,
    network: nn.Module,
    optimiser: Optimizer,
    schedule: LRScheduler,
    *,
    progress: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write everything that the next step depends on; the file appears when it is complete.

    Args:
        path: to write, ``.pt``.
        network: its parameters and buffers are kept.
        optimiser: its state is kept.
        schedule: its state is kept.
        progress: how far the training is, of plain values.
        settings: what the training depends on, of plain values.
    """
    random_state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_state["cuda"] = torch.cuda.get_rng_state()
    content = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
        "random_state": random_state,
        "progress": dict(progress),
        "settings": dict(settings),
    }
    # Given a path, PyTorch 2.4 does not notice that the disk is full at the last bytes; a file of Python's does.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(
    path: Path, network: nn.Module, optimiser: Optimizer, schedule: LRScheduler, *, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a training back to where it was, random state included.

    Args:
        path: written by :func:`save_checkpoint`; opened without executing anything in it.
        network: takes the parameters and buffers.
        optimiser: takes its state.
        schedule: takes its state.
        settings: of this training, which must be those of the checkpoint.

    Returns:
        The progress that was saved.

    Raises:
        CheckpointError: if the file cannot be read, or comes from a training with other settings.
    """
    try:
        content = load_plain(path)
        kept = content["settings"]
    except Exception as error:
        raise CheckpointError(
            f"{path}: not a complete checkpoint ({error}). Remove it to start the training again."
        ) from error
    different = differences(kept, settings)
    if different:
        raise CheckpointError(
            f"{path}: comes from another training, which differs in {'; '.join(different)}. Go on with the same "
            "settings, or choose another folder."
        )
    network.load_state_dict(content["network"])
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["random_state"]["cpu"])
    if "cuda" in content["random_state"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(content["random_state"]["cuda"])
    progress: dict[str, Any] = content["progress"]
    return progress

"""Reading what ``torch.save`` wrote, without executing anything that stands in it."""

import pickle
from pathlib import Path
from typing import Any

import torch

__all__ = ["ProgramError", "load_plain"]


class ProgramError(ValueError):
    """A file that holds code: Python objects, or a TorchScript program."""


def load_plain(path: Path) -> Any:
    """Load tensors and plain values.

    Args:
        path: written by ``torch.save``.

    Returns:
        What was saved, on the CPU.

    Raises:
        ProgramError: if reading all of it would mean to execute something.
        Exception: of many kinds, if the file is damaged.
    """
    # PyTorch before 2.6 takes such an archive for tensors and executes it, with weights_only too.
    if _is_torchscript(path):
        raise ProgramError("it is a TorchScript archive, which holds a program")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ProgramError("it holds Python objects beside tensors, or is damaged") from error


def _is_torchscript(path: Path) -> bool:
    # PyTorch's own reader and sign: another reader might see another archive in the same bytes.
    try:
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False

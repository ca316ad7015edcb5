"""Weights with a description of what they belong to, in one safetensors file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dcsm_attr.backbones.loading import WeightsError
from dcsm_attr.files import atomic_path
from dcsm_attr.guest import preserved_random_state

__all__ = ["building_from", "has_description", "read_description", "save_described"]


def save_described(network: nn.Module, path: str | Path, key: str, description: Mapping[str, Any]) -> None:
    """Write a network's parameters and buffers; the file appears when it is complete.

    Args:
        network: on any device.
        path: of the file, ``.safetensors``.
        key: that the description is kept under, which says what kind of network it is.
        description: ready for JSON.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {key: json.dumps(description)})


def has_description(path: str | Path, key: str) -> bool:
    """Whether a file is one that :func:`save_described` wrote under this key."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and key in _metadata(path)


def read_description(path: str | Path, key: str, what: str, otherwise: str) -> dict[str, Any]:
    """Read what :func:`save_described` wrote beside the tensors.

    Args:
        path: of the file.
        key: that it is kept under.
        what: the network is, for messages.
        otherwise: what to do with a file that has weights alone, for messages.

    Raises:
        WeightsError: if the file is missing, incomplete, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    metadata = _metadata(path)
    if key not in metadata:
        raise WeightsError(f"{path}: holds weights, but not what they belong to: no {what}. {otherwise}")
    try:
        description: dict[str, Any] = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: what it says of its {what.split()[0]} is damaged ({error}).") from error
    return description


@contextmanager
def building_from(path: str | Path, otherwise: str) -> Iterator[None]:
    """Build a network from its description within this context; its weights are drawn, but nothing random is used up.

    Args:
        path: of the file, for messages.
        otherwise: what to do if the description is not whole, for messages.

    Raises:
        WeightsError: if an entry is missing or describes nothing that can be built.
    """
    try:
        with preserved_random_state(torch.device("cpu")):
            yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path}: what it says of its network is not complete ({type(error).__name__}: {error}). It may be that of "
            f"another version: {otherwise}"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}).") from error

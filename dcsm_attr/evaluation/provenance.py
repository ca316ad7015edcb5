"""What a result was measured with: written beside every number."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

import dcsm_attr
from dcsm_attr.datasets.collection import Collection

__all__ = ["labels_digest", "measured_on", "parameters_digest"]


def measured_on(command: str) -> dict[str, Any]:
    """The command, the commit, the machine and the versions, ready for JSON.

    Args:
        command: as a reader would repeat it, with names in capitals for what is theirs.

    Returns:
        ``commit`` is the one that is checked out where the package is used from its repository (an editable
        installation), changes on top of it not seen; None where it is installed elsewhere.
    """
    return {
        "command": command,
        "commit": _commit(Path(dcsm_attr.__file__).parents[1]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dcsm_attr": dcsm_attr.__version__,
    }


def _commit(root: Path) -> str | None:
    """The commit of the repository whose root this folder is; None for a folder inside of some other repository."""
    command = ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        asked = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    top, commit = asked.stdout.splitlines()
    return commit if Path(top).resolve() == root.resolve() else None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def labels_digest(collection: Collection) -> str:
    """SHA-256 of the names of photographs and their image-level labels, in order."""
    labelled = repr([(photograph.name, photograph.classes) for photograph in collection])
    return hashlib.sha256(labelled.encode()).hexdigest()


def parameters_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names and types: the same if and only if they are."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

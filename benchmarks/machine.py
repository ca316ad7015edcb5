"""What a result was measured on, and with: written beside every number."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import dcsm_attr

__all__ = ["measured_on"]


def measured_on(command: str) -> dict[str, Any]:
    """The command, the commit, the machine and the versions, ready for JSON.

    Args:
        command: as a reader would repeat it, with names in capitals for what is theirs.
    """
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    return {
        "command": command,
        "commit": commit.stdout.strip() or "unknown",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dcsm_attr": dcsm_attr.__version__,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

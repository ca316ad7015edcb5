"""What an evaluation found, under which protocol.

What a result was measured with: written beside every number.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import dcsm_attr
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.metrics import average_precision_per_class, iou_per_class, mean_average_precision, mean_iou

__all__ = ["Confusion", "Evaluation", "Protocol", "labels_digest", "measured_on", "parameters_digest"]


class Protocol(str, Enum):
    """What the segmenter is told about an image. Figures of one protocol do not compare with those of the other.

    ``DETECTED``, the protocol of a test set: nothing. The classes are those that the classifier detects; where it
    detects none, its best one. ``KNOWN``, the protocol of pseudo-labels for training: the image-level labels.
    """

    DETECTED = "detected"
    KNOWN = "known"


@dataclass(frozen=True)
class Confusion:
    """How label maps agree with the truth.

    Attributes:
        counts: ``(L, L)`` int64, pixels of all images; row: truth, column: prediction. Void is not counted.
    """

    counts: Tensor

    @property
    def iou(self) -> Tensor:
        """``(L,)``, see :func:`iou_per_class`."""
        return iou_per_class(self.counts)

    @property
    def mean_iou(self) -> float:
        """See :func:`dcsm_attr.evaluation.metrics.mean_iou`."""
        return mean_iou(self.counts)

    @property
    def coverage(self) -> float:
        """Share of the true foreground that is labeled as foreground, whatever its class; NaN without foreground."""
        return _share(self.counts[1:, 1:].sum(), self.counts[1:].sum())

    @property
    def mistaken(self) -> float:
        """Of that share, the share that is given a wrong class; NaN where nothing is covered."""
        covered = self.counts[1:, 1:]
        return _share(covered.sum() - covered.diagonal().sum(), covered.sum())

    @property
    def spilled(self) -> float:
        """Share of what is labeled as foreground that is background in truth; NaN where nothing is."""
        return _share(self.counts[0, 1:].sum(), self.counts[:, 1:].sum())


def _share(part: Tensor, whole: Tensor) -> float:
    # 0 / 0 is NaN.
    return float(part.double() / whole)


@dataclass(frozen=True)
class Evaluation:
    """What was measured under one protocol. L = 1 + C labels, the background first; n photographs.

    Attributes:
        protocol: what the segmenter was told.
        class_names: C names, without the background.
        unrefined: of the label maps before the CRF.
        refined: of the same after it; equal to :attr:`unrefined` if the segmenter has no CRF.
        scores: ``(n, C)`` float64 in [0, 1], the classifier's.
        present: ``(n, C)`` bool, the image-level labels.
        photographs: the names of the n photographs that were counted.
        skipped: the reason, by the name of each image that was not counted.
        nothing_detected: names of images in which no class was above the threshold (never under the protocol
            "known").
        settings: everything that the result depends on beside the images, JSON-serializable.
    """

    protocol: Protocol
    class_names: tuple[str, ...]
    unrefined: Confusion
    refined: Confusion
    scores: Tensor
    present: Tensor
    photographs: tuple[str, ...]
    skipped: Mapping[str, str]
    nothing_detected: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def average_precision(self) -> Tensor:
        """``(C,)``, of the classifier; see :func:`average_precision_per_class`."""
        return average_precision_per_class(self.scores, self.present)

    @property
    def mean_average_precision(self) -> float:
        """Of the classifier; see :func:`dcsm_attr.evaluation.metrics.mean_average_precision`."""
        return mean_average_precision(self.scores, self.present)


def measured_on(command: str) -> dict[str, Any]:
    """The command, the commit, the machine and the versions, JSON-serializable.

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
    """SHA-256 of the names of images and their image-level labels, in order."""
    labeled = repr([(photograph.name, photograph.classes) for photograph in collection])
    return hashlib.sha256(labeled.encode()).hexdigest()


def parameters_digest(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names and types: the same if and only if they are."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

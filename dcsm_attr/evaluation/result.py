"""Results of evaluations, and how they were obtained: digests of the model and the labels, and the environment."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torchvision
from torch import Tensor, nn

import dcsm_attr
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.metrics import average_precision_per_class, iou_per_class, mean_average_precision, mean_iou

__all__ = [
    "PROTOCOLS",
    "Confusion",
    "Evaluation",
    "LabelMapEvaluation",
    "ProtocolName",
    "labels_digest",
    "parameters_digest",
    "run_environment",
]


#: What a segmenter knows about an image. ``"detected"``, the protocol of a test set: nothing; the classes are those
#: that the classifier detects, or its best one if it detects none. ``"known"``, the protocol of pseudo-labels for
#: training: the image-level labels. Figures of different protocols cannot be compared.
ProtocolName = Literal["detected", "known"]

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


@dataclass(frozen=True)
class Confusion:
    """Agreement of label maps with masks.

    Attributes:
        counts: ``(L, L)`` int64, pixels of all images; row: truth, column: prediction. Void pixels are not counted.
    """

    counts: Tensor

    @property
    def iou(self) -> Tensor:
        """``(L,)``, see :func:`dcsm_attr.evaluation.metrics.iou_per_class`."""
        return iou_per_class(self.counts)

    @property
    def mean_iou(self) -> float:
        """See :func:`dcsm_attr.evaluation.metrics.mean_iou`."""
        return mean_iou(self.counts)

    @property
    def coverage(self) -> float:
        """Share of the true foreground that is labeled as any class; NaN without foreground."""
        return _ratio(self.counts[1:, 1:].sum(), self.counts[1:].sum())

    @property
    def mistaken(self) -> float:
        """Share of the covered foreground that is labeled as a wrong class; NaN if nothing is covered."""
        covered = self.counts[1:, 1:]
        return _ratio(covered.sum() - covered.diagonal().sum(), covered.sum())

    @property
    def spilled(self) -> float:
        """Share of the pixels labeled as a class that are background; NaN if there are none."""
        return _ratio(self.counts[0, 1:].sum(), self.counts[:, 1:].sum())


def _ratio(part: Tensor, whole: Tensor) -> float:
    # 0 / 0 is NaN.
    return float(part.double() / whole)


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`dcsm_attr.evaluation.evaluate.evaluate` for n images and L = 1 + C labels, the background first.

    Attributes:
        protocol: what the segmenter knew about the images.
        class_names: C names, without the background.
        unrefined: of the label maps before the CRF.
        refined: of the label maps after the CRF; equal to :attr:`unrefined` if the segmenter has no CRF.
        scores: ``(n, C)`` float64 in [0, 1], of the classifier.
        present: ``(n, C)`` bool, the image-level labels.
        images: names of the n images that were counted.
        skipped: the reason by name, for each image that was not counted.
        nothing_detected: names of the images in which no class was above the threshold; always empty under the protocol
            ``"known"``.
        settings: what the result depends on, other than the images; JSON-serializable.
    """

    protocol: ProtocolName
    class_names: tuple[str, ...]
    unrefined: Confusion
    refined: Confusion
    scores: Tensor
    present: Tensor
    images: tuple[str, ...]
    skipped: Mapping[str, str]
    nothing_detected: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def average_precision(self) -> Tensor:
        """``(C,)``, of the classifier; see :func:`dcsm_attr.evaluation.metrics.average_precision_per_class`."""
        return average_precision_per_class(self.scores, self.present)

    @property
    def mean_average_precision(self) -> float:
        """Of the classifier; see :func:`dcsm_attr.evaluation.metrics.mean_average_precision`."""
        return mean_average_precision(self.scores, self.present)


@dataclass(frozen=True)
class LabelMapEvaluation:
    """Result of :func:`dcsm_attr.evaluation.evaluate.evaluate_label_maps`.

    Attributes:
        class_names: C names, without the background.
        confusion: of the pixels that are labeled in both the mask and the label map.
        unknown: share of the labeled pixels of the masks whose label is unknown (255) in the label maps.
        num_images: number of images that were compared.
        skipped: the reason by name, for each image that was not compared.
    """

    class_names: tuple[str, ...]
    confusion: Confusion
    unknown: float
    num_images: int
    skipped: Mapping[str, str]

    @property
    def precision(self) -> tuple[float, float]:
        """Share of correct pixels among those labeled as background and those labeled as a class; NaN if none."""
        counts = self.confusion.counts.double()
        correct = counts.diagonal()
        return float(correct[0] / counts[:, 0].sum()), float(correct[1:].sum() / counts[:, 1:].sum())


def labels_digest(collection: Collection) -> str:
    """Return the SHA-256 of the names of the images and their image-level labels, in order."""
    labels = repr([(item.name, item.classes) for item in collection])
    return hashlib.sha256(labels.encode()).hexdigest()


def parameters_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, with their names and types."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def run_environment(command: str) -> dict[str, Any]:
    """Describe what a result was measured with: the command, the commit, the machine and the versions.

    Args:
        command: as a reader would repeat it, with placeholders in capitals for local paths.

    Returns:
        JSON-serializable. ``commit`` is the one that is checked out if the package is used from its repository (an
        editable installation), without uncommitted changes; None if it is installed elsewhere.
    """
    return {
        "command": command,
        "commit": _checked_out_commit(Path(dcsm_attr.__file__).parents[1]),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dcsm_attr": dcsm_attr.__version__,
    }


def _checked_out_commit(root: Path) -> str | None:
    """Return the commit of the repository with this root; None if the folder is not the root of a repository."""
    command = ["git", "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    top, commit = output.splitlines()
    return commit if Path(top).resolve() == root.resolve() else None


def _processor_name() -> str:
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

"""Training a classifier from image-level labels.

The loss of learning from image-level labels.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dcsm_attr.attribution.inputs import rescaled
from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.metrics import mean_average_precision
from dcsm_attr.models.checkpoint import Classifier, load_classifier, save_classifier
from dcsm_attr.training.data import BatchPlan, Draw, ImageLabelBatch, ImageLabelDataset, collate
from dcsm_attr.training.distributed import Processes
from dcsm_attr.training.loop import Settings, Task, Validation, data_loader, run_training
from dcsm_attr.training.optimizer import ClassifierPreset

__all__ = ["multi_label_loss", "train_classifier"]


def multi_label_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Binary cross entropy of each class, summed over classes and averaged over images: Eq. 1 of DCSM.

    Args:
        logits: ``(N, C)``, score maps after global pooling.
        present: ``(N, C)``, 1 for classes in the image, else 0.

    Returns:
        Scalar, float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none").sum(dim=1).mean()


_BEST_FILE = "best.safetensors"


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
    ``log.csv``, a line for each validation; ``settings.json``; and ``unreadable.json``, why images of both
    collections could not be read, if any. Under ``torchrun``, the processes share each batch.

    Args:
        classifier: where to start; it is trained in place.
        training: photographs to learn from.
        validation: photographs to choose the best step by.
        folder: where to write; a run that stands there is continued.
        settings: of the training.
        device: where to train.
        workers: processes that read photographs ahead; 0: this one reads them.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write the curves of the log for TensorBoard too, into ``tensorboard`` in the folder.
        progress: whether to show a bar.

    Returns:
        The best classifier, on the CPU, in evaluation mode.

    Raises:
        TypeError: if the preset has no pooling.
        ValueError: if a collection is empty, or its classes are not those of the classifier; if none of the validation
            photographs can be read; or if the processes cannot share a batch evenly.
        CheckpointError: if the folder holds a run with other settings.
        ImportError: if TensorBoard is asked for and not installed.
        OSError: if the folder cannot be written to.
    """
    for name, collection in (("training", training), ("validation", validation)):
        if not len(collection):
            raise ValueError(f"the {name} collection is empty: at least one image is needed.")
        if collection.class_names != classifier.class_names:
            raise ValueError(
                f"the {name} collection has the classes {collection.class_names}, the classifier "
                f"{classifier.class_names}."
            )
    preset = settings.preset
    if not isinstance(preset, ClassifierPreset):
        raise TypeError(f"a classifier is trained with a ClassifierPreset, which has a pooling; got {preset}.")
    task = _ClassificationTask(replace(classifier, pooling=preset.pooling), training, validation, preset, max_pixels)
    run_training(task, folder, settings, device=device, workers=workers, tensorboard=tensorboard, progress=progress)
    return load_classifier(Path(folder) / _BEST_FILE)


class _ClassificationTask(Task[ImageLabelBatch]):
    """Image-level labels from score maps."""

    measured = ("validation_map",)

    def __init__(
        self,
        classifier: Classifier,
        training: Collection,
        validation: Collection,
        preset: ClassifierPreset,
        max_pixels: int | None,
    ) -> None:
        self.network = classifier.network
        self.photographs = len(training)
        self.side = classifier.preprocess.side
        self._classifier = classifier
        self._training = training
        self._validation = validation
        self._preset = preset
        self._max_pixels = max_pixels

    def described(self) -> dict[str, Any]:
        return {
            "architecture": self._classifier.architecture.plain(),
            "preprocess": asdict(self._classifier.preprocess),
        }

    def batches(self, plan: BatchPlan, workers: int) -> "DataLoader[Any]":
        return data_loader(self._canvases(self._training), plan, workers, collate)

    def loss(self, network: nn.Module, batch: ImageLabelBatch, ratio: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        score_maps = network(*rescaled((images,), ratio, "bilinear"))
        logits = pool_score_maps(score_maps.float(), self._preset.pooling)
        return multi_label_loss(logits, batch.present.to(self.device, non_blocking=True))

    def validate(self, processes: Processes, workers: int) -> Validation:
        draws = [Draw(number) for number in range(processes.rank, len(self._validation), processes.count)]
        size = max(1, self._preset.batch_size // processes.count)
        batches = [draws[i : i + size] for i in range(0, len(draws), size)]
        failures: list[str] = []
        rows: list[tuple[int, list[float]]] = []
        with torch.no_grad():
            for batch in data_loader(self._canvases(self._validation), batches, workers, collate):
                failures += batch.failures
                if not len(batch.numbers):
                    continue
                logits = pool_score_maps(self.network(batch.images.to(self.device)).float(), self._preset.pooling)
                rows += zip(batch.numbers.tolist(), logits.tolist(), strict=True)
        return self._validated(sorted(processes.gathered(rows)), processes.gathered(failures))

    def _validated(self, rows: list[tuple[int, list[float]]], failures: Sequence[str]) -> Validation:
        if not rows:
            told = (
                f"none of the {len(self._validation)} validation photographs could be read; the first: {min(failures)}"
            )
            return Validation(failures=failures, error=told)
        scores = torch.tensor([scores for _, scores in rows])
        present = self._validation.presence()[[number for number, _ in rows]]
        value = float(mean_average_precision(scores, present))
        return Validation({"validation_map": value}, value, failures)

    def keep(self, folder: Path) -> None:
        save_classifier(self._classifier, folder / _BEST_FILE)

    def _canvases(self, collection: Collection) -> ImageLabelDataset:
        return ImageLabelDataset(collection, self._classifier.preprocess, self._max_pixels)

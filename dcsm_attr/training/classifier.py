"""Training a classifier from image-level labels: its loss (Eq. 1 of DCSM), its schedules, and its validation."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcsm_attr.attribution.inputs import resize_images
from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.metrics import mean_average_precision
from dcsm_attr.evaluation.result import labels_digest
from dcsm_attr.models.checkpoint import Classifier, load_classifier, save_network
from dcsm_attr.training.data import Batch, SampleIndex, TrainingImages, data_loader
from dcsm_attr.training.distributed import Processes
from dcsm_attr.training.loop import Task, TrainingSettings, Validation, run_training
from dcsm_attr.training.optimizer import ClassifierSchedule, ScheduleName

__all__ = ["SCHEDULES", "multi_label_loss", "train_classifier"]


#: By name.
SCHEDULES: dict[ScheduleName, ClassifierSchedule] = {
    # Section 4.2 of the paper: batches of two, 30,000 steps of the layers above pool5, then 20,000 of all layers.
    "paper": ClassifierSchedule(
        optimizer="sgd",
        policy="constant",
        learning_rate=1e-5,
        head_rate_factor=1.0,
        weight_decay=5e-4,
        batch_size=2,
        steps=50_000,
        head_only_steps=30_000,
        pooling="max",
    ),
    "modern": ClassifierSchedule(
        optimizer="adamw",
        policy="onecycle",
        learning_rate=2e-4,
        head_rate_factor=5.0,
        weight_decay=1e-2,
        batch_size=16,
        steps=300,
        head_only_steps=30,
        # With max pooling, an image trains one position per class: too little if there are few images.
        pooling="average",
        max_gradient_norm=10.0,
    ),
}


def train_classifier(
    classifier: Classifier,
    training: Collection,
    validation: Collection,
    folder: str | Path,
    settings: TrainingSettings,
    *,
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Classifier:
    """Train a classifier on image-level labels; masks are never read.

    Writes ``best.safetensors``, the classifier with the highest mean average precision on the validation images, and
    the other files of :func:`dcsm_attr.training.loop.run_training`. The same call resumes an interrupted training.

    Args:
        classifier: initial classifier; it is trained in place.
        training: images to learn from.
        validation: images that decide which step is the best.
        folder: where to write, see :func:`dcsm_attr.io.open_run_folder`.
        settings: settings of the training, with a :class:`~dcsm_attr.training.optimizer.ClassifierSchedule`.
        device: where to train.
        workers: number of processes that read images; 0: the current process.
        max_pixels: larger images are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write the curves of the log for TensorBoard too.
        overwrite: whether to start over if the folder contains a training.
        progress: whether to show a progress bar.

    Returns:
        The best classifier, on the CPU, in evaluation mode.

    Raises:
        TypeError: if the schedule has no pooling.
        ValueError: if a collection is empty or its classes are not those of the classifier, no validation image can be
            read, the processes cannot share a batch evenly, or the folder contains a training with other settings.
        CheckpointError: if the checkpoint cannot be read.
        ImportError: if TensorBoard is requested and not installed.
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
    schedule = settings.schedule
    if not isinstance(schedule, ClassifierSchedule):
        raise TypeError(f"a classifier needs a ClassifierSchedule, which has a pooling; got {schedule}.")
    classifier = replace(classifier, pooling=schedule.pooling)
    task = _ClassifierTask(classifier, training, validation, schedule.batch_size, max_pixels)
    run_training(
        task,
        folder,
        settings,
        device=device,
        workers=workers,
        tensorboard=tensorboard,
        overwrite=overwrite,
        progress=progress,
    )
    return load_classifier(Path(folder) / task.file_name)


class _ClassifierTask(Task):
    """Learns image-level labels from pooled score maps; validated by mean average precision."""

    file_name = "best.safetensors"
    metric_names = ("validation_map",)

    def __init__(
        self,
        classifier: Classifier,
        training: Collection,
        validation: Collection,
        batch_size: int,
        max_pixels: int | None,
    ) -> None:
        self.network = classifier.network
        self.images = TrainingImages(training, classifier.preprocess, max_pixels=max_pixels)
        self._classifier = classifier
        self._labels_digest = labels_digest(training)
        self._validation = validation
        self._validation_images = TrainingImages(validation, classifier.preprocess, max_pixels=max_pixels)
        self._batch_size = batch_size

    def settings(self) -> dict[str, Any]:
        return {
            "architecture": self._classifier.architecture.to_dict(),
            "preprocess": asdict(self._classifier.preprocess),
            "image-level labels": self._labels_digest,
        }

    def loss(self, network: nn.Module, batch: Batch, scale: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        score_maps = network(*resize_images((images,), scale, "bilinear"))
        logits = pool_score_maps(score_maps.float(), self._classifier.pooling)
        return multi_label_loss(logits, batch.present.to(self.device, non_blocking=True))

    @torch.no_grad()
    def validate(self, processes: Processes, workers: int) -> Validation:
        world_size = processes.world_size
        samples = [SampleIndex(index) for index in range(processes.rank, len(self._validation), world_size)]
        size = max(1, self._batch_size // world_size)
        batches = [samples[i : i + size] for i in range(0, len(samples), size)]
        own_failures: list[str] = []
        own_logits: list[tuple[int, list[float]]] = []
        for batch in data_loader(self._validation_images, batches, workers):
            own_failures += batch.failures
            if len(batch):
                score_maps = self.network(batch.images.to(self.device))
                logits = pool_score_maps(score_maps.float(), self._classifier.pooling)
                own_logits += zip(batch.indices.tolist(), logits.tolist(), strict=True)
        failures = processes.gather(own_failures)
        logits_by_index = sorted(processes.gather(own_logits))
        if not logits_by_index:
            error = f"none of the {len(self._validation)} validation images could be read; the first: {min(failures)}"
            return Validation(failures=failures, error=error)
        scores = torch.tensor([row for _, row in logits_by_index])
        present = self._validation.presence()[[index for index, _ in logits_by_index]]
        value = float(mean_average_precision(scores, present))
        return Validation({"validation_map": value}, value, failures)

    def save(self, path: Path) -> None:
        save_network(self._classifier, path)


def multi_label_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Compute the binary cross entropy, summed over classes and averaged over images: Eq. 1 of DCSM.

    Args:
        logits: ``(N, C)``, score maps after global pooling.
        present: ``(N, C)``, 1 for classes in the image, else 0.

    Returns:
        Scalar, float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none").sum(dim=1).mean()

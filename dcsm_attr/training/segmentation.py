"""Training a segmentation network from images, image-level labels, and label maps of seeds or pseudo-labels."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcsm_attr.attribution.inputs import resize_images
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.result import labels_digest
from dcsm_attr.models.checkpoint import TrainedSegmentationNet, load_segmentation_net, save_network
from dcsm_attr.training.data import Batch, TrainingImages, downsample_labels
from dcsm_attr.training.distributed import Processes
from dcsm_attr.training.loop import Task, TrainingSettings, Validation, run_training
from dcsm_attr.training.optimizer import LITTLE_DATA, Schedule, ScheduleName
from dcsm_attr.wsss.losses import OBJECTIVES, ObjectiveName

__all__ = ["NETWORK_FILE", "SCHEDULES", "train_segmentation_net"]


#: Name of the file of the trained network in the folder of the training.
NETWORK_FILE = "segmentation_net.safetensors"

# The published learning rates of SEC and DSRG are those of VGG's layers; the new last layer has ten times as much, here
# the whole head.
_SEC = Schedule(
    optimizer="sgd",
    policy="step",
    learning_rate=1e-3,
    head_rate_factor=10.0,
    weight_decay=5e-4,
    batch_size=15,
    steps=8_000,
    head_only_steps=0,
    scale_range=(1.0, 1.0),
    step_decay=(2_000, 0.1),
)

#: By objective and by name. ``"paper"``: the published solvers; for pseudo-labels, that of DSRG's second step. Differs
#: from them: images are not cropped.
SCHEDULES: dict[ObjectiveName, dict[ScheduleName, Schedule]] = {
    "pseudo": {
        "paper": replace(_SEC, policy="poly", batch_size=10, steps=20_000, step_decay=None),
        "modern": LITTLE_DATA,
    },
    "sec": {"paper": _SEC, "modern": LITTLE_DATA},
    "dsrg": {
        "paper": replace(_SEC, learning_rate=5e-4, batch_size=20, step_decay=(1_000, 0.33)),
        "modern": LITTLE_DATA,
    },
}


def train_segmentation_net(
    start: TrainedSegmentationNet,
    collection: Collection,
    labels: Path,
    folder: str | Path,
    settings: TrainingSettings,
    *,
    objective: ObjectiveName = "pseudo",
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainedSegmentationNet:
    """Train a segmentation network; true masks are never read.

    Writes ``segmentation_net.safetensors``, the network at its last checkpoint (masks would be needed to choose a
    better one), and the other files of :func:`dcsm_attr.training.loop.run_training`, with the mean of each term of the
    loss since the last validation in ``log.csv``. The same call resumes an interrupted training.

    Args:
        start: initial network; it is trained in place.
        collection: images to learn from.
        labels: folder with a label map ``NAME.png`` per image: 0 background, ``c + 1`` for class ``c``, 255 unknown. At
            each position of the logits, the most frequent label counts.
        folder: where to write, see :func:`dcsm_attr.io.open_run_folder`.
        settings: settings of the training.
        objective: ``"pseudo"``, ``"sec"`` or ``"dsrg"``, see :mod:`dcsm_attr.wsss.losses`.
        device: where to train.
        workers: number of processes that read images; 0: the current process.
        max_pixels: larger images are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write the curves of the log for TensorBoard too.
        overwrite: whether to start over if the folder contains a training.
        progress: whether to show a progress bar.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the collection is empty or its classes are not those of the network, there is no such objective,
            the processes cannot share a batch evenly, or the folder contains a training with other settings.
        CheckpointError: if the checkpoint cannot be read.
        ImportError: if TensorBoard is requested and not installed.
        OSError: if the folder cannot be written to.
    """
    if not len(collection):
        raise ValueError("the training collection is empty: at least one image is needed.")
    if collection.class_names != start.class_names:
        raise ValueError(
            f"the training collection has the classes {collection.class_names}, the network {start.class_names}."
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}; got {objective!r}.")
    run_training(
        _SegmentationTask(start, collection, labels, objective, max_pixels),
        folder,
        settings,
        device=device,
        workers=workers,
        tensorboard=tensorboard,
        overwrite=overwrite,
        progress=progress,
    )
    return load_segmentation_net(Path(folder) / NETWORK_FILE)


class _SegmentationTask(Task):
    """Learns the labels of positions from label maps and image-level labels."""

    file_name = NETWORK_FILE

    def __init__(
        self,
        start: TrainedSegmentationNet,
        collection: Collection,
        labels: Path,
        objective: ObjectiveName,
        max_pixels: int | None,
    ) -> None:
        self.network = start.network
        self.images = TrainingImages(collection, start.preprocess, labels, max_pixels)
        self.metric_names = OBJECTIVES[objective].names
        self._start = start
        self._labels_digest = labels_digest(collection)
        self._objective: ObjectiveName = objective
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0

    def settings(self) -> dict[str, Any]:
        return {
            "architecture": self._start.architecture.to_dict(),
            "head": self._start.head,
            "output_stride": self._start.output_stride,
            "preprocess": asdict(self._start.preprocess),
            "objective": self._objective,
            "learned_from": self._start.learned_from,
            "image-level labels": self._labels_digest,
        }

    def loss(self, network: nn.Module, batch: Batch, scale: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        present = batch.present.bool().to(self.device, non_blocking=True)
        (resized,) = resize_images((images,), scale, "bilinear")
        if len(images) == 1:
            # The head of DeepLab v3 has a batch norm with one value per image and channel, which needs two.
            resized = resized.repeat(2, 1, 1, 1)
        logits = network(resized)[: len(images)]
        pixels = self._start.preprocess.pixels(images)
        terms = OBJECTIVES[self._objective](logits, downsample_labels(labels, logits.shape[2:]), present, pixels)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._num_steps += 1
        return torch.stack(list(terms.values())).sum()

    def validate(self, processes: Processes, workers: int) -> Validation:
        """Return the means of the terms of the loss since the last validation; any other metric would need masks."""
        own = (self._num_steps, {name: float(value) for name, value in self._sums.items()})
        parts = processes.gather([own])
        self._sums, self._num_steps = {}, 0
        steps = max(1, sum(count for count, _ in parts))
        return Validation({name: sum(sums.get(name, 0.0) for _, sums in parts) / steps for name in self.metric_names})

    def save(self, path: Path) -> None:
        save_network(self._start, path)

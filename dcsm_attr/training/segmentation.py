"""Training a segmentation network from photographs, image-level labels, and label maps of seeds or pseudo-labels."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dcsm_attr.attribution.inputs import rescaled
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.models.segmentation_net import TrainedSegmentationNet, load_segmentation_net, save_segmentation_net
from dcsm_attr.training.data import BatchPlan, LabeledBatch, LabeledCanvases, collate_labeled, downsample_labels
from dcsm_attr.training.distributed import Processes
from dcsm_attr.training.loop import Settings, Task, Validation, data_loader, run_training
from dcsm_attr.training.optimizer import LITTLE_DATA, Preset, PresetName
from dcsm_attr.wsss.losses import OBJECTIVES, ObjectiveName

__all__ = ["NETWORK_FILE", "PRESETS", "train_segmentation_net"]


#: The file of the trained network, in the folder of the training.
NETWORK_FILE = "segmentation_net.safetensors"

# Rates of SEC and DSRG are those of VGG's layers; their new last layer has ten times as much, here the whole head.
#: By the loss and then by name. ``"paper"``: the published solvers, of DSRG's second step for pseudo-labels; crops of
#: photographs are not reproduced. ``"modern"``: for little data.
PRESETS: dict[ObjectiveName, dict[PresetName, Preset]] = {
    "pseudo": {
        "paper": Preset(
            optimizer="sgd",
            schedule="poly",
            learning_rate=1e-3,
            head_rate=10.0,
            weight_decay=5e-4,
            batch_size=10,
            steps=20_000,
            head_only=0,
            ratios=(1.0, 1.0),
        ),
        "modern": LITTLE_DATA,
    },
    "sec": {
        "paper": Preset(
            optimizer="sgd",
            schedule="step",
            learning_rate=1e-3,
            head_rate=10.0,
            weight_decay=5e-4,
            batch_size=15,
            steps=8_000,
            head_only=0,
            ratios=(1.0, 1.0),
            decay=(2_000, 0.1),
        ),
        "modern": LITTLE_DATA,
    },
    "dsrg": {
        "paper": Preset(
            optimizer="sgd",
            schedule="step",
            learning_rate=5e-4,
            head_rate=10.0,
            weight_decay=5e-4,
            batch_size=20,
            steps=8_000,
            head_only=0,
            ratios=(1.0, 1.0),
            decay=(1_000, 0.33),
        ),
        "modern": LITTLE_DATA,
    },
}


def train_segmentation_net(
    start: TrainedSegmentationNet,
    collection: Collection,
    labels: Path,
    folder: str | Path,
    settings: Settings,
    *,
    objective: ObjectiveName = "pseudo",
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainedSegmentationNet:
    """Train a segmentation network; true masks are never read.

    Writes into the folder what :func:`dcsm_attr.training.loop.run_training` does, with the mean of each term of the
    loss since the last line in ``log.csv``; and ``segmentation_net.safetensors``, the network at its last checkpoint:
    to choose a better one takes masks.

    Args:
        start: where to start; it is trained in place.
        collection: photographs to learn from.
        labels: folder with a label map ``NAME.png`` for each: 0 background, ``c + 1`` for class ``c``, 255 where
            nothing is known. Of each position of the logits, the most frequent one counts.
        folder: where to write; a run that stands there is continued.
        settings: of the training.
        objective: ``"pseudo"``, ``"sec"`` or ``"dsrg"``, see :mod:`dcsm_attr.wsss.losses`.
        device: where to train.
        workers: processes that read photographs ahead; 0: this one reads them.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write curves for TensorBoard too.
        progress: whether to show a bar.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the collection is empty, its classes are not those of the network, there is no such objective, or
            the processes cannot share a batch evenly.
        CheckpointError: if the folder holds a run with other settings.
        ImportError: if TensorBoard is asked for and not installed.
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
    task = _SegmentationTask(start, collection, labels, objective, max_pixels)
    run_training(task, folder, settings, device=device, workers=workers, tensorboard=tensorboard, progress=progress)
    return load_segmentation_net(Path(folder) / NETWORK_FILE)


class _SegmentationTask(Task[LabeledBatch]):
    """Labels of positions from label maps."""

    fewest = 2

    def __init__(
        self,
        start: TrainedSegmentationNet,
        collection: Collection,
        labels: Path,
        objective: ObjectiveName,
        max_pixels: int | None,
    ) -> None:
        self.network = start.network
        self.photographs = len(collection)
        self.side = start.preprocess.side
        self._start = start
        self._name = objective
        self._objective = OBJECTIVES[objective]
        self.measured = self._objective.names
        self._present = collection.presence()
        self._canvases = LabeledCanvases(collection, labels, start.preprocess, max_pixels)
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def described(self) -> dict[str, Any]:
        return {
            "architecture": self._start.architecture.plain(),
            "head": self._start.head,
            "output_stride": self._start.output_stride,
            "preprocess": asdict(self._start.preprocess),
            "objective": self._name,
            "learned_from": self._start.learned_from,
        }

    def batches(self, plan: BatchPlan, workers: int) -> "DataLoader[Any]":
        return data_loader(self._canvases, plan, workers, collate_labeled)

    def loss(self, network: nn.Module, batch: LabeledBatch, ratio: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        present = self._present[batch.numbers].to(self.device, non_blocking=True)
        (resized,) = rescaled((images,), ratio, "bilinear")
        logits = network(self._enough(resized))[: len(images)]
        pixels = self._start.preprocess.pixels(images)
        terms = self._objective(logits, downsample_labels(labels, logits.shape[2:]), present, pixels)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self._steps += 1
        return torch.stack(list(terms.values())).sum()

    def validate(self, processes: Processes, workers: int) -> Validation:
        """The terms of the loss since the last time; nothing is measured that would take masks."""
        own = (self._steps, {name: float(value) for name, value in self._sums.items()})
        parts = processes.gathered([own])
        self._sums, self._steps = {}, 0
        steps = max(1, sum(count for count, _ in parts))
        return Validation({name: sum(sums.get(name, 0.0) for _, sums in parts) / steps for name in self.measured})

    def keep(self, folder: Path) -> None:
        save_segmentation_net(self._start, folder / NETWORK_FILE)

    def _enough(self, images: Tensor) -> Tensor:
        """One image twice: DeepLab's head has a batch norm of one value an image, which needs two."""
        return images.repeat(self.fewest, 1, 1, 1) if len(images) < self.fewest else images

"""Training AffinityNet from photographs and confident labels of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dcsm_attr.attribution.inputs import rescaled
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.models.affinity_net import (
    Border,
    TrainedAffinityNet,
    affinities,
    load_affinity_net,
    neighbor_offsets,
    pair_mask,
    save_affinity_net,
)
from dcsm_attr.training.data import BatchPlan, LabeledBatch, LabeledCanvases, collate_labeled, downsample_labels
from dcsm_attr.training.loop import Settings, Task, data_loader, run_training
from dcsm_attr.training.optimizer import LITTLE_DATA, Preset
from dcsm_attr.wsss.affinity import affinity_labels, affinity_loss

__all__ = ["NETWORK_FILE", "PRESETS", "train_affinity_net"]


#: The file of the trained network, in the folder of the training.
NETWORK_FILE = "affinity_net.safetensors"

#: By name. ``"paper"``: as the released code trains in effect (plain SGD: what it passes as weight decay lands in the
#: place of the momentum), eight epochs of 10,582 photographs; its crops, its resizing and its jitter of colors are not
#: reproduced, nor are its frozen first layers. ``"modern"``: for little data.
PRESETS: dict[str, Preset] = {
    "paper": Preset(
        optimizer="sgd",
        schedule="poly",
        learning_rate=0.1,
        head_rate=10.0,
        weight_decay=0.0,
        batch_size=8,
        steps=10_582,
        head_only=0,
        momentum=5e-4,
    ),
    "modern": LITTLE_DATA,
}


def train_affinity_net(
    start: TrainedAffinityNet,
    collection: Collection,
    labels: Path,
    folder: str | Path,
    settings: Settings,
    *,
    radius: int = 5,
    border: Border = "full",
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainedAffinityNet:
    """Train AffinityNet; true masks are never read.

    Writes into the folder what :func:`dcsm_attr.training.loop.run_training` does, and ``affinity_net.safetensors``, the
    network at its last checkpoint, as released: there is no better judge of it than the loss that it is trained with.

    Args:
        start: where to start; it is trained in place.
        collection: photographs to learn from.
        labels: folder with a label map ``NAME.png`` for each, see
            :func:`dcsm_attr.wsss.affinity.confident_labels`.
        folder: where to write; a run that stands there is continued.
        settings: of the training.
        radius: of the neighborhood, in positions of the features.
        border: which pairs are learned from, see :func:`dcsm_attr.models.affinity_net.pair_mask`.
        device: where to train.
        workers: processes that read photographs ahead; 0: this one reads them.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write curves for TensorBoard too.
        progress: whether to show a bar.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the collection is empty, or the processes cannot share a batch evenly.
        CheckpointError: if the folder holds a run with other settings.
        ImportError: if TensorBoard is asked for and not installed.
        OSError: if the folder cannot be written to.
    """
    if not len(collection):
        raise ValueError("the training collection is empty: at least one image is needed.")
    task = _AffinityTask(start, collection, labels, radius, border, max_pixels)
    run_training(task, folder, settings, device=device, workers=workers, tensorboard=tensorboard, progress=progress)
    return load_affinity_net(Path(folder) / NETWORK_FILE)


class _AffinityTask(Task[LabeledBatch]):
    """Affinities of neighbors from label maps."""

    def __init__(
        self,
        start: TrainedAffinityNet,
        collection: Collection,
        labels: Path,
        radius: int,
        border: Border,
        max_pixels: int | None,
    ) -> None:
        self.network = start.network
        self.photographs = len(collection)
        self.side = start.preprocess.side
        self._start = start
        self._radius = radius
        self._border: Border = border
        self._canvases = LabeledCanvases(collection, labels, start.preprocess, max_pixels)

    def described(self) -> dict[str, Any]:
        return {
            "architecture": self._start.architecture.plain(),
            "preprocess": asdict(self._start.preprocess),
            "norm": self._start.norm,
            "radius": self._radius,
            "border": self._border,
        }

    def batches(self, plan: BatchPlan, workers: int) -> "DataLoader[Any]":
        return data_loader(self._canvases, plan, workers, collate_labeled)

    def loss(self, network: nn.Module, batch: LabeledBatch, ratio: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        features = network(*rescaled((images,), ratio, "bilinear"))
        height, width = features.shape[2:]
        offsets = neighbor_offsets(self._radius)
        labels = downsample_labels(batch.labels.to(self.device, non_blocking=True), (height, width))
        known = affinity_labels(labels, offsets, pair_mask(height, width, offsets, self._border, device=self.device))
        return affinity_loss(affinities(features, offsets, self._start.norm), known)

    def keep(self, folder: Path) -> None:
        save_affinity_net(self._start, folder / NETWORK_FILE)

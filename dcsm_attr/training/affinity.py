"""Training AffinityNet from images and their confident labels."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcsm_attr.attribution.inputs import resize_images
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.result import labels_digest
from dcsm_attr.models.affinity_net import Border, affinities, neighbor_offsets, pair_mask
from dcsm_attr.models.checkpoint import TrainedAffinityNet, load_affinity_net, save_network
from dcsm_attr.training.data import Batch, TrainingImages, downsample_labels
from dcsm_attr.training.loop import Task, TrainingSettings, run_training
from dcsm_attr.training.optimizer import LITTLE_DATA, Schedule, ScheduleName
from dcsm_attr.wsss.affinity import affinity_labels, affinity_loss

__all__ = ["NETWORK_FILE", "SCHEDULES", "train_affinity_net"]


#: Name of the file of the trained network in the folder of the training.
NETWORK_FILE = "affinity_net.safetensors"

#: By name. ``"paper"``: what the released code does: plain SGD (it passes the weight decay in place of the momentum),
#: eight epochs of 10,582 images. Differs from it: no crops, no color jitter, other resizing, no frozen first layers.
SCHEDULES: dict[ScheduleName, Schedule] = {
    "paper": Schedule(
        optimizer="sgd",
        policy="poly",
        learning_rate=0.1,
        head_rate_factor=10.0,
        weight_decay=0.0,
        batch_size=8,
        steps=10_582,
        head_only_steps=0,
        momentum=5e-4,
    ),
    "modern": LITTLE_DATA,
}


def train_affinity_net(
    start: TrainedAffinityNet,
    collection: Collection,
    labels: Path,
    folder: str | Path,
    settings: TrainingSettings,
    *,
    radius: int = 5,
    border: Border = "full",
    device: torch.device | str = "cpu",
    workers: int = 2,
    max_pixels: int | None = None,
    tensorboard: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> TrainedAffinityNet:
    """Train AffinityNet; true masks are never read.

    Writes ``affinity_net.safetensors``, the network at its last checkpoint (as in the release: there is no better
    measure of it than the loss), and the other files of :func:`dcsm_attr.training.loop.run_training`. The same call
    resumes an interrupted training.

    Args:
        start: initial network; it is trained in place.
        collection: images to learn from.
        labels: folder with a label map ``NAME.png`` per image, see :func:`dcsm_attr.wsss.affinity.confident_labels`.
        folder: where to write, see :func:`dcsm_attr.io.open_run_folder`.
        settings: settings of the training.
        radius: of the neighborhood, in positions of the features.
        border: pairs to learn from, see :func:`dcsm_attr.models.affinity_net.pair_mask`.
        device: where to train.
        workers: number of processes that read images; 0: the current process.
        max_pixels: larger images are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        tensorboard: whether to write the curves of the log for TensorBoard too.
        overwrite: whether to start over if the folder contains a training.
        progress: whether to show a progress bar.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the collection is empty, the processes cannot share a batch evenly, or the folder contains a
            training with other settings.
        CheckpointError: if the checkpoint cannot be read.
        ImportError: if TensorBoard is requested and not installed.
        OSError: if the folder cannot be written to.
    """
    if not len(collection):
        raise ValueError("the training collection is empty: at least one image is needed.")
    run_training(
        _AffinityTask(start, collection, labels, radius, border, max_pixels),
        folder,
        settings,
        device=device,
        workers=workers,
        tensorboard=tensorboard,
        overwrite=overwrite,
        progress=progress,
    )
    return load_affinity_net(Path(folder) / NETWORK_FILE)


class _AffinityTask(Task):
    """Learns affinities of neighboring positions from label maps."""

    file_name = NETWORK_FILE

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
        self.images = TrainingImages(collection, start.preprocess, labels, max_pixels)
        self._start = start
        self._labels_digest = labels_digest(collection)
        self._radius = radius
        self._border: Border = border

    def settings(self) -> dict[str, Any]:
        return {
            "architecture": self._start.architecture.to_dict(),
            "preprocess": asdict(self._start.preprocess),
            "norm": self._start.norm,
            "radius": self._radius,
            "border": self._border,
            "image-level labels": self._labels_digest,
        }

    def loss(self, network: nn.Module, batch: Batch, scale: float) -> Tensor:
        images = batch.images.to(self.device, non_blocking=True)
        features = network(*resize_images((images,), scale, "bilinear"))
        height, width = features.shape[2:]
        offsets = neighbor_offsets(self._radius)
        labels = downsample_labels(batch.labels.to(self.device, non_blocking=True), (height, width))
        known = affinity_labels(labels, offsets, pair_mask(height, width, offsets, self._border, device=self.device))
        return affinity_loss(affinities(features, offsets, self._start.norm), known)

    def save(self, path: Path) -> None:
        save_network(self._start, path)

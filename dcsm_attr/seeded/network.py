"""Segmentation networks: a head of labels on the trunk of any classifier, and their files."""

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from dcsm_attr.backbones.classifier import Architecture
from dcsm_attr.backbones.convolutional import channels_of
from dcsm_attr.backbones.described_file import building_from, has_description, read_description, save_described
from dcsm_attr.backbones.dilation import keep_resolution
from dcsm_attr.backbones.loading import load_weights, read_weights
from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.backbones.trunk_copy import copied_trunk
from dcsm_attr.seeded.heads import SegmentationHead, segmentation_head

__all__ = [
    "SegmentationNet",
    "TrainedSegmentationNet",
    "is_segmentation_net",
    "load_segmentation_net",
    "save_segmentation_net",
]

_KEY = "dcsm_attr.segmentation_net"


class SegmentationNet(nn.Module):
    """Logits of the background and of each class, at the resolution of the trunk.

    Attributes:
        trunk: images to a map of features.
        head: the map to logits.
    """

    def __init__(
        self, trunk: nn.Module, num_classes: int, head: SegmentationHead = "deeplab", output_stride: int | None = 8
    ) -> None:
        """Build the network on a trunk.

        Args:
            trunk: of a :class:`~dcsm_attr.backbones.convolutional.ScoreMapNetwork`; copied with its weights. The head
                is drawn from PyTorch's global generator.
            num_classes: C, without the background.
            head: see :func:`~dcsm_attr.seeded.heads.segmentation_head`.
            output_stride: pixels of the image to one position, see
                :func:`~dcsm_attr.backbones.dilation.keep_resolution`. None: the trunk's own.

        Raises:
            ValueError: if there is no such head, or the trunk cannot have the stride.
        """
        super().__init__()
        self.trunk = copied_trunk(trunk)
        if output_stride is not None:
            keep_resolution(self.trunk, output_stride)
        self.head = segmentation_head(head, channels_of(self.trunk), 1 + num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of labels.

        Args:
            images: ``(N, 3, H, W)``, normalised.

        Returns:
            ``(N, 1 + C, h, w)``: the background, then each class.
        """
        logits: Tensor = self.head(self.trunk(images)["map"])
        return logits


@dataclass(frozen=True)
class TrainedSegmentationNet:
    """A segmentation network with what it was built from.

    Attributes:
        network: gives logits.
        architecture: the classifier whose trunk it has.
        head: see :func:`~dcsm_attr.seeded.heads.segmentation_head`.
        output_stride: see :class:`SegmentationNet`.
        class_names: one a class, without the background.
        preprocess: the canvas that it was, or is to be, trained on.
        learned_from: the loss and the labels that it is trained by, in a few words.
    """

    network: SegmentationNet
    architecture: Architecture
    head: SegmentationHead
    output_stride: int | None
    class_names: tuple[str, ...]
    preprocess: Preprocess
    learned_from: str = ""


def save_segmentation_net(trained: TrainedSegmentationNet, path: str | Path) -> None:
    """Write the network to a ``.safetensors`` file, which appears when it is complete.

    Args:
        trained: all of it is kept.
        path: of the file.
    """
    description = {
        "architecture": trained.architecture.plain(),
        "head": trained.head,
        "output_stride": trained.output_stride,
        "class_names": trained.class_names,
        "preprocess": asdict(trained.preprocess),
        "learned_from": trained.learned_from,
    }
    save_described(trained.network, path, _KEY, description)


def is_segmentation_net(path: str | Path) -> bool:
    """Whether a file is one that :func:`save_segmentation_net` wrote."""
    return has_description(path, _KEY)


def load_segmentation_net(path: str | Path) -> TrainedSegmentationNet:
    """Load what :func:`save_segmentation_net` wrote.

    Args:
        path: the file.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing, incomplete, or no segmentation network of this package.
    """
    description = read_description(path, _KEY, "segmentation network that `dcsm-attr train-seg` wrote", "Train one.")
    with building_from(path, "train again."):
        architecture = Architecture(**description["architecture"])
        preprocess = Preprocess.from_plain(description["preprocess"])
        names = tuple(description["class_names"])
        head, output_stride = description["head"], description["output_stride"]
        learned_from = description["learned_from"]
        network = SegmentationNet(architecture.new_network().trunk, len(names), head, output_stride)
    load_weights(network, read_weights(path), str(path))
    return TrainedSegmentationNet(network.eval(), architecture, head, output_stride, names, preprocess, learned_from)

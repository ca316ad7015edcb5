"""``dcsm-attr train-seg``: a segmentation network from seeds or pseudo-labels."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli.building import chosen_classifier, chosen_device
from dcsm_attr.cli.collections import opened_collection
from dcsm_attr.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    ModelName,
    Seed,
    Steps,
    TensorBoard,
    TrainingChoice,
    TrainingFolder,
    Workers,
)

if TYPE_CHECKING:
    from dcsm_attr.backbones.classifier import Classifier

__all__ = ["train_seg"]


class LossChoice(str, Enum):
    """What is learned by."""

    PSEUDO = "pseudo"
    SEC = "sec"
    DSRG = "dsrg"


class HeadChoice(str, Enum):
    """The heads of a segmentation network."""

    DEEPLAB = "deeplab"
    FCN = "fcn"
    LARGEFOV = "largefov"
    ASPP = "aspp"


def train_seg(
    data: Data,
    labels_from: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="A label map NAME.png for each photograph, 255 where nothing is known: of dcsm-attr seeds, ficklenet, "
            "or affinity (its pseudo-labels).",
            show_default=False,
        ),
    ],
    labels: LabelsFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The photographs to learn from.")] = "train",
    loss: Annotated[
        LossChoice,
        typer.Option(
            help="pseudo: cross entropy at all labels. sec: seed, expand, constrain to boundaries. dsrg: seeds that "
            "grow, balanced, and boundaries."
        ),
    ] = LossChoice.PSEUDO,
    model: ModelName = "vgg16",
    weights: Annotated[
        str,
        typer.Option(
            metavar="DEFAULT|FILE|none",
            help="Of the backbone; none: drawn anew. A classifier that dcsm-attr train wrote brings its own model.",
        ),
    ] = "DEFAULT",
    cut: Annotated[str | None, typer.Option(metavar="STAGE", help="Where the backbone ends, such as layer3.")] = None,
    head: Annotated[
        HeadChoice,
        typer.Option(
            help="deeplab: DeepLab v3's. fcn: torchvision's. largefov: VGG's fc6 to fc8 with a large field of view. "
            "aspp: four of these, summed, as DSRG has it."
        ),
    ] = HeadChoice.DEEPLAB,
    output_stride: Annotated[
        int,
        typer.Option(min=0, help="Pixels to one position: later strides become dilations. 0: the backbone's own."),
    ] = 8,
    preset: Annotated[
        TrainingChoice, typer.Option(help="paper: the published solver of the loss; modern: for little data.")
    ] = TrainingChoice.MODERN,
    steps: Steps = None,
    batch_size: BatchSize = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the square that photographs are warped to.")] = 321,
    seed: Seed = 0,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    workers: Workers = 2,
    tensorboard: TensorBoard = False,
    output: TrainingFolder = Path("out/segmentation"),
) -> None:
    """Train a segmentation network on label maps of seeds or pseudo-labels; masks are never read.

    Writes segmentation_net.safetensors (the network after the last step: to choose a better one takes masks), log.csv
    with each term of the loss, settings.json, unreadable.json, and last.pt, from which the same command goes on after
    an interruption. Under torchrun, the processes share each batch. dcsm-attr evaluate and segment take the network as
    --weights, and test it at three scales and mirrored, with the CRF.

    Examples:
      dcsm-attr train-seg VOCdevkit/VOC2012 --labels-from out/affinity/pseudo-labels --model resnet50

      dcsm-attr train-seg VOC --labels-from out/ficklenet --loss dsrg --head aspp --preset paper

      dcsm-attr evaluate VOC --weights out/segmentation/segmentation_net.safetensors --protocol both
    """
    import torch

    from dcsm_attr.seeded.network import SegmentationNet, TrainedSegmentationNet
    from dcsm_attr.seeded.training import NETWORK, PRESETS, train_segmentation_net
    from dcsm_attr.training.loop import Settings

    collection = opened_collection(data, labels, split)
    if not labels_from.is_dir():
        raise ValueError(
            f"--labels-from: there is no folder {labels_from}. Give the one that dcsm-attr seeds, ficklenet, affinity "
            "or pseudo-label wrote label maps to."
        )
    torch.manual_seed(seed)
    backbone = _backbone(model, weights, cut, collection.class_names, size)
    stride = output_stride or None
    start = TrainedSegmentationNet(
        SegmentationNet(backbone.network.trunk, len(collection.class_names), head.value, stride),
        backbone.architecture,
        head.value,
        stride,
        collection.class_names,
        backbone.preprocess,
        f"{loss.value}, {labels_from.name}",
    )
    chosen = PRESETS[loss.value][preset.value].adapted(steps=steps, batch_size=batch_size)
    train_segmentation_net(
        start,
        collection,
        labels_from,
        output,
        Settings(chosen, seed),
        objective=loss.value,
        device=chosen_device(device.value),
        workers=workers,
        max_pixels=max_pixels,
        tensorboard=tensorboard,
    )
    typer.echo(f"{output / NETWORK}: the network; log.csv beside it says how it went.")


def _backbone(model: str, weights: str, cut: str | None, names: tuple[str, ...], size: int) -> "Classifier":
    """A classifier for its trunk, on the canvas that SEC has: warped, so that no position is empty."""
    from dcsm_attr.backbones.classifier import Architecture, build_classifier, is_classifier
    from dcsm_attr.backbones.preprocess import Preprocess

    if weights == "demo" or is_classifier(weights):
        classifier = chosen_classifier(weights)
        of_classifier = classifier.preprocess
        return replace(classifier, preprocess=replace(of_classifier, canvas="caffe", size=size))
    architecture = Architecture(model, len(names), cut, "linear")
    source = None if weights == "none" else weights
    return build_classifier(architecture, source, names, Preprocess("caffe", size))

"""``dcsm-attr train``: a classifier from image-level labels.

``dcsm-attr train-seg``: a segmentation network from seeds or pseudo-labels.

``dcsm-attr labels``: the image-level labels of a VOC folder, as a CSV file.

``dcsm-attr scenes``: generated scenes as a data set, to try training and evaluation without images.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from dcsm_attr.cli.building import load_chosen_classifier, resolve_device
from dcsm_attr.cli.options import (
    BatchSize,
    Data,
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    ModelName,
    OutputStride,
    Seed,
    Steps,
    TensorBoard,
    TrainingChoice,
    TrainingFolder,
    VocRoot,
    Workers,
)
from dcsm_attr.cli.runs import open_collection, report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.datasets.masks import MaskReadError
    from dcsm_attr.datasets.voc import VocEntry
    from dcsm_attr.models.checkpoint import Classifier
    from dcsm_attr.models.stochastic import FickleSettings

__all__ = ["labels", "scenes", "train", "train_seg"]


_FICKLE = "Head fickle"


class HeadChoice(str, Enum):
    """The heads of a classifier."""

    OWN = "own"
    EXTENDED = "extended"
    LINEAR = "linear"
    RECTIFIED = "rectified"
    NORMALIZED = "normalized"
    FICKLE = "fickle"


class PoolingChoice(str, Enum):
    """From score maps to scores."""

    MAX = "max"
    AVERAGE = "average"
    LOGSUMEXP = "logsumexp"


def train(
    data: Data,
    output: TrainingFolder = Path("out/classifier"),
    labels: LabelsFile = None,
    model: ModelName = "vgg16",
    weights: Annotated[
        str,
        typer.Option(metavar="DEFAULT|FILE|none", help="Of the backbone; none: randomly initialized."),
    ] = "DEFAULT",
    cut: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Where the backbone ends, such as layer3; needs a new head.")
    ] = None,
    head: Annotated[
        HeadChoice,
        typer.Option(
            help="own: the model's; extended: with its own classes, rectified, as a hidden layer; linear: one 1 x 1 "
            "convolution; rectified: VGG-style, randomly initialized; normalized: the same with batch norms, for a cut "
            "network; fickle: FickleNet's stochastic selection of hidden units."
        ),
    ] = HeadChoice.OWN,
    output_stride: OutputStride = None,
    window: Annotated[
        int | None,
        typer.Option(help="Side of the windows, odd; 9, if not given.", rich_help_panel=_FICKLE),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Probability that a unit is dropped; 0.9, if not given.", rich_help_panel=_FICKLE),
    ] = None,
    general_dropout: Annotated[
        bool,
        typer.Option(
            "--general-dropout", help="Drop the centers of windows too, as ordinary dropout.", rich_help_panel=_FICKLE
        ),
    ] = False,
    pooling: Annotated[
        PoolingChoice | None, typer.Option(help="From score maps to scores; the preset's, if not given.")
    ] = None,
    preset: Annotated[
        TrainingChoice, typer.Option(help="paper: its optimizer and its 50,000 steps; modern: for little data.")
    ] = TrainingChoice.MODERN,
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the backbone.")] = None,
    size: Annotated[int, typer.Option(min=32, help="Side of the canvas in pixels.")] = 500,
    seed: Seed = 0,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    workers: Workers = 2,
    tensorboard: TensorBoard = False,
) -> None:
    """Train a classifier on image-level labels; masks are never read.

    Writes best.safetensors (the best on the images of split val, which the other commands take as --weights),
    log.csv, settings.json, unreadable.json (why photographs could not be read, if any), and last.pt, from which the
    same command goes on after an interruption. Under torchrun, the processes share each batch. --model scene_net is the
    network of the generated scenes; its DEFAULT weights are those of the shipped one's backbone.

    Examples:
      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --preset paper

      dcsm-attr train VOCdevkit/VOC2012 --model squeezenet1_1 --head extended --size 320

      dcsm-attr train pictures --labels labels.csv --model resnet18 --cut layer3 --head normalized

      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --cut features.29 --output-stride 8 --head fickle --size 321

      torchrun --nproc-per-node 4 -m dcsm_attr train VOCdevkit/VOC2012 --batch-size 32
    """
    import torch

    from dcsm_attr.cli.building import resolve_device
    from dcsm_attr.datasets.preprocess import Preprocess
    from dcsm_attr.models.checkpoint import Architecture, build_classifier
    from dcsm_attr.training.classifier import SCHEDULES, train_classifier
    from dcsm_attr.training.loop import TrainingSettings

    fickle = _fickle_settings(head, window, rate, general_dropout)
    training, validation = (open_collection(data, labels, split) for split in ("train", "val"))
    chosen = SCHEDULES[preset.value].with_changes(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        pooling=None if pooling is None else pooling.value,
    )
    torch.manual_seed(seed)
    names = training.class_names
    architecture = Architecture(model, len(names), cut, head.value, output_stride, fickle)
    backbone = None if weights == "none" else weights
    classifier = build_classifier(architecture, backbone, names, Preprocess(size=size))
    settings = TrainingSettings(chosen, seed)
    train_classifier(
        classifier,
        training,
        validation,
        output,
        settings,
        device=resolve_device(device.value),
        workers=workers,
        max_pixels=max_pixels,
        tensorboard=tensorboard,
    )
    typer.echo(f"{output / 'best.safetensors'}: the best classifier; log.csv beside it says how it went.")


def _fickle_settings(
    head: HeadChoice, window: int | None, rate: float | None, general_dropout: bool
) -> "FickleSettings":
    """Read the options of FickleNet's head."""
    from dcsm_attr.models.stochastic import FickleSettings

    given = {"window": window, "rate": rate, "keep_center": False if general_dropout else None}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if settings and head is not HeadChoice.FICKLE:
        raise ValueError("--window, --rate and --general-dropout belong to --head fickle.")
    return FickleSettings(**settings)


class LossChoice(str, Enum):
    """What is learned by."""

    PSEUDO = "pseudo"
    SEC = "sec"
    DSRG = "dsrg"


class SegmentationHeadChoice(str, Enum):
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
            help="A label map NAME.png for each image, 255 where nothing is known: of dcsm-attr seeds, ficklenet, "
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
            help="Of the backbone; none: randomly initialized. A classifier that dcsm-attr train wrote brings "
            "its own model.",
        ),
    ] = "DEFAULT",
    cut: Annotated[str | None, typer.Option(metavar="STAGE", help="Where the backbone ends, such as layer3.")] = None,
    head: Annotated[
        SegmentationHeadChoice,
        typer.Option(
            help="deeplab: DeepLab v3's. fcn: torchvision's. largefov: VGG's fc6 to fc8 with a large field of view. "
            "aspp: four of these, summed, as DSRG has it."
        ),
    ] = SegmentationHeadChoice.DEEPLAB,
    output_stride: Annotated[
        int,
        typer.Option(min=0, help="Pixels to one position: later strides become dilations. 0: the backbone's own."),
    ] = 8,
    preset: Annotated[
        TrainingChoice, typer.Option(help="paper: the published solver of the loss; modern: for little data.")
    ] = TrainingChoice.MODERN,
    steps: Steps = None,
    batch_size: BatchSize = None,
    size: Annotated[int, typer.Option(min=16, help="Side of the square that images are warped to.")] = 321,
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

    from dcsm_attr.models.checkpoint import TrainedSegmentationNet
    from dcsm_attr.models.segmentation_net import SegmentationNet
    from dcsm_attr.training.loop import TrainingSettings
    from dcsm_attr.training.segmentation import NETWORK_FILE, SCHEDULES, train_segmentation_net

    collection = open_collection(data, labels, split)
    if not labels_from.is_dir():
        raise ValueError(
            f"--labels-from: there is no folder {labels_from}. Give the one that dcsm-attr seeds, ficklenet, affinity "
            "or pseudo-label wrote label maps to."
        )
    torch.manual_seed(seed)
    classifier = _backbone(model, weights, cut, collection.class_names, size)
    stride = output_stride or None
    start = TrainedSegmentationNet(
        SegmentationNet(classifier.network.backbone, len(collection.class_names), head.value, stride),
        classifier.architecture,
        head.value,
        stride,
        collection.class_names,
        classifier.preprocess,
        f"{loss.value}, {labels_from.name}",
    )
    chosen = SCHEDULES[loss.value][preset.value].with_changes(steps=steps, batch_size=batch_size)
    train_segmentation_net(
        start,
        collection,
        labels_from,
        output,
        TrainingSettings(chosen, seed),
        objective=loss.value,
        device=resolve_device(device.value),
        workers=workers,
        max_pixels=max_pixels,
        tensorboard=tensorboard,
    )
    typer.echo(f"{output / NETWORK_FILE}: the network; log.csv beside it says how it went.")


def _backbone(model: str, weights: str, cut: str | None, names: tuple[str, ...], size: int) -> "Classifier":
    """A classifier for its backbone, on the canvas that SEC has: warped, so that no position is empty."""
    from dcsm_attr.datasets.preprocess import Preprocess
    from dcsm_attr.models.checkpoint import Architecture, build_classifier, network_kind

    if weights == "demo" or network_kind(weights) == "classifier":
        classifier = load_chosen_classifier(weights)
        of_classifier = classifier.preprocess
        return replace(classifier, preprocess=replace(of_classifier, canvas="caffe", size=size))
    architecture = Architecture(model, len(names), cut, "linear")
    source = None if weights == "none" else weights
    return build_classifier(architecture, source, names, Preprocess("caffe", size))


def labels(
    voc_root: VocRoot,
    split: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="A list in ImageSets/Segmentation; may be given several times.", show_default=False
        ),
    ],
    max_pixels: MaxPixels = None,
    output: Annotated[Path, typer.Option(metavar="FILE", help="The CSV file to write.")] = Path("labels.csv"),
) -> None:
    """Derive image-level labels: which classes each image shows.

    Reads the objects in Annotations, difficult ones included; where there is no such folder, the masks. Writes a line
    for each image: its id, its split and the names of its classes. Training reads this file, and never a mask. A
    photograph whose mask cannot be read is left out and named.

    Examples:
      dcsm-attr labels VOCdevkit/VOC2012 --split train

      dcsm-attr labels VOCdevkit/VOC2012 --split train_aug --output train_aug.csv

      dcsm-attr labels VOC --split train --split val --output VOC/image_labels.csv
    """
    from dcsm_attr.datasets.labels import ImageLabels, LabelRow, write_image_labels
    from dcsm_attr.datasets.masks import MaskReadError
    from dcsm_attr.datasets.voc import annotation_files, read_voc_list, voc_class_names
    from dcsm_attr.io import make_writable_folder

    listed = [(name, entry) for name in split for entry in read_voc_list(voc_root, name)]
    _check_listed_once([entry.name for _, entry in listed])
    entries = [entry for _, entry in listed]
    annotations = annotation_files(voc_root, [entry.name for entry in entries])
    make_writable_folder(output.parent)
    class_names = voc_class_names(voc_root)
    derived = tqdm(_derived(entries, annotations, class_names, max_pixels), total=len(entries), unit="photo")
    found = {entry.name: (name, shown) for (name, entry), shown in zip(listed, derived, strict=True)}
    skipped = {name: str(shown) for name, (_, shown) in found.items() if isinstance(shown, MaskReadError)}
    rows = {name: LabelRow(of, shown) for name, (of, shown) in found.items() if not isinstance(shown, MaskReadError)}
    if not rows:
        raise ValueError(
            f"{voc_root}: none of the {len(found)} masks could be read; the first: {next(iter(skipped.values()))}"
        )
    write_image_labels(output, ImageLabels(class_names, rows))
    counts = Counter(class_names[c] for row in rows.values() for c in row.classes)
    typer.echo(f"{output}: {len(rows)} photographs, from the {'masks' if annotations is None else 'annotations'}")
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.most_common()))
    report_skipped_images(skipped)


def _check_listed_once(names: Sequence[str]) -> None:
    from dcsm_attr.datasets.labels import summarize_names

    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"--split: {len(twice)} photographs are in two of the lists: {summarize_names(twice)}. Give lists "
            "that share none."
        )


def _derived(
    entries: "Sequence[VocEntry]",
    annotations: Sequence[Path] | None,
    class_names: Sequence[str],
    max_pixels: int | None,
) -> "Iterator[tuple[int, ...] | MaskReadError]":
    """The classes of each image, or why its mask cannot be read."""
    from dcsm_attr.datasets.labels import require_files
    from dcsm_attr.datasets.masks import MaskReadError, classes_in_mask, read_mask
    from dcsm_attr.datasets.voc import annotated_classes

    if annotations is not None:
        yield from (annotated_classes(annotation, class_names) for annotation in annotations)
        return
    masks = [entry.mask for entry in entries]
    require_files(masks, "masks", "Where there is no folder Annotations, the labels come from them.")
    for mask in masks:
        try:
            classes = classes_in_mask(read_mask(mask, class_count=len(class_names), max_pixels=max_pixels))
        except MaskReadError as error:
            yield error
            continue
        if not classes:
            raise ValueError(f"{mask}: shows no class; take the image out of the list.")
        yield classes


def scenes(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Where to write; an interrupted run resumes.", show_default=False),
    ],
    count: Annotated[int, typer.Option(min=2, help="How many scenes; every fifth is one of validation.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the series.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the scenes in pixels.")] = 128,
) -> None:
    """Draw a data set of scenes with several objects each, offline.

    Writes a folder in the layout of PASCAL VOC: JPEGImages, SegmentationClass (masks), ImageSets (train and val),
    image_labels.csv and classes.txt. The other commands take it as they take VOCdevkit/VOC2012.

    Examples:
      dcsm-attr scenes scenes --count 400

      dcsm-attr train scenes --model squeezenet1_1 --weights none --size 128

      dcsm-attr evaluate scenes --weights out/classifier/best.safetensors
    """
    from dcsm_attr.datasets.scenes import write_scene_folder

    write_scene_folder(folder, count, seed=seed, size=size)
    typer.echo(f"{folder}: {count} scenes")

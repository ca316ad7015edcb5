"""``dcsm-attr labels``, ``train``, ``train-seg`` and ``scenes``: data sets, and the training of networks on them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcsm_attr.cli.build import load_trained_classifier, resolve_device
from dcsm_attr.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    TRAINING,
    BackboneEnd,
    BackboneWeights,
    Data,
    Device,
    ImageLabels,
    ModelName,
    Output,
    Overwrite,
    TrainingOptions,
    VocRoot,
    with_option_groups,
)
from dcsm_attr.cli.runs import open_collection, report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.datasets.masks import MaskReadError
    from dcsm_attr.datasets.voc import VocEntry
    from dcsm_attr.models.checkpoint import Classifier

__all__ = ["labels", "scenes", "train", "train_seg"]


@with_option_groups
def train(
    data: Data,
    training: TrainingOptions,
    image_labels: ImageLabels = None,
    model: ModelName = "vgg16",
    weights: BackboneWeights = "DEFAULT",
    device: Device = "auto",
    cut: BackboneEnd = None,
    head: Annotated[
        Literal["own", "extended", "linear", "rectified", "normalized", "fickle"],
        typer.Option(
            help="Layers after the backbone. own: the model's. extended: the model's own classifier, rectified, as a "
            "hidden layer. linear: one 1 x 1 convolution. rectified: as in VGG, randomly initialized. normalized: "
            "rectified with batch norm, for a cut backbone. fickle: FickleNet's stochastic selection of hidden units.",
            rich_help_panel=MODEL,
        ),
    ] = "own",
    output_stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels per position of the last feature map; the last strides become dilations. By default, the "
            "model's own.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    pooling: Annotated[
        Literal["max", "average", "logsumexp"] | None,
        typer.Option(help="How score maps become scores. By default, that of the schedule.", rich_help_panel=MODEL),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Learning rate of the backbone. By default, that of the schedule.", rich_help_panel=TRAINING),
    ] = None,
    size: Annotated[
        int, typer.Option(min=32, help="Side of the training images in pixels.", rich_help_panel=TRAINING)
    ] = 500,
    output: Output = Path("out/classifier"),
    overwrite: Overwrite = False,
) -> None:
    """Train a classifier on image-level labels; masks are never read.

    Writes best.safetensors (the network with the best score on the split val, the --weights of other commands),
    log.csv, settings.json, unreadable.json (images that could not be read, if any), and last.pt. Running the same
    command again resumes an interrupted run. Under torchrun, the processes share each batch. The model scene_net is
    the network of the generated scenes.

    Examples:
      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --schedule paper

      dcsm-attr train VOCdevkit/VOC2012 --model squeezenet1_1 --head extended --size 320

      dcsm-attr train photos --image-labels labels.csv --model resnet18 --cut layer3 --head normalized

      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --cut features.29 --output-stride 8 --head fickle --size 321

      torchrun --nproc-per-node 4 -m dcsm_attr train VOCdevkit/VOC2012 --batch-size 32
    """
    import torch

    from dcsm_attr.datasets.preprocess import Preprocess
    from dcsm_attr.models.checkpoint import Architecture, build_classifier
    from dcsm_attr.training.classifier import SCHEDULES, train_classifier
    from dcsm_attr.training.loop import TrainingSettings

    train_images, val_images = (open_collection(data, image_labels, split) for split in ("train", "val"))
    schedule = SCHEDULES[training.schedule].with_changes(
        steps=training.steps, batch_size=training.batch_size, learning_rate=learning_rate, pooling=pooling
    )
    torch.manual_seed(training.seed)
    names = train_images.class_names
    architecture = Architecture(model, len(names), cut, head, output_stride)
    source = None if weights == "none" else weights
    train_classifier(
        build_classifier(architecture, source, names, Preprocess(size=size)),
        train_images,
        val_images,
        output,
        TrainingSettings(schedule, training.seed),
        device=resolve_device(device),
        workers=training.workers,
        tensorboard=training.tensorboard,
        overwrite=overwrite,
    )
    typer.echo(f"{output / 'best.safetensors'}: the best classifier; log.csv: losses and metrics")


@with_option_groups
def train_seg(
    data: Data,
    label_maps: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder with a label map NAME.png per image, 255 where the label is unknown: seeds of dcsm-attr seeds "
            "or ficklenet, or pseudo-labels of dcsm-attr affinity or pseudo-label.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ],
    training: TrainingOptions,
    image_labels: ImageLabels = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Images to train on.", rich_help_panel=DATA)] = "train",
    model: ModelName = "vgg16",
    weights: BackboneWeights = "DEFAULT",
    device: Device = "auto",
    cut: BackboneEnd = None,
    head: Annotated[
        Literal["deeplab", "fcn", "largefov", "aspp"],
        typer.Option(
            help="Layers after the backbone. deeplab: DeepLab v3. fcn: torchvision's FCN. largefov: VGG's fc6 to fc8 "
            "with a large field of view. aspp: the sum of four of these, as in DSRG.",
            rich_help_panel=MODEL,
        ),
    ] = "deeplab",
    output_stride: Annotated[
        int,
        typer.Option(
            min=0,
            help="Pixels per position of the last feature map; the last strides become dilations. 0: the backbone's "
            "own.",
            rich_help_panel=MODEL,
        ),
    ] = 8,
    loss: Annotated[
        Literal["pseudo", "sec", "dsrg"],
        typer.Option(
            help="pseudo: cross entropy of all labels. sec: seed, expand and constrain-to-boundary losses. dsrg: "
            "balanced seed loss with region growing, and boundary loss.",
            rich_help_panel=TRAINING,
        ),
    ] = "pseudo",
    size: Annotated[
        int,
        typer.Option(min=16, help="Side of the square that images are resized to.", rich_help_panel=TRAINING),
    ] = 321,
    output: Output = Path("out/segmentation"),
    overwrite: Overwrite = False,
) -> None:
    """Train a segmentation network on seeds or pseudo-labels; masks are never read.

    Writes segmentation_net.safetensors (the network after the last step, since selecting a better one requires masks),
    log.csv with each term of the loss, settings.json, unreadable.json, and last.pt. Running the same command again
    resumes an interrupted run. Under torchrun, the processes share each batch. dcsm-attr evaluate and segment accept
    the network as --weights and run it at three scales and mirrored, with the CRF.

    Examples:
      dcsm-attr train-seg VOCdevkit/VOC2012 --label-maps out/affinity/pseudo-labels --model resnet50

      dcsm-attr train-seg VOC --label-maps out/ficklenet --loss dsrg --head aspp --schedule paper

      dcsm-attr evaluate VOC --weights out/segmentation/segmentation_net.safetensors --protocol both
    """
    import torch

    from dcsm_attr.models.checkpoint import TrainedSegmentationNet
    from dcsm_attr.models.segmentation_net import SegmentationNet
    from dcsm_attr.training.loop import TrainingSettings
    from dcsm_attr.training.segmentation import NETWORK_FILE, SCHEDULES, train_segmentation_net

    collection = open_collection(data, image_labels, split)
    if not label_maps.is_dir():
        raise ValueError(
            f"--label-maps: there is no folder {label_maps}. Use a folder of label maps written by dcsm-attr seeds, "
            "ficklenet, affinity or pseudo-label."
        )
    torch.manual_seed(training.seed)
    classifier = _load_backbone(model, weights, cut, collection.class_names, size)
    stride = output_stride or None
    start = TrainedSegmentationNet(
        SegmentationNet(classifier.network.backbone, len(collection.class_names), head, stride),
        classifier.architecture,
        head,
        stride,
        collection.class_names,
        classifier.preprocess,
        f"{loss}, {label_maps.name}",
    )
    schedule = SCHEDULES[loss][training.schedule].with_changes(steps=training.steps, batch_size=training.batch_size)
    train_segmentation_net(
        start,
        collection,
        label_maps,
        output,
        TrainingSettings(schedule, training.seed),
        objective=loss,
        device=resolve_device(device),
        workers=training.workers,
        tensorboard=training.tensorboard,
        overwrite=overwrite,
    )
    typer.echo(f"{output / NETWORK_FILE}: the network; log.csv: the terms of the loss")


def _load_backbone(model: str, weights: str, cut: str | None, names: tuple[str, ...], size: int) -> "Classifier":
    """A classifier for its backbone, with SEC's preprocessing: images are warped, so that no position is empty."""
    from dcsm_attr.datasets.preprocess import Preprocess
    from dcsm_attr.models.checkpoint import Architecture, build_classifier, network_kind

    if weights == "demo" or network_kind(weights) == "classifier":
        classifier = load_trained_classifier(weights)
        return replace(classifier, preprocess=replace(classifier.preprocess, canvas="caffe", size=size))
    architecture = Architecture(model, len(names), cut, "linear")
    source = None if weights == "none" else weights
    return build_classifier(architecture, source, names, Preprocess("caffe", size))


def labels(
    voc_root: VocRoot,
    split: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A list in ImageSets/Segmentation; may be repeated.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="FILE.csv", help="CSV file to write.", rich_help_panel=OUTPUT)] = Path(
        "labels.csv"
    ),
) -> None:
    """Write a CSV file of image-level labels for a VOC folder.

    Reads the objects in Annotations, including difficult ones; without this folder, the masks. Writes the id, the
    split and the names of the classes of each image. Training reads this file, and never a mask. Images whose masks
    cannot be read are skipped and listed.

    Examples:
      dcsm-attr labels VOCdevkit/VOC2012 --split train

      dcsm-attr labels VOCdevkit/VOC2012 --split train_aug --output train_aug.csv

      dcsm-attr labels VOC --split train --split val --output VOC/image_labels.csv
    """
    from tqdm import tqdm

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
    classes = tqdm(_read_classes(entries, annotations, class_names), total=len(entries), unit="image")
    rows, skipped = {}, {}
    for (name, entry), found in zip(listed, classes, strict=True):
        if isinstance(found, MaskReadError):
            skipped[entry.name] = str(found)
        else:
            rows[entry.name] = LabelRow(name, found)
    if not rows:
        raise ValueError(
            f"{voc_root}: none of the {len(listed)} masks could be read; the first: {next(iter(skipped.values()))}"
        )
    write_image_labels(output, ImageLabels(class_names, rows))
    counts = Counter(class_names[c] for row in rows.values() for c in row.classes)
    typer.echo(f"{output}: {len(rows)} images, from the {'masks' if annotations is None else 'annotations'}")
    typer.echo(", ".join(f"{name} {count}" for name, count in counts.most_common()))
    report_skipped_images(skipped)


def _check_listed_once(names: Sequence[str]) -> None:
    from dcsm_attr.datasets.labels import summarize_names

    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"--split: {len(repeated)} images are in two of the lists: {summarize_names(repeated)}. Use lists without "
            "common images."
        )


def _read_classes(
    entries: "Sequence[VocEntry]", annotations: Sequence[Path] | None, class_names: Sequence[str]
) -> "Iterator[tuple[int, ...] | MaskReadError]":
    """The classes of each image, or why its mask cannot be read."""
    from dcsm_attr.datasets.labels import require_files
    from dcsm_attr.datasets.masks import MaskReadError, classes_in_mask, read_mask
    from dcsm_attr.datasets.voc import annotated_classes

    if annotations is not None:
        yield from (annotated_classes(annotation, class_names) for annotation in annotations)
        return
    masks = [entry.mask for entry in entries]
    require_files(masks, "masks", "Without a folder Annotations, the labels are read from the masks.")
    for mask in masks:
        try:
            classes = classes_in_mask(read_mask(mask, class_count=len(class_names)))
        except MaskReadError as error:
            yield error
            continue
        if not classes:
            raise ValueError(f"{mask}: contains no class; remove the image from the list.")
        yield classes


def scenes(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of the data set.", show_default=False),
    ],
    count: Annotated[int, typer.Option(min=2, help="Number of scenes; every fifth is in the split val.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    size: Annotated[int, typer.Option(min=32, help="Side of the scenes in pixels.")] = 128,
    overwrite: Overwrite = False,
) -> None:
    """Generate a data set of scenes with several objects each, offline.

    Writes a folder in the layout of PASCAL VOC: JPEGImages, SegmentationClass (masks), ImageSets (train and val),
    image_labels.csv and classes.txt. The other commands accept it in the place of VOCdevkit/VOC2012. Running the same
    command again resumes an interrupted run.

    Examples:
      dcsm-attr scenes scenes --count 400

      dcsm-attr train scenes --model squeezenet1_1 --weights none --size 128

      dcsm-attr evaluate scenes --weights out/classifier/best.safetensors
    """
    from dcsm_attr.datasets.scenes import write_scene_folder

    write_scene_folder(folder, count, seed=seed, size=size, overwrite=overwrite)
    typer.echo(f"{folder}: {count} scenes")

"""``dcsm-attr affinity``: from photographs with image-level labels to pseudo-labels, by AffinityNet."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli.building import SaliencyOptions, chosen_classifier, chosen_device, classifier_segmenter
from dcsm_attr.cli.collections import labelled_collection
from dcsm_attr.cli.options import (
    Background,
    Beta,
    ClassifierFile,
    Data,
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    Method,
    MethodChoice,
    Precision,
    PrecisionChoice,
    PresetChoice,
    PresetOption,
    Radius,
    TrainingChoice,
    WalkSteps,
)
from dcsm_attr.cli.skipped import report_skipped
from dcsm_attr.cli.walking import WalkOptions

if TYPE_CHECKING:
    from dcsm_attr.affinity.exponents import Exponents
    from dcsm_attr.affinity.network import TrainedAffinityNet
    from dcsm_attr.backbones.classifier import Classifier

__all__ = ["affinity"]

_TRAINING = "Training of AffinityNet"
_WALK = "Random walk"


class NormChoice(str, Enum):
    """Distances of features."""

    SUM = "sum"
    MEAN = "mean"


class BorderChoice(str, Enum):
    """Which neighbours are pairs."""

    FULL = "full"
    RELEASED = "released"


def affinity(
    data: Data,
    weights: ClassifierFile,
    labels: LabelsFile = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="The photographs that AffinityNet learns from.")] = "train",
    also: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further split that gets pseudo-labels; may be repeated."),
    ] = None,
    method: Method = MethodChoice.CAM,
    preset: PresetOption = PresetChoice.TUNED,
    low: Annotated[
        float | None,
        typer.Option(
            help="Exponent of the background where foreground counts as sure: for cam 4 as published, dcsm 0.2, fusion "
            "8, if not given.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(
            help="The same for sure background; larger: for cam 32, dcsm 0.8, fusion 64.", rich_help_panel=_TRAINING
        ),
    ] = None,
    training: Annotated[
        TrainingChoice,
        typer.Option(help="paper: as released, 10,582 steps; modern: for little data.", rich_help_panel=_TRAINING),
    ] = TrainingChoice.MODERN,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the optimiser; the preset's, if not given.", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Photographs a step, over all processes.", rich_help_panel=_TRAINING)
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The network below AffinityNet: a CNN of torchvision; the classifier's own, if not given.",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    backbone_weights: Annotated[
        str, typer.Option(metavar="DEFAULT|FILE|none", help="Of --backbone.", rich_help_panel=_TRAINING)
    ] = "DEFAULT",
    norm: Annotated[
        NormChoice,
        typer.Option(
            help="Of the distance of two features: mean, as in the released code, or sum, as the paper prints it.",
            rich_help_panel=_TRAINING,
        ),
    ] = NormChoice.MEAN,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=_TRAINING)] = 0,
    radius: Radius = WalkOptions.radius,
    background: Background = None,
    beta: Beta = WalkOptions.beta,
    walk_steps: WalkSteps = WalkOptions.walk_steps,
    border: Annotated[
        BorderChoice,
        typer.Option(
            help="released: as in the released code, where nothing walks out of the corners.", rich_help_panel=_WALK
        ),
    ] = BorderChoice.FULL,
    no_crf: Annotated[
        bool, typer.Option("--no-crf", help="Pseudo-labels from the walk alone.", rich_help_panel=_WALK)
    ] = False,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    precision: Precision = PrecisionChoice.FLOAT32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read photographs ahead in training.")] = 2,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write curves of the training too.")] = False,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="For labels/ (what AffinityNet learns from), network/ (its training and affinity_net.safetensors), "
            "pseudo-labels/ and run.json. The same command goes on after an interruption.",
        ),
    ] = Path("out/affinity"),
) -> None:
    """Make pseudo-labels: class maps, confident labels, AffinityNet, random walk, CRF. Masks are never read.

    Each of the three steps goes on where it was, if it was cut off, and is left out if it is done. Pseudo-labels are
    palette pictures NAME.png, of the size of the photograph; dcsm-attr miou compares them with masks, and the network
    serves dcsm-attr segment and evaluate as --walk. Under torchrun, the processes share the photographs and each step
    of the training; each tells of those that it could not read in a run.json of its own.

    Examples:
      dcsm-attr affinity VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr affinity VOC --weights best.safetensors --method dcsm --preset tuned --also val

      dcsm-attr affinity photos --labels labels.csv --weights best.safetensors --backbone resnet50
    """
    from dcsm_attr.affinity.pseudo_labels import Confidence, write_confident_labels, write_pseudo_labels
    from dcsm_attr.affinity.training import PRESETS, train_affinity_net
    from dcsm_attr.affinity.walk import SemanticWalk
    from dcsm_attr.files import writable_folder, write_json
    from dcsm_attr.segmentation.label_files import Shard
    from dcsm_attr.training.loop import Settings
    from dcsm_attr.training.processes import own_device

    output = writable_folder(output)
    classifier = chosen_classifier(weights)
    collections = {
        name: labelled_collection(data, labels, name, classifier.class_names)
        for name in dict.fromkeys([split, *(also or ())])
    }
    saliency = SaliencyOptions(method, preset=preset)
    classifier.network.to(own_device(chosen_device(device.value)))
    segmenter = classifier_segmenter(classifier, saliency, precision=precision.value, max_pixels=max_pixels)
    shard = Shard.of_this_process()
    exponents = _exponents(method, low, high, background)
    confidence = Confidence(exponents.low, exponents.high)
    # Before the hours of labelling and training: settings that cannot be are found out now.
    start = SemanticWalk(
        _start(classifier, backbone, backbone_weights, norm, method, seed), radius, beta, walk_steps, border.value
    )
    skipped = write_confident_labels(segmenter, collections[split], output / "labels", confidence, shard=shard)
    net = train_affinity_net(
        start.net,
        collections[split],
        output / "labels",
        output / "network",
        Settings(PRESETS[training.value].adapted(steps=steps, batch_size=batch_size), seed),
        radius=radius,
        border=border.value,
        device=chosen_device(device.value),
        workers=workers,
        max_pixels=max_pixels,
        tensorboard=tensorboard,
    )
    net.network.to(segmenter.device)
    segmenter.walk = replace(start, net=net)
    segmenter.background_exponent = exponents.walk
    if no_crf:
        segmenter.crf = None
    for collection in collections.values():
        skipped |= write_pseudo_labels(segmenter, collection, output / "pseudo-labels", shard=shard)
    photographs = sum(map(len, collections.values()))
    content = {"photographs": photographs, "failures": skipped, "settings": segmenter.settings}
    write_json(output / (f"run-{shard.index}.json" if shard.index else "run.json"), content)
    typer.echo(f"{output / 'pseudo-labels'}: {photographs - len(skipped)} label maps")
    report_skipped(skipped)


def _exponents(method: MethodChoice, low: float | None, high: float | None, background: float | None) -> "Exponents":
    from dcsm_attr.affinity.exponents import Exponents, exponents_of

    if low is not None and high is not None and background is not None:
        return Exponents(low, high, background)
    given = {"low": low, "high": high, "walk": background}
    return replace(exponents_of(method.value), **{name: value for name, value in given.items() if value is not None})


def _start(
    classifier: "Classifier",
    backbone: str | None,
    backbone_weights: str,
    norm: NormChoice,
    method: MethodChoice,
    seed: int,
) -> "TrainedAffinityNet":
    import torch

    from dcsm_attr.affinity.network import AffinityNet, TrainedAffinityNet
    from dcsm_attr.backbones.classifier import Architecture, build_classifier

    torch.manual_seed(seed)
    if backbone is not None:
        names = classifier.class_names
        source = None if backbone_weights == "none" else backbone_weights
        classifier = build_classifier(
            Architecture(backbone, len(names), head="linear"), source, names, classifier.preprocess
        )
    network = AffinityNet(classifier.network.trunk, norm.value)
    return TrainedAffinityNet(network, classifier.architecture, classifier.preprocess, norm.value, method.value)

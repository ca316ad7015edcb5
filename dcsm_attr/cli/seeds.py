"""``dcsm-attr seeds``: the pixels of which class maps are sure, for a segmentation network to learn from.

What the commands that write seeds have in common: the images, the background, the folder and its report.

``dcsm-attr ficklenet``: seeds from many stochastic maps of a classifier.

``dcsm-attr affinity``: from photographs with image-level labels to pseudo-labels, by AffinityNet.
"""

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli.building import (
    SaliencyOptions,
    build_saliency,
    classifier_segmenter,
    load_chosen_classifier,
    resolve_device,
)
from dcsm_attr.cli.options import (
    Background,
    BackgroundShare,
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
    SaliencyLayer,
    SeedFolder,
    SeedSplit,
    TrainingChoice,
    WalkOptions,
    WalkSteps,
)
from dcsm_attr.cli.runs import open_labeled_collection, report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.models.checkpoint import Classifier, TrainedAffinityNet
    from dcsm_attr.wsss.affinity import Exponents
    from dcsm_attr.wsss.seeds import Localizer

__all__ = ["SeedOptions", "affinity", "ficklenet", "seeds", "write_seed_folder"]


@dataclass(frozen=True)
class SeedOptions:
    """The options of which images get seeds, and of their background.

    Attributes:
        data, labels, split, saliency_layer, background_share, max_pixels, output: as the options of these names.
    """

    data: Path
    labels: Path | None
    split: str
    saliency_layer: str | None
    background_share: float
    max_pixels: int | None
    output: Path


def write_seed_folder(classifier: "Classifier", localizer: "Localizer", options: SeedOptions) -> None:
    """Write the seeds, and tell what became of them.

    Args:
        classifier: on the device where it is to run.
        localizer: for the foreground.
        options: for the rest.

    Raises:
        ValueError: if the classes of the images are not the classifier's, or an option is out of its range.
    """
    from dcsm_attr.io import make_writable_folder
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.label_files import BackgroundSeedSettings, middle_layer, write_seeds

    collection = open_labeled_collection(options.data, options.labels, options.split, classifier.class_names)
    folder = make_writable_folder(options.output)
    layer = options.saliency_layer or middle_layer(classifier.network)
    skipped = write_seeds(
        classifier.network,
        localizer,
        collection,
        folder,
        classifier.preprocess,
        BackgroundSeedSettings(layer, options.background_share),
        shard=Shard.from_environment(),
        max_pixels=options.max_pixels,
    )
    typer.echo(f"{folder}: seeds of {len(collection) - len(skipped)} photographs; background by {layer}")
    report_skipped_images(skipped)


def seeds(
    data: Data,
    weights: ClassifierFile,
    labels: LabelsFile = None,
    split: SeedSplit = "train",
    method: Method = MethodChoice.CAM,
    preset: PresetOption = PresetChoice.PAPER,
    share: Annotated[float, typer.Option(help="Of a map's maximum, above which a pixel is a seed.")] = 0.2,
    background_share: BackgroundShare = 0.1,
    saliency_layer: SaliencyLayer = None,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    output: SeedFolder = Path("out/seeds"),
) -> None:
    """Write the seeds of SEC: where class maps are high, and where no class is seen. Masks are never read.

    Seeds are palette pictures NAME.png, of the size of the image, 255 where there is none. dcsm-attr train-seg
    learns from them; dcsm-attr miou compares them with masks. Under torchrun, the processes share the images.

    Examples:
      dcsm-attr seeds VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr seeds VOC --weights best.safetensors --method dcsm --preset tuned --output out/seeds-dcsm
    """
    from dcsm_attr.training.distributed import local_device
    from dcsm_attr.wsss.seeds import MapLocalizer

    classifier = load_chosen_classifier(weights)
    classifier.network.to(local_device(resolve_device(device.value)))
    options = SaliencyOptions(method, preset=preset)
    saliency = build_saliency(classifier.network, options, activation="auto", pooling=classifier.pooling)
    folder = SeedOptions(data, labels, split, saliency_layer, background_share, max_pixels, output)
    write_seed_folder(classifier, MapLocalizer(saliency, share), folder)


class FormChoice(str, Enum):
    """Forms of Grad-CAM."""

    ELEMENTWISE = "elementwise"
    POOLED = "pooled"


def ficklenet(
    data: Data,
    weights: ClassifierFile,
    labels: LabelsFile = None,
    split: SeedSplit = "train",
    draws: Annotated[int, typer.Option(min=1, help="N, the maps of each class and photograph.")] = 200,
    threshold: Annotated[
        float, typer.Option(help="Share of a map's maximum, above which a pixel of any map is a seed.")
    ] = 0.35,
    form: Annotated[
        FormChoice, typer.Option(help="Of Grad-CAM: elementwise, FickleNet's; pooled, with the mean of the gradient.")
    ] = FormChoice.ELEMENTWISE,
    rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability that a unit is dropped; as in training, if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is dropped.")] = 0,
    background_share: BackgroundShare = 0.1,
    saliency_layer: SaliencyLayer = None,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    output: SeedFolder = Path("out/ficklenet"),
) -> None:
    """Write the seeds of FickleNet: N maps of each class, of units resampled each time. Masks are never read.

    The classifier is one that dcsm-attr train --head fickle wrote. Seeds are palette pictures NAME.png, of the size of
    the image, 255 where there is none; the background is that of dcsm-attr seeds. dcsm-attr train-seg learns from
    them; dcsm-attr miou compares them with masks. Under torchrun, the processes share the images.

    Examples:
      dcsm-attr ficklenet VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr ficklenet VOC --weights best.safetensors --draws 50 --rate 0.7 --output out/fickle-0.7
    """
    from dcsm_attr.training.distributed import local_device
    from dcsm_attr.wsss.ficklenet import FickleLocalizer, find_stochastic_selections

    classifier = load_chosen_classifier(weights)
    classifier.network.to(local_device(resolve_device(device.value)))
    for selection in find_stochastic_selections(classifier.network):
        selection.rate = selection.rate if rate is None else rate
    localizer = FickleLocalizer(classifier.network, draws, threshold, form.value, seed)
    folder = SeedOptions(data, labels, split, saliency_layer, background_share, max_pixels, output)
    write_seed_folder(classifier, localizer, folder)


_TRAINING = "Training of AffinityNet"
_WALK = "Random walk"


class NormChoice(str, Enum):
    """Distances of features."""

    SUM = "sum"
    MEAN = "mean"


class BorderChoice(str, Enum):
    """Which neighbors are pairs."""

    FULL = "full"
    RELEASED_EXPONENTS = "released"


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
        int | None, typer.Option(min=1, help="Of the optimizer; the preset's, if not given.", rich_help_panel=_TRAINING)
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
    seed: Annotated[int, typer.Option(min=0, help="Random seed.", rich_help_panel=_TRAINING)] = 0,
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

    Each of the three steps resumes if it was interrupted, and is left out if it is done. Pseudo-labels are
    palette pictures NAME.png, of the size of the image; dcsm-attr miou compares them with masks, and the network
    serves dcsm-attr segment and evaluate as --walk. Under torchrun, the processes share the images and each step
    of the training; each tells of those that it could not read in a run.json of its own.

    Examples:
      dcsm-attr affinity VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr affinity VOC --weights best.safetensors --method dcsm --preset tuned --also val

      dcsm-attr affinity photos --labels labels.csv --weights best.safetensors --backbone resnet50
    """
    from dcsm_attr.io import make_writable_folder, write_json
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.label_files import Confidence, write_confident_labels, write_pseudo_labels
    from dcsm_attr.training.affinity import SCHEDULES, train_affinity_net
    from dcsm_attr.training.distributed import local_device
    from dcsm_attr.training.loop import TrainingSettings
    from dcsm_attr.wsss.random_walk import SemanticWalk

    output = make_writable_folder(output)
    classifier = load_chosen_classifier(weights)
    collections = {
        name: open_labeled_collection(data, labels, name, classifier.class_names)
        for name in dict.fromkeys([split, *(also or ())])
    }
    saliency = SaliencyOptions(method, preset=preset)
    classifier.network.to(local_device(resolve_device(device.value)))
    segmenter = classifier_segmenter(classifier, saliency, precision=precision.value, max_pixels=max_pixels)
    shard = Shard.from_environment()
    exponents = _exponents(method, low, high, background)
    confidence = Confidence(exponents.low, exponents.high)
    # Before the hours of labeling and training: settings that cannot be are found out now.
    start = SemanticWalk(
        _start(classifier, backbone, backbone_weights, norm, method, seed), radius, beta, walk_steps, border.value
    )
    skipped = write_confident_labels(segmenter, collections[split], output / "labels", confidence, shard=shard)
    net = train_affinity_net(
        start.net,
        collections[split],
        output / "labels",
        output / "network",
        TrainingSettings(SCHEDULES[training.value].with_changes(steps=steps, batch_size=batch_size), seed),
        radius=radius,
        border=border.value,
        device=resolve_device(device.value),
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
    report_skipped_images(skipped)


def _exponents(method: MethodChoice, low: float | None, high: float | None, background: float | None) -> "Exponents":
    from dcsm_attr.wsss.affinity import Exponents, method_exponents

    if low is not None and high is not None and background is not None:
        return Exponents(low, high, background)
    given = {"low": low, "high": high, "walk": background}
    return replace(
        method_exponents(method.value), **{name: value for name, value in given.items() if value is not None}
    )


def _start(
    classifier: "Classifier",
    backbone: str | None,
    backbone_weights: str,
    norm: NormChoice,
    method: MethodChoice,
    seed: int,
) -> "TrainedAffinityNet":
    import torch

    from dcsm_attr.models.affinity_net import AffinityNet
    from dcsm_attr.models.checkpoint import Architecture, TrainedAffinityNet, build_classifier

    torch.manual_seed(seed)
    if backbone is not None:
        names = classifier.class_names
        source = None if backbone_weights == "none" else backbone_weights
        classifier = build_classifier(
            Architecture(backbone, len(names), head="linear"), source, names, classifier.preprocess
        )
    network = AffinityNet(classifier.network.backbone, norm.value)
    return TrainedAffinityNet(network, classifier.architecture, classifier.preprocess, norm.value, method.value)

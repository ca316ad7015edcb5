"""``dcsm-attr seeds``, ``ficklenet`` and ``affinity``: label maps for training a segmentation network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcsm_attr.cli.build import (
    build_classifier_segmenter,
    build_saliency,
    load_trained_classifier,
    resolve_device,
)
from dcsm_attr.cli.options import (
    DATA,
    METHOD,
    Background,
    ClassifierWeights,
    Data,
    Device,
    ImageLabels,
    MethodOptions,
    NoCrf,
    Output,
    Overwrite,
    Preset,
    SeedOptions,
    TrainingOptions,
    with_option_groups,
)
from dcsm_attr.cli.runs import open_labeled_collection, report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.models.checkpoint import Classifier, TrainedAffinityNet
    from dcsm_attr.wsss.seeds import Localizer

__all__ = ["affinity", "ficklenet", "seeds"]


@with_option_groups
def seeds(
    options: SeedOptions,
    method: MethodOptions = MethodOptions("cam"),  # noqa: B008 - frozen
    threshold: Annotated[
        float,
        typer.Option(
            help="Share of a map's maximum above which a pixel is a seed.", metavar="SHARE", rich_help_panel=METHOD
        ),
    ] = 0.2,
    output: Output = Path("out/seeds"),
    overwrite: Overwrite = False,
) -> None:
    """Write the seeds of SEC: where class maps are high, and where no class is visible. Masks are never read.

    Seeds are palette images NAME.png of the size of the image, 255 where there is none. dcsm-attr train-seg trains on
    them; dcsm-attr miou compares them with masks. Running the same command again resumes an interrupted run. Under
    torchrun, the processes share the images.

    Examples:
      dcsm-attr seeds VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr seeds VOC --weights best.safetensors --method dcsm --preset tuned --output out/seeds-dcsm
    """
    from dcsm_attr.wsss.seeds import MapLocalizer

    classifier = _load_classifier(options.weights, options.device)
    saliency = build_saliency(classifier.network, method, activation="auto", pooling=classifier.pooling)
    _write_seed_folder(classifier, MapLocalizer(saliency, threshold), options, output, overwrite)


@with_option_groups
def ficklenet(
    options: SeedOptions,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of maps per class and image.", rich_help_panel=METHOD)
    ] = 200,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of a map's maximum above which a pixel of any of the maps is a seed.",
            rich_help_panel=METHOD,
        ),
    ] = 0.35,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.", rich_help_panel=METHOD)] = 0,
    output: Output = Path("out/ficklenet"),
    overwrite: Overwrite = False,
) -> None:
    """Write the seeds of FickleNet: from N class maps, each with other hidden units. Masks are never read.

    The classifier is one that dcsm-attr train --head fickle wrote. Seeds are palette images NAME.png of the size of
    the image, 255 where there is none; the background is that of dcsm-attr seeds. dcsm-attr train-seg trains on them;
    dcsm-attr miou compares them with masks. Running the same command again resumes an interrupted run. Under torchrun,
    the processes share the images.

    Examples:
      dcsm-attr ficklenet VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr ficklenet VOC --weights best.safetensors --samples 50 --output out/ficklenet-50
    """
    from dcsm_attr.wsss.ficklenet import FickleLocalizer

    classifier = _load_classifier(options.weights, options.device)
    localizer = FickleLocalizer(classifier.network, samples, threshold, seed=seed)
    _write_seed_folder(classifier, localizer, options, output, overwrite)


def _load_classifier(weights: str, device: str) -> "Classifier":
    """Load a trained classifier onto the device of this process."""
    from dcsm_attr.training.distributed import local_device

    classifier = load_trained_classifier(weights)
    classifier.network.to(local_device(resolve_device(device)))
    return classifier


def _write_seed_folder(
    classifier: "Classifier", localizer: "Localizer", options: SeedOptions, output: Path, overwrite: bool
) -> None:
    """Write the seeds of all images, and report those that could not be read."""
    from dcsm_attr.io import make_writable_folder
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.label_files import BackgroundSeedSettings, middle_layer, write_seeds

    collection = open_labeled_collection(options.data, options.image_labels, options.split, classifier.class_names)
    folder = make_writable_folder(output)
    layer = middle_layer(classifier.network)
    skipped = write_seeds(
        classifier.network,
        localizer,
        collection,
        folder,
        classifier.preprocess,
        BackgroundSeedSettings(layer, options.background_share),
        shard=Shard.from_environment(),
        overwrite=overwrite,
    )
    typer.echo(f"{folder}: seeds of {len(collection) - len(skipped)} images; background from layer {layer}")
    report_skipped_images(skipped)


@with_option_groups
def affinity(
    data: Data,
    weights: ClassifierWeights,
    training: TrainingOptions,
    image_labels: ImageLabels = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="Images that AffinityNet is trained on.", rich_help_panel=DATA)
    ] = "train",
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further split that gets pseudo-labels; may be repeated.", rich_help_panel=DATA
        ),
    ] = None,
    device: Device = "auto",
    method: Annotated[
        Literal["cam", "dcsm", "fusion"],
        typer.Option(
            help="cam: class activation maps, as published. dcsm: distinct class-specific saliency maps. fusion: their "
            "product.",
            rich_help_panel=METHOD,
        ),
    ] = "cam",
    preset: Preset = "tuned",
    background: Background = None,
    no_crf: NoCrf = False,
    output: Output = Path("out/affinity"),
    overwrite: Overwrite = False,
) -> None:
    """Write pseudo-labels of AffinityNet: class maps refined by a trained random walk. Masks are never read.

    Writes labels/ (the confident labels), network/ (the training, and affinity_net.safetensors, which dcsm-attr segment
    and evaluate accept as --walk), pseudo-labels/ (palette images NAME.png of the size of the image, which dcsm-attr
    miou compares with masks), and run.json (settings, and images that could not be read). Running the same command
    again resumes an interrupted run. Under torchrun, the processes share the images and each step of the training, and
    each process writes its own run.json.

    Examples:
      dcsm-attr affinity VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr affinity VOC --weights best.safetensors --method dcsm --preset tuned --also val

      dcsm-attr affinity photos --image-labels labels.csv --weights best.safetensors
    """
    from dcsm_attr.io import make_writable_folder, write_json
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.label_files import Confidence, write_confident_labels, write_pseudo_labels
    from dcsm_attr.training.affinity import SCHEDULES, train_affinity_net
    from dcsm_attr.training.loop import TrainingSettings
    from dcsm_attr.wsss.affinity import method_exponents
    from dcsm_attr.wsss.random_walk import SemanticWalk

    output = make_writable_folder(output)
    classifier = _load_classifier(weights, device)
    collections = {
        name: open_labeled_collection(data, image_labels, name, classifier.class_names)
        for name in dict.fromkeys([split, *(also or ())])
    }
    exponents = method_exponents(method)
    settings: dict[str, Any] = {"background_exponent": exponents.walk if background is None else background}
    if no_crf:
        settings["crf"] = None
    segmenter = build_classifier_segmenter(classifier, MethodOptions(method, preset), **settings)
    start = _build_affinity_net(classifier, method, training.seed)
    shard = Shard.from_environment()
    confidence = Confidence(exponents.low, exponents.high)
    skipped = write_confident_labels(
        segmenter, collections[split], output / "labels", confidence, shard=shard, overwrite=overwrite
    )
    schedule = SCHEDULES[training.schedule].with_changes(steps=training.steps, batch_size=training.batch_size)
    net = train_affinity_net(
        start,
        collections[split],
        output / "labels",
        output / "network",
        TrainingSettings(schedule, training.seed),
        device=resolve_device(device),
        workers=training.workers,
        tensorboard=training.tensorboard,
        overwrite=overwrite,
    )
    net.network.to(segmenter.device)
    segmenter.walk = SemanticWalk(net)
    for name, collection in collections.items():
        # All splits are written to the same folder: only the first may remove the results of an earlier run.
        first = overwrite and name == split
        skipped |= write_pseudo_labels(segmenter, collection, output / "pseudo-labels", shard=shard, overwrite=first)
    num_images = sum(map(len, collections.values()))
    content = {"images": num_images, "failures": skipped, "settings": segmenter.settings}
    write_json(output / (f"run-{shard.index}.json" if shard.index else "run.json"), content)
    typer.echo(f"{output / 'pseudo-labels'}: {num_images - len(skipped)} label maps")
    report_skipped_images(skipped)


def _build_affinity_net(classifier: "Classifier", method: str, seed: int) -> "TrainedAffinityNet":
    """AffinityNet on the classifier's backbone, with randomly initialized layers of its own."""
    import torch

    from dcsm_attr.models.affinity_net import AffinityNet
    from dcsm_attr.models.checkpoint import TrainedAffinityNet

    torch.manual_seed(seed)
    network = AffinityNet(classifier.network.backbone)
    return TrainedAffinityNet(network, classifier.architecture, classifier.preprocess, seed=method)

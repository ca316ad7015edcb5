"""``dcsm-attr train``: a classifier from image-level labels."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from dcsm_attr.cli.collections import opened_collection
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
    Workers,
)

__all__ = ["train"]

_FICKLE = "Head fickle"


class HeadChoice(str, Enum):
    """The heads of a classifier."""

    OWN = "own"
    EXTENDED = "extended"
    LINEAR = "linear"
    RECTIFIED = "rectified"
    NORMALISED = "normalised"
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
        typer.Option(metavar="DEFAULT|FILE|none", help="Of the backbone; none: drawn anew."),
    ] = "DEFAULT",
    cut: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Where the backbone ends, such as layer3; needs a new head.")
    ] = None,
    head: Annotated[
        HeadChoice,
        typer.Option(
            help="own: the model's; extended: with its own classes, rectified, as a hidden layer; linear: one 1 x 1 "
            "convolution; rectified: of VGG's kind, drawn anew; normalised: the same with batch norms, for a cut "
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
            "--general-dropout", help="Drop the centres of windows too, as ordinary dropout.", rich_help_panel=_FICKLE
        ),
    ] = False,
    pooling: Annotated[
        PoolingChoice | None, typer.Option(help="From score maps to scores; the preset's, if not given.")
    ] = None,
    preset: Annotated[
        TrainingChoice, typer.Option(help="paper: its optimiser and its 50,000 steps; modern: for little data.")
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

    Writes best.safetensors (the best on the photographs of split val, which the other commands take as --weights),
    log.csv, settings.json, unreadable.json (why photographs could not be read, if any), and last.pt, from which the
    same command goes on after an interruption. Under torchrun, the processes share each batch. --model scene_net is the
    network of the generated scenes; its DEFAULT weights are those of the shipped one's trunk.

    Examples:
      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --preset paper

      dcsm-attr train VOCdevkit/VOC2012 --model squeezenet1_1 --head extended --size 320

      dcsm-attr train pictures --labels labels.csv --model resnet18 --cut layer3 --head normalised

      dcsm-attr train VOCdevkit/VOC2012 --model vgg16 --cut features.29 --output-stride 8 --head fickle --size 321

      torchrun --nproc-per-node 4 -m dcsm_attr train VOCdevkit/VOC2012 --batch-size 32
    """
    import torch

    from dcsm_attr.backbones.classifier import Architecture, build_classifier
    from dcsm_attr.backbones.preprocess import Preprocess
    from dcsm_attr.cli.building import chosen_device
    from dcsm_attr.training.classifier import train_classifier
    from dcsm_attr.training.loop import Settings
    from dcsm_attr.training.presets import PRESETS

    fickle = _fickle_settings(head, window, rate, general_dropout)
    training, validation = (opened_collection(data, labels, split) for split in ("train", "val"))
    chosen = PRESETS[preset.value].adapted(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        pooling=None if pooling is None else pooling.value,
    )
    torch.manual_seed(seed)
    names = training.class_names
    architecture = Architecture(model, len(names), cut, head.value, output_stride, **fickle)
    backbone = None if weights == "none" else weights
    classifier = build_classifier(architecture, backbone, names, Preprocess(size=size))
    settings = Settings(chosen, seed)
    train_classifier(
        classifier,
        training,
        validation,
        output,
        settings,
        device=chosen_device(device.value),
        workers=workers,
        max_pixels=max_pixels,
        tensorboard=tensorboard,
    )
    typer.echo(f"{output / 'best.safetensors'}: the best classifier; log.csv beside it says how it went.")


def _fickle_settings(head: HeadChoice, window: int | None, rate: float | None, general_dropout: bool) -> dict[str, Any]:
    """What was said of the stochastic selection."""
    given = {"window": window, "rate": rate, "centre_kept": False if general_dropout else None}
    settings = {name: value for name, value in given.items() if value is not None}
    if settings and head is not HeadChoice.FICKLE:
        raise ValueError("--window, --rate and --general-dropout belong to --head fickle.")
    return settings

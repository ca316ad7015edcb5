"""``dcsm-attr ficklenet``: seeds from many stochastic maps of a classifier."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dcsm_attr.cli.building import chosen_classifier, chosen_device
from dcsm_attr.cli.options import (
    BackgroundShare,
    ClassifierFile,
    Data,
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    SaliencyLayer,
    SeedFolder,
    SeedSplit,
)
from dcsm_attr.cli.seed_folder import SeedOptions, write_seed_folder

__all__ = ["ficklenet"]


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
    """Write the seeds of FickleNet: N maps of each class, of units drawn anew each time. Masks are never read.

    The classifier is one that dcsm-attr train --head fickle wrote. Seeds are palette pictures NAME.png, of the size of
    the photograph, 255 where there is none; the background is that of dcsm-attr seeds. dcsm-attr train-seg learns from
    them; dcsm-attr miou compares them with masks. Under torchrun, the processes share the photographs.

    Examples:
      dcsm-attr ficklenet VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr ficklenet VOC --weights best.safetensors --draws 50 --rate 0.7 --output out/fickle-0.7
    """
    from dcsm_attr.ficklenet.localiser import FickleLocaliser, selections_of
    from dcsm_attr.training.processes import own_device

    classifier = chosen_classifier(weights)
    classifier.network.to(own_device(chosen_device(device.value)))
    for selection in selections_of(classifier.network):
        selection.rate = selection.rate if rate is None else rate
    localiser = FickleLocaliser(classifier.network, draws, threshold, form.value, seed)
    folder = SeedOptions(data, labels, split, saliency_layer, background_share, max_pixels, output)
    write_seed_folder(classifier, localiser, folder)

"""``dcsm-attr seeds``: the pixels of which class maps are sure, for a segmentation network to learn from."""

from pathlib import Path
from typing import Annotated

import typer

from dcsm_attr.cli.building import SaliencyOptions, build_saliency, chosen_classifier, chosen_device
from dcsm_attr.cli.options import (
    BackgroundShare,
    ClassifierFile,
    Data,
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    Method,
    MethodChoice,
    PresetChoice,
    PresetOption,
    SaliencyLayer,
    SeedFolder,
    SeedSplit,
)
from dcsm_attr.cli.seed_folder import SeedOptions, write_seed_folder

__all__ = ["seeds"]


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

    Seeds are palette pictures NAME.png, of the size of the photograph, 255 where there is none. dcsm-attr train-seg
    learns from them; dcsm-attr miou compares them with masks. Under torchrun, the processes share the photographs.

    Examples:
      dcsm-attr seeds VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr seeds VOC --weights best.safetensors --method dcsm --preset tuned --output out/seeds-dcsm
    """
    from dcsm_attr.seeded.localisers import MapLocaliser
    from dcsm_attr.training.processes import own_device

    classifier = chosen_classifier(weights)
    classifier.network.to(own_device(chosen_device(device.value)))
    options = SaliencyOptions(method, preset=preset)
    saliency = build_saliency(classifier.network, options, activation="auto", pooling=classifier.pooling)
    folder = SeedOptions(data, labels, split, saliency_layer, background_share, max_pixels, output)
    write_seed_folder(classifier, MapLocaliser(saliency, share), folder)

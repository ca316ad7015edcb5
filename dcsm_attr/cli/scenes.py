"""``dcsm-attr scenes``: generated scenes as a data set, to try training and evaluation without photographs."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["scenes"]


def scenes(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Where to write; a run that was cut off goes on from there.", show_default=False
        ),
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
    from dcsm_attr.datasets.scene_folder import write_scene_folder

    write_scene_folder(folder, count, seed=seed, size=size)
    typer.echo(f"{folder}: {count} scenes")

"""``dcsm-attr miou``: how well label maps in a folder agree with the masks of a VOC folder."""

import math
import shlex
from pathlib import Path
from typing import Annotated

import typer

from dcsm_attr.cli.options import VocRoot
from dcsm_attr.cli.skipped import report_skipped

__all__ = ["miou"]


def miou(
    voc_root: VocRoot,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With a label map NAME.png for each.", show_default=False)
    ],
    split: Annotated[str, typer.Option(metavar="NAME", help="A list in ImageSets/Segmentation.")] = "val",
    output: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the figures too, with the confusion matrix.")
    ] = None,
) -> None:
    """Measure the mean IoU of label maps, such as pseudo-labels: palette or grey pictures whose values are the labels.

    Pixels that a label map marks as unknown (255) are not counted; their share is said. Maps of another size than the
    masks are resized.

    Examples:
      dcsm-attr miou VOCdevkit/VOC2012 out/affinity/pseudo-labels --split train

      dcsm-attr miou VOCdevkit/VOC2012 out/affinity/labels --split train
    """
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation.label_maps import evaluate_label_maps
    from dcsm_attr.evaluation.provenance import measured_on
    from dcsm_attr.files import write_json

    found = evaluate_label_maps(voc_collection(voc_root, split), folder)
    iou = dict(zip(("background", *found.class_names), found.confusion.iou.tolist(), strict=True))
    for name, value in iou.items():
        typer.echo(f"{name:>15} {'-' if math.isnan(value) else f'{100 * value:5.1f}'}")
    typer.echo(
        f"{'mean IoU':>15} {100 * found.confusion.mean_iou:5.1f} %   {found.photographs} photographs, "
        f"{100 * found.unknown:.1f} % of their pixels unknown"
    )
    background, foreground = found.precision
    typer.echo(
        f"{100 * background:.1f} % of what is labelled as background is right, {100 * foreground:.1f} % of the rest"
    )
    if output is not None:
        content = {
            "measured": measured_on(shlex.join(["dcsm-attr", "miou", "VOC_ROOT", folder.name, "--split", split])),
            "photographs": found.photographs,
            "skipped": dict(found.skipped),
            "unknown": found.unknown,
            "precision of background": None if math.isnan(background) else background,
            "precision of foreground": None if math.isnan(foreground) else foreground,
            "mean IoU": found.confusion.mean_iou,
            "IoU": {name: None if math.isnan(value) else value for name, value in iou.items()},
            "confusion matrix (row: truth, column: prediction)": found.confusion.counts.tolist(),
        }
        write_json(output, content)
    report_skipped(found.skipped)

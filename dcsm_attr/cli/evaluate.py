"""``dcsm-attr evaluate``: how well a classifier's label maps agree with the masks of a VOC folder.

``dcsm-attr miou``: how well label maps in a folder agree with the masks of a VOC folder.
"""

import math
import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli.building import (
    SaliencyOptions,
    build_segmenter,
    network_arguments,
    resolve_device,
    segmenter_settings,
)
from dcsm_attr.cli.options import (
    Device,
    DeviceName,
    Labels,
    MaxPixels,
    ModelName,
    NoCrf,
    Precision,
    PrecisionChoice,
    Resume,
    VocRoot,
    WalkOptions,
    Weights,
    with_option_groups,
)
from dcsm_attr.cli.runs import report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection
    from dcsm_attr.evaluation.result import Evaluation

__all__ = ["evaluate", "miou"]


# Photographs with masks in the lists of VOC 2012 itself.
_WHOLE = {"train": 1464, "val": 1449, "trainval": 2913}


class ProtocolChoice(str, Enum):
    """What the method is told about an image."""

    DETECTED = "detected"
    KNOWN = "known"
    BOTH = "both"


@with_option_groups
def evaluate(
    voc_root: VocRoot,
    weights: Weights,
    saliency: SaliencyOptions,
    walking: WalkOptions,
    split: Annotated[str, typer.Option(metavar="NAME", help="A list in ImageSets/Segmentation.")] = "val",
    model: ModelName = "vgg16",
    labels: Labels = "voc",
    protocol: Annotated[
        ProtocolChoice,
        typer.Option(
            help="detected: the classes are those that the model detects, as on a test set. known: they are given, as "
            "for pseudo-labels. Figures of the two do not compare."
        ),
    ] = ProtocolChoice.DETECTED,
    count: Annotated[int, typer.Option(min=0, help="So many images, evenly spread over the list; 0: all of them.")] = 0,
    no_crf: NoCrf = False,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    precision: Precision = PrecisionChoice.FLOAT32,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to write evaluation.md and evaluation.json.")
    ] = Path("out"),
    resume: Resume = False,
) -> None:
    """Measure the mean IoU of the label maps, before the CRF and after it, and the classifier's mean AP.

    A segmentation network of dcsm-attr train-seg is measured in the same way: told nothing, all classes compete at each
    pixel; the score of a class is its highest probability.

    Writes evaluation.md (tables) and evaluation.json (the same, with confusion matrices). An image or mask that
    cannot be read is left out and named.

    Examples:
      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/segmentation/segmentation_net.safetensors --protocol both

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights my-voc-vgg16.pth --split train --protocol known

      dcsm-attr evaluate VOC --model squeezenet1_1 --weights voc.safetensors --protocol both --count 50

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/classifier/best.safetensors --method simonyan --no-crf
    """
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation import evaluate as protocols
    from dcsm_attr.evaluation.report import write_report
    from dcsm_attr.evaluation.result import PROTOCOLS
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    whole = voc_collection(voc_root, split)
    chosen = whole.evenly_spaced(count)
    further = {
        **walking.settings(resolve_device(device.value), saliency.method),
        **segmenter_settings(precision, max_pixels, no_crf),
    }
    segmenter = build_segmenter(model, weights, labels, device.value, saliency, **further)
    evaluations = []
    for one in PROTOCOLS:
        if protocol.value in (one, "both"):
            folder = output / one
            evaluations.append(protocols.evaluate(segmenter, chosen, one, folder=folder, overwrite=not resume))
    network = {name: Path(value).name for name, value in network_arguments(model, weights, labels).items()}
    told = {**network, "split": split, "protocol": protocol.value, "count": str(count)}
    if precision is not PrecisionChoice.FLOAT32:
        told["precision"] = precision.value
    arguments = [*(f"--{name}={value}" for name, value in told.items()), *saliency.arguments(), *walking.arguments()]
    paths = write_report(
        {Path(weights).stem: evaluations},
        output,
        command=shlex.join(["dcsm-attr", "evaluate", "VOC_ROOT", *arguments, *(["--no-crf"] if no_crf else [])]),
        data=_described(whole, split, len(chosen)),
    )
    for evaluation in evaluations:
        typer.echo(_summary(evaluation))
    typer.echo(f"{paths[0]}: IoU of each class, and every setting")
    report_skipped_images({name: reason for evaluation in evaluations for name, reason in evaluation.skipped.items()})


def _described(collection: "Collection", split: str, count: int) -> str:
    from dcsm_attr.datasets.masks import VOC_CLASSES

    sentence = f"Split {split!r} of a VOC folder: {count} of its {len(collection)} photographs."
    if collection.class_names != VOC_CLASSES:
        return f"{sentence} Its classes are not those of VOC."
    if count < _WHOLE.get(split, 0):
        sentence += f" That split of VOC 2012 has {_WHOLE[split]}: these figures do not compare with published ones."
    return sentence


def _summary(evaluation: "Evaluation") -> str:
    before, after = (100 * confusion.mean_iou for confusion in (evaluation.unrefined, evaluation.refined))
    figures = f"{before:.1f} before the CRF, {after:.1f} after it"
    return (
        f"{evaluation.protocol} classes, {len(evaluation.images)} photographs: mean IoU "
        f"{figures if evaluation.settings['crf'] else f'{before:.1f} without a CRF'}; "
        f"mean AP of the classifier {100 * evaluation.mean_average_precision:.1f}"
    )


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
    """Measure the mean IoU of label maps, such as pseudo-labels: palette or gray pictures whose values are the labels.

    Pixels that a label map marks as unknown (255) are not counted; their share is said. Maps of another size than the
    masks are resized.

    Examples:
      dcsm-attr miou VOCdevkit/VOC2012 out/affinity/pseudo-labels --split train

      dcsm-attr miou VOCdevkit/VOC2012 out/affinity/labels --split train
    """
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation.evaluate import evaluate_label_maps
    from dcsm_attr.evaluation.result import run_environment
    from dcsm_attr.io import write_json

    found = evaluate_label_maps(voc_collection(voc_root, split), folder)
    iou = dict(zip(("background", *found.class_names), found.confusion.iou.tolist(), strict=True))
    for name, value in iou.items():
        typer.echo(f"{name:>15} {'-' if math.isnan(value) else f'{100 * value:5.1f}'}")
    typer.echo(
        f"{'mean IoU':>15} {100 * found.confusion.mean_iou:5.1f} %   {found.num_images} photographs, "
        f"{100 * found.unknown:.1f} % of their pixels unknown"
    )
    background, foreground = found.precision
    typer.echo(
        f"{100 * background:.1f} % of what is labeled as background is right, {100 * foreground:.1f} % of the rest"
    )
    if output is not None:
        content = {
            "measured": run_environment(shlex.join(["dcsm-attr", "miou", "VOC_ROOT", folder.name, "--split", split])),
            "images": found.num_images,
            "skipped": dict(found.skipped),
            "unknown": found.unknown,
            "precision of background": None if math.isnan(background) else background,
            "precision of foreground": None if math.isnan(foreground) else foreground,
            "mean IoU": found.confusion.mean_iou,
            "IoU": {name: None if math.isnan(value) else value for name, value in iou.items()},
            "confusion matrix (row: truth, column: prediction)": found.confusion.counts.tolist(),
        }
        write_json(output, content)
    report_skipped_images(found.skipped)

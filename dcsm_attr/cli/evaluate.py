"""``dcsm-attr evaluate`` and ``miou``: measure label maps with the masks of a VOC folder."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcsm_attr.cli.build import build_segmenter, model_arguments, resolve_device
from dcsm_attr.cli.options import (
    DATA,
    METHOD,
    OUTPUT,
    ClassNames,
    Device,
    EvaluationSplit,
    MaskOptions,
    MethodOptions,
    ModelName,
    ModelOptions,
    Output,
    Overwrite,
    VocRoot,
    Weights,
    with_option_groups,
)
from dcsm_attr.cli.runs import report_skipped_images

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection
    from dcsm_attr.evaluation.result import Evaluation

__all__ = ["evaluate", "miou"]

# Number of images with masks in the lists of VOC 2012.
_VOC_2012_SIZES = {"train": 1464, "val": 1449, "trainval": 2913}


@with_option_groups
def evaluate(
    voc_root: VocRoot,
    weights: Weights,
    method: MethodOptions,
    mask: MaskOptions,
    split: EvaluationSplit = "val",
    count: Annotated[
        int,
        typer.Option(min=0, help="Number of images, evenly spaced over the list; 0: all.", rich_help_panel=DATA),
    ] = 0,
    model: ModelName = "vgg16",
    class_names: ClassNames = "voc",
    device: Device = "auto",
    protocol: Annotated[
        Literal["detected", "known", "both"],
        typer.Option(
            help="detected: the model detects the classes of each image, as on a test set. known: the classes are "
            "given, as for pseudo-labels. Results of the two are not comparable.",
            rich_help_panel=METHOD,
        ),
    ] = "detected",
    output: Output = Path("out/evaluation"),
    overwrite: Overwrite = False,
) -> None:
    """Measure the mean IoU of label maps before and after the CRF, and the mean AP of the classifier.

    A segmentation network of dcsm-attr train-seg is evaluated in the same way; with the protocol "detected", all
    classes compete at each pixel, and the score of a class is its highest probability.

    Writes evaluation.md (tables) and evaluation.json (the same with confusion matrices). Images and masks that cannot
    be read are skipped and listed. Running the same command again resumes an interrupted run.

    Examples:
      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/segmentation/segmentation_net.safetensors --protocol both

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights my-voc-vgg16.pth --split train --protocol known

      dcsm-attr evaluate VOC --model squeezenet1_1 --weights voc.safetensors --protocol both --count 50

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/classifier/best.safetensors --method simonyan --no-crf
    """
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation.evaluate import evaluate as evaluate_segmenter
    from dcsm_attr.evaluation.report import write_report
    from dcsm_attr.evaluation.result import PROTOCOLS
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    collection = voc_collection(voc_root, split)
    selected = collection.evenly_spaced(count)
    model_options = ModelOptions(model, weights, class_names, device)
    settings = mask.settings(resolve_device(device), method.method)
    segmenter = build_segmenter(model_options, method, **settings)
    evaluations = [
        evaluate_segmenter(segmenter, selected, one, folder=output / one, overwrite=overwrite)
        for one in PROTOCOLS
        if protocol in (one, "both")
    ]
    network = {name.replace("_", "-"): Path(value).name for name, value in model_arguments(model_options).items()}
    shown = {**network, "split": split, "protocol": protocol, "count": count}
    arguments = [*(f"--{name}={value}" for name, value in shown.items()), *method.arguments(), *mask.arguments()]
    report, _ = write_report(
        {Path(weights).stem: evaluations},
        output,
        command=shlex.join(["dcsm-attr", "evaluate", "VOC_ROOT", *arguments]),
        data=_describe_data(collection, split, len(selected)),
    )
    for evaluation in evaluations:
        typer.echo(_summarize(evaluation))
    typer.echo(f"{report}: IoU of each class, and all settings")
    report_skipped_images({name: reason for evaluation in evaluations for name, reason in evaluation.skipped.items()})


def _describe_data(collection: "Collection", split: str, count: int) -> str:
    from dcsm_attr.datasets.masks import VOC_CLASSES

    sentence = f"Split {split!r} of a VOC folder: {count} of its {len(collection)} images."
    if collection.class_names != VOC_CLASSES:
        return f"{sentence} Its classes are not those of VOC."
    if count < _VOC_2012_SIZES.get(split, 0):
        sentence += (
            f" This split of VOC 2012 has {_VOC_2012_SIZES[split]} images: the results are not comparable with "
            "published ones."
        )
    return sentence


def _summarize(evaluation: "Evaluation") -> str:
    before, after = (100 * confusion.mean_iou for confusion in (evaluation.unrefined, evaluation.refined))
    values = f"{before:.1f} before the CRF, {after:.1f} after the CRF"
    return (
        f"{evaluation.protocol} classes, {len(evaluation.images)} images: mean IoU "
        f"{values if evaluation.settings['crf'] else f'{before:.1f} without a CRF'}; "
        f"mean AP of the classifier {100 * evaluation.mean_average_precision:.1f}"
    )


def miou(
    voc_root: VocRoot,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder with a label map NAME.png per image.", show_default=False),
    ],
    split: EvaluationSplit = "val",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json", help="File for the results with the confusion matrix.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Measure the mean IoU of label maps in a folder, such as pseudo-labels.

    Label maps are palette or gray images whose pixel values are the labels. Unknown pixels (255) are not counted; their
    share is printed. Label maps are resized to the size of the masks.

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
        f"{'mean IoU':>15} {100 * found.confusion.mean_iou:5.1f} %   {found.num_images} images, "
        f"{100 * found.unknown:.1f} % of their pixels unknown"
    )
    background, foreground = found.precision
    typer.echo(f"precision: {100 * background:.1f} % of background pixels, {100 * foreground:.1f} % of class pixels")
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

"""``dcsm-attr evaluate``: how well a classifier's label maps agree with the masks of a VOC folder."""

import shlex
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli.building import build_segmenter
from dcsm_attr.cli.options import Device, DeviceName, Labels, ModelName, Resume, Weights

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection
    from dcsm_attr.evaluation.result import Evaluation

__all__ = ["evaluate"]

# Photographs with masks in the lists of VOC 2012 itself.
_WHOLE = {"train": 1464, "val": 1449, "trainval": 2913}


class ProtocolChoice(str, Enum):
    """What the method is told about a photograph."""

    DETECTED = "detected"
    KNOWN = "known"
    BOTH = "both"


def evaluate(
    voc_root: Annotated[
        Path,
        typer.Argument(
            metavar="VOC_ROOT", help="The folder that holds ImageSets, such as VOCdevkit/VOC2012.", show_default=False
        ),
    ],
    weights: Weights,
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
    count: Annotated[
        int, typer.Option(min=0, help="So many photographs, evenly spread over the list; 0: all of them.")
    ] = 0,
    device: Device = DeviceName.AUTO,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where to write evaluation.md and evaluation.json.")
    ] = Path("out"),
    resume: Resume = False,
) -> None:
    """Measure the mean IoU of the label maps, before the CRF and after it, and the classifier's mean AP.

    Writes evaluation.md (tables) and evaluation.json (the same, with confusion matrices). A photograph or mask that
    cannot be read is left out and named.

    Examples:
      dcsm-attr evaluate VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      dcsm-attr evaluate VOCdevkit/VOC2012 --weights my-voc-vgg16.pth --split train --protocol known

      dcsm-attr evaluate VOC --model squeezenet1_1 --weights voc.safetensors --protocol both --count 50
    """
    from dcsm_attr.backbones.classifier import is_classifier
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation import protocols
    from dcsm_attr.evaluation.report import write_report
    from dcsm_attr.evaluation.result import Protocol
    from dcsm_attr.files import writable_folder

    output = writable_folder(output)
    whole = voc_collection(voc_root, split)
    chosen = _spread(whole, count)
    segmenter = build_segmenter(model, weights, labels, device.value)
    evaluations = []
    for one in Protocol if protocol is ProtocolChoice.BOTH else (Protocol(protocol.value),):
        state = output / f"photographs-{one.value}.jsonl"
        if not resume:
            state.unlink(missing_ok=True)
        evaluations.append(protocols.evaluate(segmenter, chosen, one, state=state))
    # A trained classifier's file brings its own model and labels, so that the options would say something wrong.
    network = {} if is_classifier(weights) else {"model": model, "labels": Path(labels).name}
    told = {"weights": Path(weights).name, **network, "split": split, "protocol": protocol.value, "count": str(count)}
    paths = write_report(
        {Path(weights).stem: evaluations},
        output,
        command=shlex.join(
            ["dcsm-attr", "evaluate", "VOC_ROOT", *(f"--{name}={value}" for name, value in told.items())]
        ),
        data=_described(split, len(chosen), len(whole)),
    )
    for evaluation in evaluations:
        typer.echo(_summary(evaluation))
    typer.echo(f"{paths[0]}: IoU of each class, and every setting")
    _report_skipped(evaluations)


def _spread(collection: "Collection", count: int) -> "Collection":
    """As many photographs as asked for, at equal distances; all, if there are not more or 0 are asked for."""
    total = len(collection)
    count = min(count or total, total)
    return replace(collection, photographs=tuple(collection.photographs[i * total // count] for i in range(count)))


def _described(split: str, count: int, total: int) -> str:
    sentence = f"Split {split!r} of a VOC folder: {count} of its {total} photographs."
    if count < _WHOLE.get(split, 0):
        sentence += f" That split of VOC 2012 has {_WHOLE[split]}: these figures do not compare with published ones."
    return sentence


def _summary(evaluation: "Evaluation") -> str:
    return (
        f"{evaluation.protocol.value} classes, {len(evaluation.photographs)} photographs: mean IoU "
        f"{100 * evaluation.unrefined.mean_iou:.1f} before the CRF, {100 * evaluation.refined.mean_iou:.1f} after it; "
        f"mean AP of the classifier {100 * evaluation.mean_average_precision:.1f}"
    )


def _report_skipped(evaluations: "list[Evaluation]") -> None:
    skipped = {name: reason for evaluation in evaluations for name, reason in evaluation.skipped.items()}
    if skipped:
        typer.echo(f"{len(skipped)} photographs could not be measured:", err=True)
        for name, reason in skipped.items():
            typer.echo(f"  {name}: {reason}", err=True)
        raise typer.Exit(1)

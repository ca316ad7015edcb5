"""``python -m benchmarks.ablation``: what each part of the method is worth on a trained classifier."""

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsm_attr.cli import run_command
from dcsm_attr.cli.building import load_chosen_classifier, resolve_device
from dcsm_attr.cli.options import Device, DeviceName, VocRoot
from dcsm_attr.cli.runs import report_skipped_images

if TYPE_CHECKING:
    from benchmarks.ablation.measure import Measurement
    from benchmarks.ablation.tables import Table
    from dcsm_attr.models.checkpoint import Classifier

__all__ = ["ablate", "app"]


class TableChoice(str, Enum):
    """Which table."""

    ALPHA = "alpha"
    LAYERS = "layers"
    SIZE = "size"
    CANDIDATES = "candidates"
    RULE = "rule"
    CRF = "crf"
    VARIANT = "variant"
    FUSION = "fusion"
    REFERENCE_METHODS = "peers"
    PRESET = "preset"
    AFFINITY = "affinity"
    WALK_BETA = "walk-beta"
    WALK_STEPS = "walk-steps"


_OF_WALK = (TableChoice.AFFINITY, TableChoice.WALK_BETA, TableChoice.WALK_STEPS)


class ProtocolOfTable(str, Enum):
    """What the method is told about an image."""

    KNOWN = "known"
    DETECTED = "detected"


def ablate(
    table: Annotated[
        TableChoice,
        typer.Argument(
            help="alpha, layers, size, candidates, rule, crf: Tables 1 to 6 of the paper. variant: its two released "
            "codes. fusion: class score maps, and GrabCut. peers: other libraries' class activation methods. preset: "
            "all of them with the CRF of the preset tuned. affinity: CAM, DCSM and their product without and with "
            "AffinityNet's random walk; walk-beta, walk-steps: how far it should go.",
            show_default=False,
        ),
    ],
    voc_root: VocRoot,
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE|demo",
            help="A classifier that dcsm-attr train wrote; or demo: the shipped one, for a folder of dcsm-attr scenes.",
            show_default=False,
        ),
    ],
    affinity_net: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="An affinity_net.safetensors that dcsm-attr affinity wrote, which the last three tables need; "
            "affinity takes several.",
        ),
    ] = None,
    protocol: Annotated[
        ProtocolOfTable,
        typer.Option(help="known: the classes of an image are given. detected: those that the classifier detects."),
    ] = ProtocolOfTable.KNOWN,
    split: Annotated[str, typer.Option(metavar="NAME", help="The list that the figures are of.")] = "val",
    count: Annotated[int, typer.Option(min=0, help="So many of its images, evenly spread; 0: all.")] = 0,
    background_split: Annotated[
        str, typer.Option(metavar="NAME", help="The list on which each method's background is chosen.")
    ] = "train",
    background_count: Annotated[int, typer.Option(min=0, help="So many of its images, evenly spread; 0: all.")] = 64,
    device: Device = DeviceName.AUTO,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="For TABLE-PROTOCOL.md, .json and .png; and for gradients and counts, which the tables share and from "
            "which the same command goes on after an interruption.",
        ),
    ] = Path("out/ablation"),
) -> None:
    """Measure one table of the paper on the images of a VOC folder.

    Gradients are taken once for each image and kept, about 7 MB each with a canvas of 320 pixels; every table and
    setting that can use them does.

    Examples:
      python -m benchmarks.ablation candidates VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      python -m benchmarks.ablation size VOC --weights best.safetensors --protocol detected --count 50

      dcsm-attr scenes scenes --count 500 --seed 99 && python -m benchmarks.ablation candidates scenes --weights demo

      python -m benchmarks.ablation affinity VOC --weights best.safetensors --affinity-net affinity_net.safetensors
    """
    from benchmarks.ablation.measure import measure_table
    from benchmarks.ablation.report import write_ablation
    from benchmarks.ablation.tables import TABLES
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.evaluation.result import Protocol
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    classifier = load_chosen_classifier(weights)
    classifier.network.to(resolve_device(device.value))
    whole, whole_background = voc_collection(voc_root, split), voc_collection(voc_root, background_split)
    chosen, background = whole.evenly_spaced(count), whole_background.evenly_spaced(background_count)
    nets = affinity_net or []
    methods = _affinity_table(table, classifier, nets) if table in _OF_WALK else TABLES[table.value](classifier)
    measurement = measure_table(methods, classifier, background, chosen, Protocol(protocol.value), output)
    told = {
        "weights": Path(weights).name,
        "protocol": protocol.value,
        "split": split,
        "count": count,
        "background-split": background_split,
        "background-count": background_count,
    }
    name = f"{table.value}-{protocol.value}"
    paths = write_ablation(
        measurement,
        output,
        name,
        command=shlex.join(
            [
                *("python", "-m", "benchmarks.ablation", table.value, "VOC_ROOT"),
                *(f"--{key}={value}" for key, value in told.items()),
                *(f"--affinity-net={net.name}" for net in nets),
            ]
        ),
        data=f"Split {split!r} of a VOC folder: {len(chosen)} of its {len(whole)} photographs; backgrounds chosen on "
        f"{len(background)} of the {len(whole_background)} of split {background_split!r}.",
        about={"picture": f"{name}.png", **_classifier_facts(classifier)},
    )
    _print_summary(measurement)
    typer.echo(f"{paths[0]}: the table; {paths[2]}: its picture")
    report_skipped_images({**measurement.chosen_on.skipped, **measurement.result.skipped})


def _affinity_table(table: TableChoice, classifier: "Classifier", paths: list[Path]) -> "Table":
    from benchmarks.ablation.tables import AFFINITY_TABLES
    from dcsm_attr.models.checkpoint import load_affinity_net

    if not paths:
        raise ValueError(f"the table {table.value} is about the walk of a network: pass --affinity-net FILE.")
    nets = [load_affinity_net(path) for path in paths]
    for net in nets:
        net.network.to(next(classifier.network.parameters()).device)
    return AFFINITY_TABLES[table.value](classifier, nets)


def _classifier_facts(classifier: "Classifier") -> dict[str, Any]:
    from dcsm_attr.evaluation.result import parameters_digest

    architecture = classifier.architecture
    return {
        "class_names": classifier.class_names,
        "network": architecture.model,
        "cut": architecture.cut,
        "head": architecture.head,
        "pooling": classifier.pooling,
        "canvas": classifier.preprocess.side,
        "parameters": parameters_digest(classifier.network),
    }


def _print_summary(measurement: "Measurement") -> None:
    typer.echo(f"{measurement.table.title}; mean IoU in %, each method with its own background")
    for row in measurement.table.rows:
        before, after = (
            measurement.confusion(row.method, refined=refined, own_background=True) for refined in (False, True)
        )
        figures = " -> ".join(f"{100 * one.mean_iou:.1f}" for one in (before, after) if one is not None)
        typer.echo(f"  {row.series}, {measurement.table.axis} {row.label}: {figures}")


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command()(ablate)

if __name__ == "__main__":
    run_command(app, "benchmarks.ablation")

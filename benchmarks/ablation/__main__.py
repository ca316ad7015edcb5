"""``python -m benchmarks.ablation``: measure how much each part of the method contributes on a trained classifier."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dcsm_attr.cli import run_command
from dcsm_attr.cli.build import load_trained_classifier, resolve_device
from dcsm_attr.cli.options import Device, VocRoot
from dcsm_attr.cli.runs import report_skipped_images

if TYPE_CHECKING:
    from benchmarks.ablation.measure import Measurement
    from benchmarks.ablation.tables import Table
    from dcsm_attr.models.checkpoint import Classifier

__all__ = ["TableName", "ablate", "app"]

TableName = Literal[
    "alpha",
    "layers",
    "size",
    "candidates",
    "rule",
    "crf",
    "variant",
    "fusion",
    "peers",
    "preset",
    "affinity",
    "walk-beta",
    "walk-steps",
]


def ablate(
    table: Annotated[
        TableName,
        typer.Argument(
            help="alpha, layers, size, candidates, rule, crf: Tables 1 to 6 of the paper. variant: its two released "
            "codes. fusion: class score maps, and GrabCut. peers: class activation methods of other libraries. preset: "
            "all of them with the CRF of the preset tuned. affinity: CAM, DCSM and their product without and with "
            "AffinityNet's random walk; walk-beta, walk-steps: its power and its number of steps.",
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
            help="An affinity_net.safetensors that dcsm-attr affinity wrote. Required for affinity, which accepts "
            "several, walk-beta and walk-steps.",
        ),
    ] = None,
    protocol: Annotated[
        Literal["known", "detected"],
        typer.Option(help="known: the classes of an image are given. detected: those that the classifier detects."),
    ] = "known",
    split: Annotated[str, typer.Option(metavar="NAME", help="Image list of the reported figures.")] = "val",
    count: Annotated[
        int, typer.Option(min=0, help="Number of images of this list, evenly spaced; 0: all of them.")
    ] = 0,
    background_split: Annotated[
        str, typer.Option(metavar="NAME", help="Image list on which the background of each method is chosen.")
    ] = "train",
    background_count: Annotated[
        int, typer.Option(min=0, help="Number of images of this list, evenly spaced; 0: all of them.")
    ] = 64,
    device: Device = "auto",
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder for TABLE-PROTOCOL.md, .json and .png, and for gradients and counts, which all tables share. "
            "The same command resumes an interrupted run.",
        ),
    ] = Path("out/ablation"),
) -> None:
    """Measure one table on the images of a VOC folder.

    Gradients are computed once per image and stored, about 7 MB per image with a canvas of 320 pixels; all tables and
    settings that need the same gradients share them.

    Examples:
      python -m benchmarks.ablation candidates VOCdevkit/VOC2012 --weights out/classifier/best.safetensors

      python -m benchmarks.ablation size VOC --weights best.safetensors --protocol detected --count 50

      dcsm-attr scenes scenes --count 500 --seed 99 && python -m benchmarks.ablation candidates scenes --weights demo

      python -m benchmarks.ablation affinity VOC --weights best.safetensors --affinity-net affinity_net.safetensors
    """
    from benchmarks.ablation.measure import measure_table
    from benchmarks.ablation.report import write_ablation
    from dcsm_attr.datasets.voc import voc_collection
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    classifier = load_trained_classifier(weights)
    classifier.network.to(resolve_device(device))
    all_test, all_tuning = voc_collection(voc_root, split), voc_collection(voc_root, background_split)
    test, tuning = all_test.evenly_spaced(count), all_tuning.evenly_spaced(background_count)
    nets = affinity_net or []
    built = _build_table(table, classifier, nets)
    measurement = measure_table(built, classifier, tuning, test, protocol, output)
    options = {
        "weights": Path(weights).name,
        "protocol": protocol,
        "split": split,
        "count": count,
        "background-split": background_split,
        "background-count": background_count,
    }
    name = f"{table}-{protocol}"
    paths = write_ablation(
        measurement,
        output,
        name,
        command=shlex.join(
            [
                *("python", "-m", "benchmarks.ablation", table, "VOC_ROOT"),
                *(f"--{key}={value}" for key, value in options.items()),
                *(f"--affinity-net={net.name}" for net in nets),
            ]
        ),
        data=f"Split {split!r} of a VOC folder: {len(test)} of its {len(all_test)} images; backgrounds chosen on "
        f"{len(tuning)} of the {len(all_tuning)} of split {background_split!r}.",
        about={"figure": f"{name}.png", **_describe_classifier(classifier)},
    )
    _print_summary(measurement)
    typer.echo(f"{paths[0]}: the table; {paths[2]}: its figure")
    report_skipped_images({**measurement.tuning_result.skipped, **measurement.result.skipped})


def _build_table(table: TableName, classifier: "Classifier", affinity_nets: list[Path]) -> "Table":
    from benchmarks.ablation.tables import AFFINITY_TABLES, TABLES
    from dcsm_attr.models.checkpoint import load_affinity_net

    if table in TABLES:
        return TABLES[table](classifier)
    if not affinity_nets:
        raise ValueError(f"the table {table} measures the random walk of a network: pass --affinity-net FILE.")
    nets = [load_affinity_net(path) for path in affinity_nets]
    for net in nets:
        net.network.to(next(classifier.network.parameters()).device)
    return AFFINITY_TABLES[table](classifier, nets)


def _describe_classifier(classifier: "Classifier") -> dict[str, Any]:
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

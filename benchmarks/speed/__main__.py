"""``python -m benchmarks.speed``: how fast this machine is with this package, and with others."""

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dcsm_attr.cli import run_command
from dcsm_attr.cli.options import Precision, PrecisionChoice

if TYPE_CHECKING:
    from benchmarks.speed.comparison import Comparison, Outcome, Scaling

__all__ = ["app", "benchmark"]


_MODELS = ["vgg16"]
_CLASSES = [3]


class Part(str, Enum):
    """What is timed."""

    SALIENCY = "saliency"
    SCALING = "scaling"
    CRF = "crf"
    PIPELINE = "pipeline"
    WALK = "walk"


def benchmark(
    part: Annotated[
        Part,
        typer.Argument(
            help="saliency: class maps of one image, beside captum, pytorch-grad-cam, torchcam, plain PyTorch and "
            "the convolutions alone. scaling: from 1 to 20 classes, from 1 to 16 photographs. crf: the dense CRF "
            "beside pydensecrf and the bytes that it must move. pipeline: from image files to label maps, three "
            "scales and the CRF, and each step alone. walk: AffinityNet's random walk beside plain sparse products and "
            "dense matrices, and its affinities beside plain PyTorch.",
            show_default=False,
        ),
    ],
    photographs: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="crf, pipeline: pictures are taken from here.", show_default=False),
    ] = None,
    model: Annotated[
        list[str], typer.Option(metavar="NAME", help="Of torchvision; may be given several times.")
    ] = _MODELS,
    classes: Annotated[
        list[int], typer.Option(min=1, help="saliency, pipeline: how many are compared; may be given several times.")
    ] = _CLASSES,
    size: Annotated[int, typer.Option(min=32, help="Side of the canvas in pixels.")] = 500,
    count: Annotated[int, typer.Option(min=1, help="pipeline: so many images.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="pipeline: photographs in a pass of the model.")] = 4,
    precision: Precision = PrecisionChoice.FLOAT32,
    rounds: Annotated[int, typer.Option(min=1, help="How often each implementation runs; the median counts.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, each in a process of its own.")] = True,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="For PART.md and PART.json.")] = Path("out/benchmark"),
) -> None:
    """Time this package beside what one would use instead, on this machine.

    All implementations do the same work in turn; libraries that are not installed are left out (they come with
    the extras peers and pydensecrf). Networks have random weights, on which no time depends. A GPU is used where there
    is one.

    Examples:
      python -m benchmarks.speed saliency

      python -m benchmarks.speed saliency --model resnet50 --model squeezenet1_1 --classes 3 --classes 10

      python -m benchmarks.speed crf --photographs VOCdevkit/VOC2012/JPEGImages
    """
    from benchmarks.speed.comparisons import (
        crf_comparisons,
        pipeline_comparisons,
        saliency_comparisons,
        walk_comparisons,
    )
    from benchmarks.speed.report import scaling_text, write_benchmark
    from dcsm_attr.datasets.collection import list_images
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    outcomes: list[Outcome] = []
    scalings: list[Scaling] = []
    if part is Part.SCALING:
        for name in model:
            scalings += _scalings(name, size, rounds)
        typer.echo("\n\n".join(f"{scaling.title}\n\n{scaling_text(scaling)}" for scaling in scalings))
    elif part is Part.SALIENCY:
        outcomes = _held(saliency_comparisons(model, size, classes), rounds, memory)
    elif part is Part.WALK:
        outcomes = _held(walk_comparisons(), rounds, memory)
    else:
        if photographs is None:
            raise ValueError(f"{part.value} needs pictures: --photographs FOLDER.")
        pictures = [str(path) for path in list_images(photographs)]
        comparisons = (
            crf_comparisons(pictures)
            if part is Part.CRF
            else pipeline_comparisons(pictures[:count], model, size, classes, batch_size, precision.value)
        )
        outcomes = _held(comparisons, rounds, memory)
    models = [f"--model={name}" for name in model]
    asked = [*models, *(f"--classes={number}" for number in classes), f"--size={size}"]
    arguments = {
        Part.SALIENCY: asked,
        Part.SCALING: [*models, f"--size={size}"],
        Part.CRF: ["--photographs=FOLDER"],
        Part.WALK: [],
        Part.PIPELINE: [
            "--photographs=FOLDER",
            *asked,
            f"--count={count}",
            f"--batch-size={batch_size}",
            f"--precision={precision.value}",
        ],
    }[part]
    command = shlex.join(["python", "-m", "benchmarks.speed", part.value, *arguments, f"--rounds={rounds}"])
    paths = write_benchmark(outcomes, scalings, output, part.value, command=command)
    typer.echo(f"{paths[0]}: all of it")


def _held(comparisons: "list[Comparison]", rounds: int, memory: bool) -> "list[Outcome]":
    from benchmarks.speed.comparison import held
    from benchmarks.speed.report import outcome_table

    outcomes = []
    for comparison in comparisons:
        outcomes.append(held(comparison, rounds, memory=memory))
        typer.echo(f"{comparison.title}\n\n{outcome_table(outcomes[-1])}\n")
    return outcomes


def _scalings(model: str, size: int, rounds: int) -> "list[Scaling]":
    from benchmarks.speed.comparison import OURS, Scaling, held
    from benchmarks.speed.comparisons import backward_comparison, scaling_comparisons
    from benchmarks.speed.saliency import PARTIAL_BACKWARD

    backward = held(backward_comparison(model, size), rounds).timings[PARTIAL_BACKWARD].median
    scalings = []
    for what, comparisons in scaling_comparisons(model, size).items():
        seconds = [held(comparison, rounds).timings[OURS].median for _, comparison in comparisons]
        title = f"{model}, {size} x {size}, by the number of {what}"
        counts = [count for count, _ in comparisons]
        scalings.append(Scaling(title, what, counts, seconds, backward if what == "classes" else None))
    return scalings


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command()(benchmark)

if __name__ == "__main__":
    run_command(app, "benchmarks.speed")

"""``python -m benchmarks.speed``: measure the speed of this package, and of alternatives, on this machine."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcsm_attr.cli import run_command
from dcsm_attr.cli.options import Precision

if TYPE_CHECKING:
    from benchmarks.speed.comparison import Comparison, Outcome, Scaling

__all__ = ["app", "benchmark"]

_MODELS = ["vgg16"]
_CLASSES = [3]


def benchmark(
    part: Annotated[
        Literal["saliency", "scaling", "crf", "pipeline", "walk"],
        typer.Argument(
            help="saliency: class maps of one image, compared with captum, pytorch-grad-cam, torchcam, plain PyTorch "
            "and the convolutions alone. scaling: from 1 to 20 classes, from 1 to 16 images. crf: the dense CRF, "
            "compared with pydensecrf and the bytes that it must move. pipeline: from image files to label maps, three "
            "scales and the CRF, and each step alone. walk: AffinityNet's random walk, compared with plain sparse "
            "products and dense matrices, and its affinities, compared with plain PyTorch.",
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="crf, pipeline: folder with images.", show_default=False),
    ] = None,
    model: Annotated[
        list[str], typer.Option(metavar="NAME", help="Name of a torchvision model; may be given several times.")
    ] = _MODELS,
    classes: Annotated[
        list[int],
        typer.Option(min=1, help="saliency, pipeline: number of classes; may be given several times."),
    ] = _CLASSES,
    size: Annotated[int, typer.Option(min=32, help="Side of the canvas in pixels.")] = 500,
    count: Annotated[int, typer.Option(min=1, help="pipeline: number of images.")] = 16,
    batch_size: Annotated[int, typer.Option(min=1, help="pipeline: number of images per forward pass.")] = 4,
    precision: Precision = "float32",
    rounds: Annotated[
        int, typer.Option(min=1, help="Number of timed runs of each implementation; the median is reported.")
    ] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too, in separate processes.")] = True,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for PART.md and PART.json.")] = Path(
        "out/benchmark"
    ),
) -> None:
    """Time this package and its alternatives on this machine.

    All implementations do the same work in turn. Libraries that are not installed are left out (install the extras
    peers and pydensecrf). Networks have random weights, on which no time depends. A GPU is used if there is one.

    Examples:
      python -m benchmarks.speed saliency

      python -m benchmarks.speed saliency --model resnet50 --model squeezenet1_1 --classes 3 --classes 10

      python -m benchmarks.speed crf --images VOCdevkit/VOC2012/JPEGImages
    """
    from benchmarks.speed.report import scaling_text, write_benchmark
    from benchmarks.speed.saliency import measure_scaling
    from dcsm_attr.io import make_writable_folder

    output = make_writable_folder(output)
    outcomes: list[Outcome] = []
    scalings: list[Scaling] = []
    if part == "scaling":
        for name in model:
            scalings += measure_scaling(name, size, rounds)
        typer.echo("\n\n".join(f"{scaling.title}\n\n{scaling_text(scaling)}" for scaling in scalings))
    else:
        comparisons = _build_comparisons(part, images, model, classes, size, count, batch_size, precision)
        outcomes = _run_comparisons(comparisons, rounds, memory)
    network_options = [*(f"--model={name}" for name in model), f"--size={size}"]
    class_options = [f"--classes={number}" for number in classes]
    options = {
        "saliency": [*network_options, *class_options],
        "scaling": network_options,
        "crf": ["--images=FOLDER"],
        "walk": [],
        "pipeline": [
            "--images=FOLDER",
            *network_options,
            *class_options,
            f"--count={count}",
            f"--batch-size={batch_size}",
            f"--precision={precision}",
        ],
    }[part]
    command = shlex.join(["python", "-m", "benchmarks.speed", part, *options, f"--rounds={rounds}"])
    paths = write_benchmark(outcomes, scalings, output, part, command=command)
    typer.echo(f"{paths[0]}: all results")


def _build_comparisons(
    part: Literal["saliency", "crf", "pipeline", "walk"],
    images: Path | None,
    models: list[str],
    classes: list[int],
    size: int,
    count: int,
    batch_size: int,
    precision: Literal["float32", "bfloat16"],
) -> "list[Comparison]":
    from benchmarks.speed.crf import crf_comparisons
    from benchmarks.speed.pipeline import pipeline_comparisons
    from benchmarks.speed.saliency import saliency_comparisons
    from benchmarks.speed.walk import walk_comparisons
    from dcsm_attr.datasets.collection import list_images

    if part == "saliency":
        return saliency_comparisons(models, size, classes)
    if part == "walk":
        return walk_comparisons()
    if images is None:
        raise ValueError(f"{part} needs images: pass --images FOLDER.")
    paths = [str(path) for path in list_images(images)]
    if part == "crf":
        return crf_comparisons(paths)
    return pipeline_comparisons(paths[:count], models, size, classes, batch_size, precision)


def _run_comparisons(comparisons: "list[Comparison]", rounds: int, memory: bool) -> "list[Outcome]":
    from benchmarks.speed.comparison import run_comparison
    from benchmarks.speed.report import outcome_table

    outcomes = []
    for comparison in comparisons:
        outcomes.append(run_comparison(comparison, rounds, memory=memory))
        typer.echo(f"{comparison.title}\n\n{outcome_table(outcomes[-1])}\n")
    return outcomes


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.command()(benchmark)

if __name__ == "__main__":
    run_command(app, "benchmarks.speed")

"""``dcsm-attr pseudo-label``: label maps of whole collections, on one machine or on many.

``dcsm-attr report``: a run of ``dcsm-attr pseudo-label`` as one page for people.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dcsm_attr.cli.building import SaliencyOptions, build_segmenter, resolve_device, segmenter_settings
from dcsm_attr.cli.options import (
    Device,
    DeviceName,
    LabelsFile,
    MaxPixels,
    NoCrf,
    Precision,
    PrecisionChoice,
    WalkOptions,
    with_option_groups,
)
from dcsm_attr.cli.runs import open_labeled_collection

if TYPE_CHECKING:
    from dcsm_attr.io import Storage
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.local import Engine
    from dcsm_attr.segmentation import Segmenter

__all__ = ["pseudo_label", "report"]


_SCALE = "Many photographs"
_MAX_LISTED = 10


class EngineChoice(str, Enum):
    """What does the work."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True)
class _SegmenterFactory:
    """Builds the segmenter where the work is done."""

    weights: str
    device: str
    saliency: SaliencyOptions
    walking: WalkOptions
    settings: dict[str, Any]

    def __call__(self) -> "Segmenter":
        walk = self.walking.settings(resolve_device(self.device), self.saliency.method)
        return build_segmenter("", self.weights, "", self.device, self.saliency, **walk, **self.settings)


@with_option_groups
def pseudo_label(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A VOC folder, a folder of pictures, or a text file of paths or URIs (s3://...), one per line",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE|demo",
            help="A classifier of dcsm-attr train, or a segmentation network of dcsm-attr train-seg.",
            show_default=False,
        ),
    ],
    saliency: SaliencyOptions,
    walking: WalkOptions,
    labels: LabelsFile = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a VOC folder the list (train, if not given); of a folder the rows of the CSV file (all). A list "
            "of pictures is taken whole.",
        ),
    ] = None,
    no_crf: NoCrf = False,
    max_pixels: MaxPixels = None,
    device: Device = DeviceName.AUTO,
    precision: Precision = PrecisionChoice.FLOAT32,
    maps: Annotated[bool, typer.Option("--maps", help="Write class maps and probabilities (maps/NAME.npz).")] = False,
    overlays: Annotated[
        int, typer.Option(min=0, metavar="N", help="Write an overlay of every N-th photograph; 0: of none.")
    ] = 0,
    report: Annotated[bool, typer.Option("--report", help="Write report.html at the end: the run for people.")] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Photographs that go through the model together.", rich_help_panel=_SCALE)
    ] = 8,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes on this machine. One, in which reading, model and writing overlap, is enough for a GPU; "
            "several GPUs are dealt out to them.",
            rich_help_panel=_SCALE,
        ),
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Do the I-th of N parts, from 0: for the jobs of an array, which write into one folder.",
            rich_help_panel=_SCALE,
        ),
    ] = None,
    retry_failures: Annotated[
        bool,
        typer.Option(
            "--retry-failures", help="Try photographs that could not be read once more.", rich_help_panel=_SCALE
        ),
    ] = False,
    engine: Annotated[
        EngineChoice,
        typer.Option(
            help="ray: on the cluster of RAY_ADDRESS, or on this machine where there is none.", rich_help_panel=_SCALE
        ),
    ] = EngineChoice.LOCAL,
    actors: Annotated[
        str,
        typer.Option(metavar="N|MIN-MAX", help="Of Ray: how many hold the model.", rich_help_panel=_SCALE),
    ] = "1",
    actor_cpus: Annotated[float, typer.Option(min=0, help="Of each actor of Ray.", rich_help_panel=_SCALE)] = 1.0,
    actor_gpus: Annotated[
        float, typer.Option(min=0, help="Of each actor of Ray; 0.25: four share a GPU.", rich_help_panel=_SCALE)
    ] = 0.0,
    output: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="A folder, or a URI (s3://bucket/run). The same command goes on after an interruption.",
        ),
    ] = "out/pseudo-labels",
) -> None:
    """Label whole collections by the classes that each image is known to show; masks are never read.

    Writes labels/NAME.png (palette pictures in the colors of VOC, of the size of the image) and manifest.jsonl:
    the settings, and of each image its scores, areas and timings, or why it could not be read, which ends nothing.
    Killed at any moment and started again, the command does the rest, and the label maps are byte for byte those of an
    undisturbed run.

    Examples:
      dcsm-attr pseudo-label photos --labels labels.csv --weights out/classifier/best.safetensors --report

      dcsm-attr pseudo-label VOCdevkit/VOC2012 --split train_aug --weights best.safetensors --workers 4 --overlays 100

      dcsm-attr pseudo-label list.txt --labels labels.csv --weights best.safetensors --shard $SLURM_ARRAY_TASK_ID/64

      RAY_ADDRESS=auto dcsm-attr pseudo-label s3-list.txt --labels labels.csv --weights /shared/best.safetensors
      --engine ray --actors 4-64 --actor-gpus 0.5 --output s3://bucket/run
    """
    from dcsm_attr.io import open_storage
    from dcsm_attr.pipelines import run
    from dcsm_attr.pipelines.batches import Outputs

    part = _shard(shard)
    chosen = _engine(engine, workers, actors, actor_cpus, actor_gpus)
    recipe = _SegmenterFactory(
        # Actors of Ray may be at work elsewhere.
        str(Path(weights).absolute()) if Path(weights).is_file() else weights,
        device.value,
        saliency,
        walking.absolute(),
        segmenter_settings(precision, max_pixels, no_crf),
    )
    names = recipe().class_names
    assert names is not None, "networks of this package bring their classes"
    collection = open_labeled_collection(Path(images), labels, split, names)
    storage = open_storage(output, f".unfinished-{part.index}-of-{part.count}")
    found = run.pseudo_label(
        recipe,
        collection,
        storage,
        outputs=Outputs(maps, overlays),
        batch_size=batch_size,
        shard=part,
        engine=chosen,
        retry_failures=retry_failures,
    )
    typer.echo(f"{output}: label maps of {found.labeled} photographs; manifest.jsonl: scores, areas, timings")
    if report:
        _report(storage, part)
    if found.failures:
        typer.echo(f"{len(found.failures)} photographs could not be read; the manifest says why:", err=True)
        for name, reason in list(found.failures.items())[:_MAX_LISTED]:
            typer.echo(f"  {name}: {reason}", err=True)
        raise typer.Exit(1)


def _report(storage: "Storage", shard: "Shard") -> None:
    from dcsm_attr.pipelines.report import write_report

    try:
        typer.echo(f"{storage.location}: {write_report(storage)}, to look at the run")
    except FileNotFoundError:
        # The manifest is written by the shard that ends last.
        if shard.count == 1:
            raise
        typer.echo(f"no report yet: dcsm-attr report {storage.location} writes it when all shards have ended")


def _shard(text: str | None) -> "Shard":
    from dcsm_attr.pipelines.batches import Shard

    if text is None:
        return Shard()
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard must be I/N, such as 0/8 for the first of eight parts; got {text!r}.")
    return Shard(int(index), int(count))


def _engine(engine: EngineChoice, workers: int, actors: str, cpus: float, gpus: float) -> "Engine":
    from dcsm_attr.pipelines.local import MultiprocessEngine, local_engine
    from dcsm_attr.pipelines.ray import RayEngine

    if engine is EngineChoice.LOCAL:
        return local_engine if workers == 1 else MultiprocessEngine(workers)
    least, dash, most = actors.partition("-")
    if not (least.isdecimal() and (most.isdecimal() if dash else True)):
        raise ValueError(f"--actors must be N or MIN-MAX, such as 4 or 4-64; got {actors!r}.")
    return RayEngine((int(least), int(most or least)), cpus, gpus)


def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Where the run has written: a folder, or a URI of an object store.", show_default=False
        ),
    ],
    thumbnails: Annotated[
        int,
        typer.Option(
            min=0,
            help="Largest number of thumbnails: half of them the images with the lowest confidence, the others a "
            "sample of each class. Counts and histograms are of all images.",
        ),
    ] = 200,
) -> None:
    """Write DIR/report.html: counts, histograms, low scores, failures and thumbnails of a run.

    It is one file, which any browser shows without a network. The run may be unfinished.

    Examples:
      dcsm-attr report out/pseudo-labels

      dcsm-attr report out/pseudo-labels --thumbnails 50
    """
    from dcsm_attr.io import is_uri, open_storage
    from dcsm_attr.pipelines.report import write_report

    # To open a folder is to make it.
    if not is_uri(folder) and not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give that which dcsm-attr pseudo-label wrote to.")
    # A scratch of its own, because the run may still be writing.
    storage = open_storage(folder, scratch=".unfinished-report")
    try:
        name = write_report(storage, num_thumbnails=thumbnails)
    finally:
        storage.discard_scratch()
    typer.echo(f"{folder.rstrip('/')}/{name}")

"""``dcsm-attr pseudo-label`` and ``report``: label maps of large collections, and the report of such a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dcsm_attr.cli.build import build_segmenter, resolve_device
from dcsm_attr.cli.options import (
    DATA,
    MODEL,
    OUTPUT,
    Device,
    ImageLabels,
    MaskOptions,
    MaxPixels,
    MethodOptions,
    ModelOptions,
    Overwrite,
    with_option_groups,
)
from dcsm_attr.cli.runs import open_labeled_collection

if TYPE_CHECKING:
    from dcsm_attr.io import Storage
    from dcsm_attr.pipelines.batches import Shard
    from dcsm_attr.pipelines.local import Engine
    from dcsm_attr.segmentation import Segmenter

__all__ = ["pseudo_label", "report"]

_SCALE = "Scale"
_MAX_LISTED = 10


@dataclass(frozen=True)
class ScaleOptions:
    """The options that distribute the work; the attributes are the options of these names."""

    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.", rich_help_panel=_SCALE)] = 8
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of processes on this machine. One process is enough for a GPU, because loading, model and "
            "writing overlap; several processes share several GPUs.",
            rich_help_panel=_SCALE,
        ),
    ] = 1
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Process the I-th of N parts, counted from 0: for array jobs that write to the same folder.",
            rich_help_panel=_SCALE,
        ),
    ] = None
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(
            help="ray: run on the cluster of RAY_ADDRESS, or on this machine if it is not set.", rich_help_panel=_SCALE
        ),
    ] = "local"
    actors: Annotated[
        str, typer.Option(metavar="N|MIN-MAX", help="Number of Ray actors with a model.", rich_help_panel=_SCALE)
    ] = "1"
    actor_gpus: Annotated[
        float,
        typer.Option(min=0, help="GPUs per Ray actor; with 0.25, four actors share a GPU.", rich_help_panel=_SCALE),
    ] = 0.0

    def parse_shard(self) -> "Shard":
        """The part of the collection to process."""
        from dcsm_attr.pipelines.batches import Shard

        if self.shard is None:
            return Shard()
        index, slash, count = self.shard.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise ValueError(f"--shard must be I/N, such as 0/8 for the first of eight parts; got {self.shard!r}.")
        return Shard(int(index), int(count))

    def build_engine(self) -> "Engine":
        """The engine that runs the work."""
        from dcsm_attr.pipelines.local import MultiprocessEngine, local_engine
        from dcsm_attr.pipelines.ray import RayEngine

        if self.engine == "local":
            return local_engine if self.workers == 1 else MultiprocessEngine(self.workers)
        low, dash, high = self.actors.partition("-")
        if not (low.isdecimal() and (high.isdecimal() if dash else True)):
            raise ValueError(f"--actors must be N or MIN-MAX, such as 4 or 4-64; got {self.actors!r}.")
        return RayEngine((int(low), int(high or low)), gpus=self.actor_gpus)


@dataclass(frozen=True)
class _SegmenterFactory:
    """Builds the segmenter in each process."""

    model: ModelOptions
    method: MethodOptions
    mask: MaskOptions
    max_pixels: int | None

    def __call__(self) -> "Segmenter":
        settings = self.mask.settings(resolve_device(self.model.device), self.method.method)
        return build_segmenter(self.model, self.method, max_pixels=self.max_pixels, **settings)


@with_option_groups
def pseudo_label(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A VOC folder, a folder of images, or a text file with one path or URI (s3://...) per line.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="FILE|demo",
            help="Weights of the network: a file written by dcsm-attr train or train-seg.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ],
    method: MethodOptions,
    mask: MaskOptions,
    scale: ScaleOptions,
    image_labels: ImageLabels = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="List of a VOC folder, by default train; or split of the CSV file, by default all rows.",
            rich_help_panel=DATA,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    device: Device = "auto",
    maps: Annotated[
        bool,
        typer.Option("--maps", help="Write class maps and probabilities (maps/NAME.npz).", rich_help_panel=OUTPUT),
    ] = False,
    overlays: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Write an overlay of every N-th image; 0: none.", rich_help_panel=OUTPUT),
    ] = 0,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write report.html at the end, see dcsm-attr report.", rich_help_panel=OUTPUT),
    ] = False,
    retry_failures: Annotated[
        bool,
        typer.Option("--retry-failures", help="Retry images that could not be read.", rich_help_panel=_SCALE),
    ] = False,
    output: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", help="Folder for the results, or a URI (s3://bucket/run).", rich_help_panel=OUTPUT
        ),
    ] = "out/pseudo-labels",
    overwrite: Overwrite = False,
) -> None:
    """Write label maps of a large collection whose image-level labels are known; masks are never read.

    Writes labels/NAME.png (palette images in the colors of VOC, of the size of the image) and manifest.jsonl (the
    settings, and the scores, areas and timings of each image, or why it could not be read). Running the same command
    again resumes an interrupted run; the label maps are byte for byte those of an uninterrupted run.

    Examples:
      dcsm-attr pseudo-label photos --image-labels labels.csv --weights out/classifier/best.safetensors --report

      dcsm-attr pseudo-label VOCdevkit/VOC2012 --split train_aug --weights best.safetensors --workers 4 --overlays 100

      dcsm-attr pseudo-label list.txt --image-labels labels.csv --weights best.safetensors
      --shard $SLURM_ARRAY_TASK_ID/64

      RAY_ADDRESS=auto dcsm-attr pseudo-label s3-list.txt --image-labels labels.csv
      --weights /shared/best.safetensors --engine ray --actors 4-64 --actor-gpus 0.5 --output s3://bucket/run
    """
    from dcsm_attr.io import open_storage
    from dcsm_attr.pipelines import run
    from dcsm_attr.pipelines.batches import Outputs

    shard = scale.parse_shard()
    engine = scale.build_engine()
    # Ray actors may have another working folder.
    path = str(Path(weights).absolute()) if Path(weights).is_file() else weights
    factory = _SegmenterFactory(ModelOptions(weights=path, device=device), method, mask.absolute(), max_pixels)
    names = factory().class_names
    assert names is not None, "networks of this package contain their class names"
    collection = open_labeled_collection(Path(images), image_labels, split, names)
    storage = open_storage(output, f".unfinished-{shard.index}-of-{shard.count}")
    found = run.pseudo_label(
        factory,
        collection,
        storage,
        outputs=Outputs(maps, overlays),
        batch_size=scale.batch_size,
        shard=shard,
        engine=engine,
        retry_failures=retry_failures,
        overwrite=overwrite,
    )
    typer.echo(f"{output}: label maps of {found.labeled} images; manifest.jsonl: scores, areas, timings")
    if report:
        _write_report(storage, shard)
    if found.failures:
        typer.echo(f"{len(found.failures)} images could not be read; see the manifest:", err=True)
        for name, reason in list(found.failures.items())[:_MAX_LISTED]:
            typer.echo(f"  {name}: {reason}", err=True)
        raise typer.Exit(1)


def _write_report(storage: "Storage", shard: "Shard") -> None:
    from dcsm_attr.pipelines.report import write_report

    try:
        typer.echo(f"{storage.location}: {write_report(storage)}")
    except FileNotFoundError:
        # The manifest is written by the shard that finishes last.
        if shard.count == 1:
            raise
        typer.echo(f"no report yet: when all shards have finished, run dcsm-attr report {storage.location}")


def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder or URI that dcsm-attr pseudo-label wrote to.", show_default=False
        ),
    ],
    thumbnails: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Maximum number of thumbnails: one half are the images with the lowest confidence, the other half a "
            "sample of each class. Counts and histograms include all images.",
        ),
    ] = 200,
) -> None:
    """Write report.html for a run of pseudo-label: counts, histograms, low scores, failures and thumbnails.

    The report is one file, which any browser shows offline. The run may be unfinished.

    Examples:
      dcsm-attr report out/pseudo-labels

      dcsm-attr report out/pseudo-labels --thumbnails 50
    """
    from dcsm_attr.io import is_uri, open_storage
    from dcsm_attr.pipelines.report import write_report

    # Opening a storage creates its folder.
    if not is_uri(folder) and not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Use the folder that dcsm-attr pseudo-label wrote.")
    # Its own scratch folder, because the run may still be writing.
    storage = open_storage(folder, scratch=".unfinished-report")
    try:
        name = write_report(storage, num_thumbnails=thumbnails)
    finally:
        storage.discard_scratch()
    typer.echo(f"{folder.rstrip('/')}/{name}")

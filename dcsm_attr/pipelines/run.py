"""Runs: pseudo-labels of a whole collection, which can be interrupted at any time and resumed.

A run writes ``labels/NAME.png`` (palette images in the colors of VOC), optional maps and overlays, and
``manifest.jsonl``. The first line of the manifest describes the run: ``images`` (number of all images), ``labeled``,
``failed``, ``class_names``, ``dcsm_attr`` (version), ``settings``, ``outputs``; and ``stopped``, the reason, if it
ended early. Each other line describes an image, in the order of the collection: ``name``, ``image`` (its path), and
either ``error``, or ``labels`` (the file), ``overlay`` and ``maps`` if they were written, ``size`` ``[H, W]``,
``classes`` (each with ``class``, ``name``, ``value`` in the label map, ``score``: the model's probability of the class,
``share`` of the area), ``confidence`` (mean over the pixels of the probability of their label), and ``seconds`` of each
step.

``parts/`` holds the lines of each batch, written after all other files of the batch: they mark the batch as finished.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

import dcsm_attr
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.io import Storage, json_bytes, open_run_storage
from dcsm_attr.pipelines.batches import (
    WHOLE,
    ImageBatch,
    Outputs,
    Shard,
    check_overwrite,
    collection_digest,
    count_batches,
    failures_by_name,
    finished_batches,
    plan_batches,
    read_records,
)
from dcsm_attr.pipelines.local import Engine, Job, SegmenterFactory, local_engine

__all__ = ["MANIFEST", "RunCounts", "pseudo_label"]


#: Name of the manifest in the storage.
MANIFEST = "manifest.jsonl"

# What a run writes. Without its lines in "parts" a batch is not finished: they are removed first.
_RESULTS = ("parts", MANIFEST, "labels", "maps", "overlays", "report.html")


@dataclass(frozen=True)
class RunCounts:
    """Result of a run.

    Attributes:
        labeled: number of images with a label map.
        failures: why the other images could not be read, by name.
    """

    labeled: int
    failures: Mapping[str, str]


def pseudo_label(
    build_segmenter: SegmenterFactory,
    collection: Collection,
    storage: Storage,
    *,
    outputs: Outputs = Outputs(),  # noqa: B008 - frozen
    batch_size: int = 8,
    shard: Shard = WHOLE,
    engine: Engine = local_engine,
    retry_failures: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> RunCounts:
    """Label every image of a collection by the classes that it is known to show.

    Files are written as documented in :mod:`dcsm_attr.pipelines.run`. An image that cannot be read does not end the
    run: its line of the manifest has the reason.

    A run that was interrupted resumes when it is started again with the same arguments. Label maps, maps and overlays
    are then byte for byte those of an uninterrupted run, as long as the model computes the same maps: on the same kind
    of machine, with the same number of threads.

    Args:
        build_segmenter: builds the segmenter, whose classes must be those of the collection.
        collection: images with image-level labels.
        storage: where to write.
        outputs: optional outputs.
        batch_size: images that go through the model together.
        shard: the part of the batches to process. The process that finishes the last batch of the collection writes the
            manifest.
        engine: processes the batches.
        retry_failures: whether to process batches again that have images that could not be read.
        overwrite: whether to remove the results of an earlier run, of any settings, and start over; not for one of
            several shards.
        progress: whether to show a progress bar.

    Returns:
        Counts of the images of the shard.

    Raises:
        OSError: if a file cannot be written; there are no incomplete files, and the same run resumes.
        ValueError: if the storage holds results of other settings or images, the classes differ, or a number is out of
            its range.
    """
    check_overwrite(overwrite, shard)
    batches = plan_batches(collection, batch_size, shard)
    segmenter = build_segmenter()
    if segmenter.class_names is None or tuple(segmenter.class_names) != collection.class_names:
        raise ValueError(
            f"the collection has the classes {collection.class_names}, the segmenter {segmenter.class_names}."
        )
    settings: dict[str, Any] = {
        "parameters": parameters_digest(segmenter.model),
        **segmenter.settings,
        "outputs": asdict(outputs),
        "batch_size": batch_size,
        "images": collection_digest(collection),
    }
    job = Job(build_segmenter, outputs, storage, segmenter.max_pixels)
    # Engines build their own segmenter, in the process where it runs.
    del segmenter
    open_run_storage(storage, settings, "pseudo-labels", results=_RESULTS, overwrite=overwrite)
    storage.discard_scratch()
    try:
        _process_batches(engine, job, batches, retry_failures, progress)
    except BaseException as error:
        if shard.count == 1:
            # What stopped the run, such as a full disk, may prevent this too; only the first error is reported.
            with suppress(OSError):
                _write_manifest(storage, collection, settings, stopped=f"{type(error).__name__}: {error}")
        raise
    if len(finished_batches(storage)) == count_batches(len(collection), batch_size):
        _write_manifest(storage, collection, settings)
    storage.discard_scratch()
    return _count_results(read_records(storage, batch.number) for batch in batches)


def _process_batches(
    engine: Engine, job: Job, batches: Sequence[ImageBatch], retry_failures: bool, progress: bool
) -> None:
    """Process the batches that are not finished."""
    finished = finished_batches(job.storage)
    if retry_failures:
        own = finished & {batch.number for batch in batches}
        finished -= {number for number in own if failures_by_name(read_records(job.storage, number))}
    unfinished = [batch for batch in batches if batch.number not in finished]
    total = sum(map(len, batches))
    failed = 0
    with (
        tqdm(
            total=total,
            initial=total - sum(map(len, unfinished)),
            unit="image",
            desc="pseudo-labels",
            disable=not progress,
        ) as bar,
        closing(engine(job, unfinished)) as results,
    ):
        for batch in results:
            failed += sum("error" in record for record in batch.records)
            if failed:
                bar.set_postfix(unreadable=failed, refresh=False)
            bar.update(len(batch.records))


def _write_manifest(
    storage: Storage, collection: Collection, settings: Mapping[str, Any], *, stopped: str | None = None
) -> None:
    """Write a line for the run and the lines of all finished batches."""
    records = [read_records(storage, number) for number in sorted(finished_batches(storage))]
    counts = _count_results(records)
    run = {
        "images": len(collection),
        "labeled": counts.labeled,
        "failed": len(counts.failures),
        "class_names": list(collection.class_names),
        "dcsm_attr": dcsm_attr.__version__,
        "outputs": settings["outputs"],
        "settings": {name: value for name, value in settings.items() if name != "outputs"},
        **({} if stopped is None else {"stopped": stopped}),
    }
    storage.write(MANIFEST, b"".join([json_bytes(run), *records]))


def _count_results(records: Iterable[bytes]) -> RunCounts:
    """Count the images of finished batches, from their lines of the manifest."""
    total, failures = 0, dict[str, str]()
    for lines in records:
        total += lines.count(b"\n")
        failures |= failures_by_name(lines)
    return RunCounts(total - len(failures), failures)

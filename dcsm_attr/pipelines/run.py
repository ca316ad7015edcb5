"""A run over a whole collection, which can be killed at any moment and started again.

``manifest.jsonl``: what a run is, and what became of each image, in the order of the collection.

The first line is the run: ``photographs`` (all), ``labeled``, ``failed``, ``class_names``, ``settings``, ``outputs``;
and ``stopped``, why it ended early, where it did. Each other line is an image: ``name``, ``photograph`` (its path),
and either ``error``, or ``labels`` (the file), ``overlay`` and ``maps`` where they were written, ``size`` ``[H, W]``,
``classes`` (each with ``class``, ``name``, ``value`` in the label map, ``score``: the model's probability of the class,
``share`` of the area), ``confidence`` (mean over the pixels of the probability of their label), and ``seconds`` of each
step.
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
    ImageBatch,
    Outputs,
    collection_digest,
    count_batches,
    failures_by_name,
    finished_batches,
    plan_batches,
    read_records,
)
from dcsm_attr.pipelines.label_files import Shard
from dcsm_attr.pipelines.local import Engine, Job, SegmenterFactory, local_engine

__all__ = ["MANIFEST", "RunCounts", "pseudo_label", "tally", "write_manifest"]


#: Its name.
MANIFEST = "manifest.jsonl"

# What a run writes. Without its entry in "parts" a batch counts as not computed, so that these are removed first.
_RESULTS = ("parts", MANIFEST, "labels", "maps", "overlays", "report.html")


@dataclass(frozen=True)
class RunCounts:
    """What became of images.

    Attributes:
        labeled: how many are.
        failures: why the others could not be read, by name.
    """

    labeled: int
    failures: Mapping[str, str]


def tally(parts: Iterable[bytes]) -> RunCounts:
    """Count the images of finished batches.

    Args:
        parts: their lines, see :func:`dcsm_attr.pipelines.batches.read_records`.
    """
    count, failures = 0, dict[str, str]()
    for lines in parts:
        count += lines.count(b"\n")
        failures |= failures_by_name(lines)
    return RunCounts(count - len(failures), failures)


def write_manifest(storage: Storage, batches: Iterable[int], collection: Collection, run: Mapping[str, Any]) -> None:
    """Put the lines of finished batches together.

    Args:
        storage: of the run.
        batches: numbers of those that are finished.
        collection: all images of the run.
        run: further entries of the first line.

    Raises:
        OSError: if it cannot be written.
    """
    parts = [read_records(storage, number) for number in sorted(batches)]
    found = tally(parts)
    first = {
        "photographs": len(collection),
        "labeled": found.labeled,
        "failed": len(found.failures),
        "class_names": list(collection.class_names),
        **run,
    }
    storage.write(MANIFEST, b"".join([json_bytes(first), *parts]))


def pseudo_label(
    recipe: SegmenterFactory,
    collection: Collection,
    storage: Storage,
    *,
    outputs: Outputs = Outputs(),  # noqa: B008 - frozen
    batch_size: int = 8,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    engine: Engine = local_engine,
    retry_failures: bool = False,
    progress: bool = True,
) -> RunCounts:
    """Label every image of a collection by the classes that it is known to show, and write what was found.

    Writes ``labels/NAME.png`` (palette pictures in the colors of VOC), what ``outputs`` asks for, and
    ``manifest.jsonl`` (:mod:`dcsm_attr.pipelines.run`); in ``parts/`` the lines of each batch, the last of its
    files, by which a later run knows what is done. An image that cannot be read is in the manifest, with the
    reason, and ends nothing.

    Of a run that is killed and started again, label maps, maps and overlays are byte for byte those of an undisturbed
    run, as long as the model gives the same maps again: on the same kind of machine, with as many threads.

    Args:
        recipe: of the segmenter, which must have the classes of the collection.
        collection: photographs with image-level labels.
        storage: where to write.
        outputs: what to write beside label maps.
        batch_size: photographs that go through the model together.
        shard: the part of the batches that is done here; the process that does the last one of all writes the manifest.
        engine: does the work.
        retry_failures: whether batches with photographs that could not be read are done again.
        progress: whether to show a bar.

    Returns:
        What became of the images of the shard.

    Raises:
        OSError: if something cannot be written; all that is written is whole, and the same run resumes.
        ValueError: if the storage holds results of other settings or photographs, the classes do not fit, or a number
            is out of its range.
    """
    planned = plan_batches(collection, batch_size, shard)
    segmenter = recipe()
    if segmenter.class_names is None or tuple(segmenter.class_names) != collection.class_names:
        raise ValueError(
            f"the collection has the classes {collection.class_names}, the segmenter {segmenter.class_names}."
        )
    settings: dict[str, Any] = {
        "parameters": parameters_digest(segmenter.model),
        **segmenter.settings,
        "outputs": asdict(outputs),
        "batch_size": batch_size,
        "photographs": collection_digest(collection),
    }
    open_run_storage(storage, settings, "pseudo-labels", results=_RESULTS)
    storage.discard_scratch()
    due = _due(storage, planned, retry_failures)
    job = Job(recipe, outputs, storage, segmenter.max_pixels)
    # Engines build their own, where they work.
    del segmenter
    run = {"dcsm_attr": dcsm_attr.__version__, "outputs": settings.pop("outputs"), "settings": settings}
    whole = count_batches(len(collection), batch_size)
    try:
        _label(engine, job, planned, due, progress)
    except BaseException as error:
        if shard.count == 1:
            # What stopped the run may stop this too, such as a full disk; it is the first error that counts.
            with suppress(OSError):
                run["stopped"] = f"{type(error).__name__}: {error}"
                write_manifest(storage, finished_batches(storage), collection, run)
        raise
    finished = finished_batches(storage)
    if len(finished) == whole:
        write_manifest(storage, finished, collection, run)
    storage.discard_scratch()
    return tally(read_records(storage, batch.number) for batch in planned)


def _due(storage: Storage, planned: Sequence[ImageBatch], retry_failures: bool) -> list[ImageBatch]:
    finished = finished_batches(storage)
    if retry_failures:
        own = finished & {batch.number for batch in planned}
        finished -= {number for number in own if failures_by_name(read_records(storage, number))}
    return [batch for batch in planned if batch.number not in finished]


def _label(engine: Engine, job: Job, planned: Sequence[ImageBatch], due: Sequence[ImageBatch], progress: bool) -> None:
    total, left = (sum(len(batch.photographs) for batch in batches) for batches in (planned, due))
    bar = tqdm(total=total, initial=total - left, unit="photo", desc="pseudo-labels", disable=not progress)
    failed = 0
    with bar, closing(engine(job, due)) as results:
        for finished in results:
            failed += sum("error" in record for record in finished.records)
            if failed:
                bar.set_postfix(unreadable=failed, refresh=False)
            bar.update(len(finished.records))

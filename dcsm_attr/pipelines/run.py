"""A run over a whole collection, which can be killed at any moment and started again."""

from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

import dcsm_attr
from dcsm_attr.claimed_folder import claim_storage
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.provenance import parameters_digest
from dcsm_attr.pipelines.batch_files import failures_of, finished_batches, read_records
from dcsm_attr.pipelines.engine import Engine, Job, Recipe
from dcsm_attr.pipelines.labeller import Outputs
from dcsm_attr.pipelines.local import in_this_process
from dcsm_attr.pipelines.manifest import Tally, tally, write_manifest
from dcsm_attr.pipelines.plan import PhotographBatch, batch_count, collection_digest, planned_batches
from dcsm_attr.segmentation.label_files import Shard
from dcsm_attr.storage import Storage

__all__ = ["pseudo_label"]


def pseudo_label(
    recipe: Recipe,
    collection: Collection,
    storage: Storage,
    *,
    outputs: Outputs = Outputs(),  # noqa: B008 - frozen
    batch_size: int = 8,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    engine: Engine = in_this_process,
    retry_failures: bool = False,
    progress: bool = True,
) -> Tally:
    """Label every photograph of a collection by the classes that it is known to show, and write what was found.

    Writes ``labels/NAME.png`` (palette pictures in the colours of VOC), what ``outputs`` asks for, and
    ``manifest.jsonl`` (:mod:`dcsm_attr.pipelines.manifest`); in ``parts/`` the lines of each batch, the last of its
    files, by which a later run knows what is done. A photograph that cannot be read is in the manifest, with the
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
        What became of the photographs of the shard.

    Raises:
        OSError: if something cannot be written; all that is written is whole, and the same run goes on from there.
        ValueError: if the storage holds results of other settings or photographs, the classes do not fit, or a number
            is out of its range.
    """
    planned = planned_batches(collection, batch_size, shard)
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
    claim_storage(storage, settings, "pseudo-labels")
    storage.discard_scratch()
    due = _due(storage, planned, retry_failures)
    job = Job(recipe, outputs, storage, segmenter.max_pixels)
    # Engines build their own, where they work.
    del segmenter
    run = {"dcsm_attr": dcsm_attr.__version__, "outputs": settings.pop("outputs"), "settings": settings}
    whole = batch_count(len(collection), batch_size)
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


def _due(storage: Storage, planned: Sequence[PhotographBatch], retry_failures: bool) -> list[PhotographBatch]:
    finished = finished_batches(storage)
    if retry_failures:
        own = finished & {batch.number for batch in planned}
        finished -= {number for number in own if failures_of(read_records(storage, number))}
    return [batch for batch in planned if batch.number not in finished]


def _label(
    engine: Engine, job: Job, planned: Sequence[PhotographBatch], due: Sequence[PhotographBatch], progress: bool
) -> None:
    total, left = (sum(len(batch.photographs) for batch in batches) for batches in (planned, due))
    bar = tqdm(total=total, initial=total - left, unit="photo", desc="pseudo-labels", disable=not progress)
    failed = 0
    with bar, closing(engine(job, due)) as results:
        for finished in results:
            failed += sum("error" in record for record in finished.records)
            if failed:
                bar.set_postfix(unreadable=failed, refresh=False)
            bar.update(len(finished.records))

"""``manifest.jsonl``: what a run is, and what became of each photograph, in the order of the collection.

The first line is the run: ``photographs`` (all), ``labelled``, ``failed``, ``class_names``, ``settings``, ``outputs``;
and ``stopped``, why it ended early, where it did. Each other line is a photograph: ``name``, ``photograph`` (its path),
and either ``error``, or ``labels`` (the file), ``overlay`` and ``maps`` where they were written, ``size`` ``[H, W]``,
``classes`` (each with ``class``, ``name``, ``value`` in the label map, ``score``: the model's probability of the class,
``share`` of the area), ``confidence`` (mean over the pixels of the probability of their label), and ``seconds`` of each
step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dcsm_attr.datasets.collection import Collection
from dcsm_attr.files import json_bytes
from dcsm_attr.pipelines.batch_files import failures_of, read_records
from dcsm_attr.storage import Storage

__all__ = ["MANIFEST", "Tally", "tally", "write_manifest"]

#: Its name.
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Tally:
    """What became of photographs.

    Attributes:
        labelled: how many are.
        failures: why the others could not be read, by name.
    """

    labelled: int
    failures: Mapping[str, str]


def tally(parts: Iterable[bytes]) -> Tally:
    """Count the photographs of finished batches.

    Args:
        parts: their lines, see :func:`dcsm_attr.pipelines.batch_files.read_records`.
    """
    count, failures = 0, dict[str, str]()
    for lines in parts:
        count += lines.count(b"\n")
        failures |= failures_of(lines)
    return Tally(count - len(failures), failures)


def write_manifest(storage: Storage, batches: Iterable[int], collection: Collection, run: Mapping[str, Any]) -> None:
    """Put the lines of finished batches together.

    Args:
        storage: of the run.
        batches: numbers of those that are finished.
        collection: all photographs of the run.
        run: further entries of the first line.

    Raises:
        OSError: if it cannot be written.
    """
    parts = [read_records(storage, number) for number in sorted(batches)]
    found = tally(parts)
    first = {
        "photographs": len(collection),
        "labelled": found.labelled,
        "failed": len(found.failures),
        "class_names": list(collection.class_names),
        **run,
    }
    storage.write(MANIFEST, b"".join([json_bytes(first), *parts]))

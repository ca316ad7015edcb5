"""The files of a batch: those of its photographs, and last the lines that vouch for them."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dcsm_attr.files import json_bytes
from dcsm_attr.storage import Storage

__all__ = ["Labelled", "failures_of", "finished_batches", "read_records", "write_records", "written"]

_FOLDER = "parts"


@dataclass(frozen=True)
class Labelled:
    """What is to be written for a photograph.

    Attributes:
        record: its line of the manifest.
        files: contents by name.
    """

    record: Mapping[str, Any]
    files: Mapping[str, bytes]


def written(storage: Storage, labelled: Labelled) -> Mapping[str, Any]:
    """Write the files of a photograph.

    Returns:
        Its line of the manifest.

    Raises:
        OSError: if they cannot be written.
    """
    begun = time.perf_counter()
    for name, content in labelled.files.items():
        storage.write(name, content)
    seconds = labelled.record["seconds"]
    # What came before, its encoding, belongs to it.
    total = seconds["write"] + time.perf_counter() - begun
    return {**labelled.record, "seconds": {**seconds, "write": round(total, 4)}}


def write_records(storage: Storage, number: int, records: Iterable[Mapping[str, Any]]) -> None:
    """Declare a batch finished.

    Args:
        storage: where all files of its photographs are already.
        number: of the batch.
        records: the lines of its photographs.

    Raises:
        OSError: if they cannot be written.
    """
    storage.write(f"{_FOLDER}/{_name(number)}", b"".join(map(json_bytes, records)))


def finished_batches(storage: Storage) -> set[int]:
    """Numbers of the batches that are finished, by whichever process."""
    return {int(name.split(".")[0]) for name in storage.names(_FOLDER) if name.endswith(".jsonl")}


def read_records(storage: Storage, number: int) -> bytes:
    """The lines of a finished batch.

    Raises:
        FileNotFoundError: if it is not finished.
    """
    return storage.read(f"{_FOLDER}/{_name(number)}")


def failures_of(lines: bytes) -> dict[str, str]:
    """Why photographs of the batch could not be read, by their names."""
    records = (json.loads(line) for line in lines.splitlines())
    return {record["name"]: record["error"] for record in records if "error" in record}


def _name(number: int) -> str:
    return f"{number:08d}.jsonl"

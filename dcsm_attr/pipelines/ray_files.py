"""The actors of a cluster that do without the model: they read and write.

Apart from the engine, so that what they import is little: not torchvision, nor what captum brings.
"""

import json
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcsm_attr.datasets.collection import Photograph
from dcsm_attr.images import ImageReadError
from dcsm_attr.pipelines.batch_files import Labelled, write_records, written
from dcsm_attr.pipelines.reading import Reading, failure, read_photograph
from dcsm_attr.storage import Storage, is_uri

__all__ = ["Reader", "Row", "Writer"]

# Photographs of a batch that are read, or written, at once: decoding leaves Python's lock, and an object store answers
# late.
_THREADS = 8

#: A batch, as Ray Data has it: numbers and bytes by name.
Row = dict[str, Any]


class Reader:
    """A batch, to its photographs; several are read at once."""

    def __init__(self, max_pixels: int | None, here: Path) -> None:
        """Take the size of a photograph at most, and the folder that paths are relative to."""
        self._max_pixels, self._here = max_pixels, here

    def __call__(self, row: Row) -> Row:
        """Read what can be read."""
        with ThreadPoolExecutor(_THREADS) as threads:
            readings = list(threads.map(self._read, pickle.loads(row["photographs"])))
        return {"number": row["number"], "readings": pickle.dumps(readings)}

    def _read(self, item: tuple[int, Photograph]) -> Reading | dict[str, Any]:
        position, photograph = item
        try:
            # Paths are told as they were given, and read from where they were given.
            path = photograph.path if is_uri(photograph.path) else self._here / photograph.path
            found = read_photograph(position, replace(photograph, path=path), self._max_pixels)
            return replace(found, photograph=photograph)
        except ImageReadError as error:
            return failure(photograph, str(error))


class Writer:
    """The content of the files of a batch, to its lines of the manifest; several files are written at once."""

    def __init__(self, storage: Storage) -> None:
        """Take the place to write to."""
        self._storage = storage

    def __call__(self, row: Row) -> Row:
        """Write, and vouch for it; an error is told as a value."""
        results, number = pickle.loads(row["results"]), row["number"]
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                records = list(threads.map(self._record, results))
            write_records(self._storage, number, records)
        except OSError as error:
            # As a value: an exception would come back as text within Ray's own.
            return {"number": number, "records": "", "error": pickle.dumps(error)}
        return {"number": number, "records": json.dumps(records), "error": b""}

    def _record(self, result: Labelled | Mapping[str, Any]) -> Mapping[str, Any]:
        return written(self._storage, result) if isinstance(result, Labelled) else result

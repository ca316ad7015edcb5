"""The rows of an evaluation in a file that grows while it runs, so that a killed run can go on.

The first line holds everything that the result depends on; each further line is a photograph, in order.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcsm_attr.evaluation.rows import Row, row_from_line, row_line
from dcsm_attr.evaluation.settings import differences
from dcsm_attr.files import atomic_path, writable_folder

__all__ = ["append_rows", "kept_rows"]


def kept_rows(path: Path, depends_on: Mapping[str, Any], names: Sequence[str], batch_size: int) -> list[Row]:
    """Read the rows that an earlier run has left, or begin the file.

    Rows of a batch that was not finished are removed from the file: to give the same result to the last bit, a batch is
    computed as a whole.

    Args:
        path: the file; folders above it are made.
        depends_on: everything that the result depends on, ready for JSON.
        names: of all photographs, in order.
        batch_size: photographs that are computed together.

    Returns:
        The rows of the first photographs.

    Raises:
        OSError: if the file cannot be read or written to.
        ValueError: if it was written with other settings, which are named, is damaged, or is another kind of file.
    """
    writable_folder(path.parent)
    if not path.exists():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(depends_on) + "\n", encoding="utf-8")
        return []
    # What follows the last line break is empty, or a line that was cut off.
    *lines, _ = path.read_bytes().split(b"\n")
    _check_settings(path, lines, depends_on)
    rows = [_row(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    if [row.name for row in rows] != list(names[: len(rows)]):
        raise ValueError(f"{path}: its photographs are not those of the collection, in order. {_REMEDY}")
    kept = len(rows) if len(rows) == len(names) else len(rows) // batch_size * batch_size
    os.truncate(path, sum(len(line) + 1 for line in lines[: 1 + kept]))
    return rows[:kept]


_REMEDY = "Remove it to start again, or choose another file."


def _check_settings(path: Path, lines: list[bytes], depends_on: Mapping[str, Any]) -> None:
    try:
        before = json.loads(lines[0])
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path}: is not the state of an evaluation. {_REMEDY}") from error
    if not isinstance(before, dict):
        raise ValueError(f"{path}: is not the state of an evaluation. {_REMEDY}")
    # Tuples have become lists in the file.
    different = differences(before, json.loads(json.dumps(depends_on)))
    if different:
        raise ValueError(f"{path}: belongs to another evaluation, which differs in {'; '.join(different)}. {_REMEDY}")


def _row(path: Path, number: int, line: bytes) -> Row:
    try:
        return row_from_line(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: damaged ({error}). {_REMEDY}") from error


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add the rows of one batch at the end of the file.

    Raises:
        OSError: if it cannot be written to.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{row_line(row)}\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())

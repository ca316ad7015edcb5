"""Rows of measurements in a file that grows while they are taken, so that a killed run can go on.

The first line holds everything that the result depends on; each further line is a photograph, in order.
"""

import json
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dcsm_attr.files import atomic_path, writable_folder
from dcsm_attr.settings import differences

__all__ = ["append_lines", "kept_rows"]

_REMEDY = "Remove it to start again, or choose another file."


class _Named(typing.Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)


def kept_rows(
    path: Path,
    depends_on: Mapping[str, Any],
    names: Sequence[str],
    batch_size: int,
    read: Callable[[bytes], _Row],
) -> list[_Row]:
    """Read the rows that an earlier run has left, or begin the file.

    Rows of a batch that was not finished are removed from the file: to give the same result to the last bit, a batch is
    computed as a whole.

    Args:
        path: the file; folders above it are made.
        depends_on: everything that the result depends on, ready for JSON.
        names: of all photographs, in order.
        batch_size: photographs that are computed together.
        read: makes a row, which has a name, of a line, or raises a ValueError.

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
    rows = [_row(path, number, line, read) for number, line in enumerate(lines[1:], start=2)]
    if [row.name for row in rows] != list(names[: len(rows)]):
        raise ValueError(f"{path}: its photographs are not those of the collection, in order. {_REMEDY}")
    kept = len(rows) if len(rows) == len(names) else len(rows) // batch_size * batch_size
    os.truncate(path, sum(len(line) + 1 for line in lines[: 1 + kept]))
    return rows[:kept]


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


def _row(path: Path, number: int, line: bytes, read: Callable[[bytes], _Row]) -> _Row:
    try:
        return read(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: damaged ({error}). {_REMEDY}") from error


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add the rows of one batch at the end of the file, a line each.

    Raises:
        OSError: if it cannot be written to.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{line}\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())

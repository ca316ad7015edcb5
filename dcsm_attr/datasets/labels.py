"""Saying what is missing from a set of files, in a line that stays short.

The names of classes in a text file in UTF-8, one per line, in the order of the class numbers.

Image-level labels in a CSV file: which classes each image shows.

The first line names the columns ``id``, ``split`` (may be left out) and ``labels``; others are not read::

    id,split,labels
    2007_000032,train,aeroplane person
    2007_000033,val,aeroplane

Names in ``labels`` are separated by blanks. Where names have blanks in them, ``;`` separates instead: if one stands in
the labels of any row, it separates those of all rows, so that ``dining table`` and ``dining table;chair`` mean the same
table. If no row has two names, one ``;`` behind a name says it: ``dining table;``.

A row without a label is an error: it is more often forgotten than meant, and the method needs a class to look for.
"""

import csv
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dcsm_attr.io import atomic_path, read_lines

__all__ = [
    "ImageLabels",
    "LabelRow",
    "read_class_names",
    "read_image_labels",
    "require_files",
    "summarize_names",
    "write_image_labels",
]


_MAX_LISTED = 5


def summarize_names(names: Sequence[str]) -> str:
    """The first five names, and how many there are beyond them."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def require_files(paths: Sequence[Path], what: str, remedy: str) -> None:
    """Find out before the work whether all files of a collection are there.

    Args:
        paths: all of the files.
        what: they are, in the plural, for the message.
        remedy: a sentence that says what to do.

    Raises:
        ValueError: if some are missing; their count, their folder and the first five are named.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0].parent}: {len(missing)} of {len(paths)} {what} are missing: "
            f"{summarize_names([path.name for path in missing])}. {remedy}"
        )


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read the names; empty lines do not count.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is no text in UTF-8, names no class, or one twice.
    """
    path = Path(path)
    names = tuple(line for line in read_lines(path) if line)
    if not names:
        raise ValueError(f"{path}: names no class; it must have a name a line.")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(
                f"{path}: the class {name!r} is named twice, as number {names.index(name)} and {position}."
            )
    return names


_HEADER = ("id", "split", "labels")
_SEPARATOR = ";"


@dataclass(frozen=True)
class LabelRow:
    """What the file says of one image.

    Attributes:
        split: the part of the data that it belongs to, such as ``"train"``. None: not said.
        classes: the classes in it, from 0, ascending.
    """

    split: str | None
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ImageLabels:
    """The contents of a label file.

    Attributes:
        class_names: one per class, without the background.
        rows: by the id of the image, in the order of the file.
    """

    class_names: tuple[str, ...]
    rows: Mapping[str, LabelRow]


class _Record(NamedTuple):
    line: int
    name: str
    split: str | None
    labels: str


def read_image_labels(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> ImageLabels:
    """Read a label file.

    Args:
        path: a CSV file in UTF-8, as the head of this module describes.
        class_names: the names that may occur, in the order of the class numbers. None: those in the file, sorted.

    Returns:
        The labels, and the class names that the numbers belong to.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file and the line, if it is empty, no CSV, or lacks a column; or if a row has no id, an
            id that another row has, no label, or an unknown class.
    """
    path = Path(path)
    records = _records(path)
    labels = _split_labels(path, records)
    if class_names is None:
        class_names = sorted(set().union(*labels))
    numbers = {name: number for number, name in enumerate(class_names)}
    rows: dict[str, LabelRow] = {}
    for record, names in zip(records, labels, strict=True):
        for name in names:
            if name not in numbers:
                raise ValueError(f"{path}, line {record.line}: {_unknown(name, class_names)}")
        rows[record.name] = LabelRow(record.split, tuple(sorted({numbers[name] for name in names})))
    return ImageLabels(tuple(class_names), rows)


def _records(path: Path) -> list[_Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            lines = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text in UTF-8 ({error}).") from error
    columns = _columns(path, header)
    if not lines:
        raise ValueError(f"{path}: holds no row, so no image has a label.")
    records: dict[str, _Record] = {}
    for line, row in lines:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(
                f"{where}: has {len(row)} fields, but line 1 names {len(header)} columns. Separate the labels by "
                f"blanks or {_SEPARATOR!r}, and put a field with a comma in it into double quotes."
            )
        fields = {column: row[position].strip() for column, position in columns.items()}
        name = fields["id"]
        if not name:
            raise ValueError(f"{where}: the id is empty; it must name an image.")
        if name in records:
            raise ValueError(f"{where}: the id {name!r} is listed twice, first in line {records[name].line}.")
        records[name] = _Record(line, name, fields.get("split") or None, fields["labels"])
    return list(records.values())


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Where the columns stand that are read."""
    if not header:
        raise ValueError(f"{path}, line 1: is empty; the columns must be named there: {','.join(_HEADER)}")
    missing = [column for column in ("id", "labels") if column not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: must name the columns {','.join(_HEADER)} (split may be left out), separated by commas; "
            f"{' and '.join(missing)} missing in {','.join(header)!r}."
        )
    return {column: header.index(column) for column in _HEADER if column in header}


def _split_labels(path: Path, records: Sequence[_Record]) -> list[list[str]]:
    """The class names of each row."""
    # At blanks, if None.
    separator = _SEPARATOR if any(_SEPARATOR in record.labels for record in records) else None
    labels = []
    for record in records:
        names = [name.strip() for name in record.labels.split(separator) if name.strip()]
        if not names:
            raise ValueError(
                f"{path}, line {record.line}: {record.name!r} has no label; each image must show at least one "
                "class. Name it, or leave the row out."
            )
        labels.append(names)
    return labels


def _unknown(name: str, class_names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    hint = f" Near it: {', '.join(near)}." if near else ""
    blank = any(" " in known for known in class_names)
    rule = f" Names with blanks in them are separated by {_SEPARATOR!r} in every row." if blank else ""
    return f"there is no class {name!r} among the {len(class_names)} class names.{hint}{rule}"


def write_image_labels(path: str | os.PathLike[str], labels: ImageLabels) -> None:
    """Write a label file that :func:`read_image_labels` reads back; it appears when it is complete.

    Args:
        path: the CSV file; what stands there already is replaced.
        labels: its rows are written in order.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if there is no row, a row has no class, a class has no name, or a text would not come back: an id,
            split or class name that is empty, has a line break or a blank at an end, or a class name with ``;`` in it.
    """
    if not labels.rows:
        raise ValueError("labels holds no row; a label file needs at least one image.")
    lines = [_line(name, row, labels.class_names) for name, row in labels.rows.items()]
    blank = any(len(label.split()) > 1 for _, _, names in lines for label in names)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows((name, split, _join_labels(names, blank)) for name, split, names in lines)


def _line(name: str, row: LabelRow, class_names: Sequence[str]) -> tuple[str, str, list[str]]:
    if not row.classes:
        raise ValueError(f"{name!r} has no class; each image must show at least one.")
    if min(row.classes) < 0 or max(row.classes) >= len(class_names):
        raise ValueError(f"the classes of {name!r} must lie between 0 and {len(class_names) - 1}, got {row.classes}.")
    names = [class_names[c] for c in row.classes]
    for text in (name, *names, *(() if row.split is None else (row.split,))):
        if text != text.strip() or len(text.splitlines()) != 1:
            raise ValueError(f"{text!r} cannot be written: it is empty, or has a line break or a blank at an end.")
    for text in names:
        if _SEPARATOR in text:
            raise ValueError(f"the class name {text!r} cannot be written: {_SEPARATOR!r} separates names.")
    return name, row.split or "", names


def _join_labels(names: Sequence[str], blank: bool) -> str:
    if not blank:
        return " ".join(names)
    return _SEPARATOR.join(names) + (_SEPARATOR if len(names) == 1 else "")

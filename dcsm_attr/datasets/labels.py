"""Reads and writes image-level labels: which classes each image shows, and lists of class names.

A label file is CSV. Its first line names the columns ``id``, ``split`` (optional) and ``labels``; other columns are
ignored::

    id,split,labels
    2007_000032,train,aeroplane person
    2007_000033,val,aeroplane

Class names in ``labels`` are separated by spaces. If ``;`` occurs in the labels of any row, it separates the names of
all rows instead, so that names may contain spaces: ``dining table;chair``. A file whose rows all have one name needs
one trailing ``;``: ``dining table;``.

A row without a label is an error: the method needs a class to look for, and an empty field is usually a mistake.
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

_HEADER = ("id", "split", "labels")
_SEPARATOR = ";"
_MAX_LISTED = 5


@dataclass(frozen=True)
class LabelRow:
    """The labels of one image.

    Attributes:
        split: the part of the data that the image belongs to, such as ``"train"``. None: not given.
        classes: class indices from 0, ascending.
    """

    split: str | None
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ImageLabels:
    """The contents of a label file.

    Attributes:
        class_names: one per class, without the background.
        rows: image id to labels, in the order of the file.
    """

    class_names: tuple[str, ...]
    rows: Mapping[str, LabelRow]


def read_image_labels(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> ImageLabels:
    """Reads a label file.

    Args:
        path: a CSV file in UTF-8; the module docstring describes the format.
        class_names: the allowed names, in the order of the class indices. None: the names in the file, sorted.

    Returns:
        The labels and the class names.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file and the line, if the file is empty, is not CSV, or lacks a column; or if a row has
            no id, a duplicate id, no label, or an unknown class.
    """
    path = Path(path)
    records = _read_records(path)
    labels = _split_labels(path, records)
    if class_names is None:
        class_names = sorted(set().union(*labels))
    index_of = {name: index for index, name in enumerate(class_names)}
    rows: dict[str, LabelRow] = {}
    for record, names in zip(records, labels, strict=True):
        for name in names:
            if name not in index_of:
                raise ValueError(f"{path}, line {record.line}: {_describe_unknown_class(name, class_names)}")
        rows[record.name] = LabelRow(record.split, tuple(sorted({index_of[name] for name in names})))
    return ImageLabels(tuple(class_names), rows)


class _Record(NamedTuple):
    line: int
    name: str
    split: str | None
    labels: str


def _read_records(path: Path) -> list[_Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [column.strip() for column in next(reader, [])]
            lines = [(reader.line_num, row) for row in reader if row]
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text in UTF-8 ({error}).") from error
    columns = _column_positions(path, header)
    if not lines:
        raise ValueError(f"{path}: has no rows, so no image has a label.")
    records: dict[str, _Record] = {}
    for line, row in lines:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise ValueError(
                f"{where}: has {len(row)} fields, but line 1 names {len(header)} columns. Separate the labels by "
                f"spaces or {_SEPARATOR!r}, and put a field that contains a comma into double quotes."
            )
        fields = {column: row[position].strip() for column, position in columns.items()}
        name = fields["id"]
        if not name:
            raise ValueError(f"{where}: the id is empty; it must name an image.")
        if name in records:
            raise ValueError(f"{where}: the id {name!r} is listed twice, first in line {records[name].line}.")
        records[name] = _Record(line, name, fields.get("split") or None, fields["labels"])
    return list(records.values())


def _column_positions(path: Path, header: list[str]) -> dict[str, int]:
    if not header:
        raise ValueError(f"{path}, line 1: is empty; it must name the columns: {','.join(_HEADER)}")
    missing = [column for column in ("id", "labels") if column not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: must name the columns {','.join(_HEADER)} (split is optional), separated by commas; "
            f"{' and '.join(missing)} missing in {','.join(header)!r}."
        )
    return {column: header.index(column) for column in _HEADER if column in header}


def _split_labels(path: Path, records: Sequence[_Record]) -> list[list[str]]:
    """Returns the class names of each row."""
    separator = _SEPARATOR if any(_SEPARATOR in record.labels for record in records) else None  # None: white space
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


def _describe_unknown_class(name: str, class_names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, class_names, n=3, cutoff=0.5)
    hint = f" Similar names: {', '.join(near)}." if near else ""
    has_spaces = any(" " in known for known in class_names)
    rule = f" Names that contain spaces must be separated by {_SEPARATOR!r} in every row." if has_spaces else ""
    return f"there is no class {name!r} among the {len(class_names)} class names.{hint}{rule}"


def write_image_labels(path: str | os.PathLike[str], labels: ImageLabels) -> None:
    """Writes a label file that :func:`read_image_labels` reads back. The file is replaced atomically.

    Args:
        path: the CSV file.
        labels: the labels; rows are written in order.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if there is no row, a row has no class, or a class has no name; or if an id, split or class name is
            empty, contains a line break, starts or ends with a space, or (class names) contains ``;``.
    """
    if not labels.rows:
        raise ValueError("labels has no rows; a label file needs at least one image.")
    lines = [_label_line(name, row, labels.class_names) for name, row in labels.rows.items()]
    has_spaces = any(len(label.split()) > 1 for _, _, names in lines for label in names)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows((name, split, _join_labels(names, has_spaces)) for name, split, names in lines)


def _label_line(name: str, row: LabelRow, class_names: Sequence[str]) -> tuple[str, str, list[str]]:
    if not row.classes:
        raise ValueError(f"{name!r} has no class; each image must show at least one.")
    if min(row.classes) < 0 or max(row.classes) >= len(class_names):
        raise ValueError(f"the classes of {name!r} must lie between 0 and {len(class_names) - 1}, got {row.classes}.")
    names = [class_names[c] for c in row.classes]
    for text in (name, *names, *(() if row.split is None else (row.split,))):
        if text != text.strip() or len(text.splitlines()) != 1:
            raise ValueError(
                f"{text!r} cannot be written: it is empty, contains a line break, or starts or ends with a space."
            )
    for text in names:
        if _SEPARATOR in text:
            raise ValueError(f"the class name {text!r} cannot be written: {_SEPARATOR!r} separates names.")
    return name, row.split or "", names


def _join_labels(names: Sequence[str], has_spaces: bool) -> str:
    if not has_spaces:
        return " ".join(names)
    return _SEPARATOR.join(names) + (_SEPARATOR if len(names) == 1 else "")


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Reads class names from a text file in UTF-8, one per line in the order of the class indices.

    Empty lines are ignored.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is not UTF-8 text, names no class, or names a class twice.
    """
    path = Path(path)
    names = tuple(line for line in read_lines(path) if line)
    if not names:
        raise ValueError(f"{path}: names no class; it must have one name per line.")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(
                f"{path}: the class {name!r} is named twice, as number {names.index(name)} and {position}."
            )
    return names


def summarize_names(names: Sequence[str]) -> str:
    """Returns the first five names and the number of the others, for messages."""
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def require_files(paths: Sequence[Path], what: str, remedy: str) -> None:
    """Checks that all files of a collection exist.

    Args:
        paths: the files.
        what: a plural noun for the message, such as ``"masks"``.
        remedy: the last sentence of the message.

    Raises:
        ValueError: if files are missing, with their number, their folder and the first five names.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0].parent}: {len(missing)} of {len(paths)} {what} are missing: "
            f"{summarize_names([path.name for path in missing])}. {remedy}"
        )

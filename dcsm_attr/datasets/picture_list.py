"""Photographs that a text file lists, one path or URI a line, with the labels of a CSV file."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.image_labels import ImageLabels, LabelRow, read_image_labels
from dcsm_attr.datasets.missing import first_five
from dcsm_attr.storage import is_uri
from dcsm_attr.text_lines import read_lines

__all__ = ["list_collection"]


def list_collection(
    pictures: str | Path, labels: str | Path, *, class_names: Sequence[str] | None = None
) -> Collection:
    """Photographs of a list with the labels of a CSV file; which photographs, the list alone says.

    Whether the photographs are there is found out when they are read: a list may name millions.

    Args:
        pictures: a text file in UTF-8, a photograph a line: a path, relative to the folder of the list, or a URI such
            as ``s3://bucket/photo.jpg``. Empty lines and those that begin with ``#`` are left out.
        labels: the CSV file (:mod:`dcsm_attr.datasets.image_labels`); its ids are lines of the list, or names of files
            with or without the ending. Rows of other photographs are not used.
        class_names: in the order of the class numbers. None: those that the CSV file names, sorted.

    Returns:
        The photographs in the order of the list, named without folder and ending.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list is no text or names no photograph, or two of one name; if the CSV file is bad; or if
            photographs have no row, naming the first five.
    """
    pictures = Path(pictures)
    lines = _lines(pictures)
    table = read_image_labels(labels, class_names)
    photographs: dict[str, Photograph] = {}
    without = []
    for line in lines:
        name = PurePosixPath(line).stem
        if name in photographs:
            raise ValueError(
                f"{pictures}: two photographs have the name {name!r}: {photographs[name].path} and {line}. Results are "
                "written under it, so that names must be unique; rename one."
            )
        row = _row(table, line)
        if row is None:
            without.append(line)
        photographs[name] = Photograph(name, _path(pictures, line), () if row is None else row.classes)
    if without:
        raise ValueError(
            f"{labels}: {len(without)} of {len(lines)} photographs of {pictures} have no row: {first_five(without)}. "
            "An id is a line of the list, or the name of the file, with or without the ending."
        )
    return Collection(table.class_names, tuple(photographs.values()))


def _lines(path: Path) -> list[str]:
    lines = [line for line in read_lines(path) if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path}: names no photograph; a list has a path or a URI a line.")
    return lines


def _row(table: ImageLabels, line: str) -> LabelRow | None:
    pure = PurePosixPath(line)
    return next((table.rows[name] for name in (line, pure.name, pure.stem) if name in table.rows), None)


def _path(pictures: Path, line: str) -> Path | str:
    return line if is_uri(line) else pictures.parent / line

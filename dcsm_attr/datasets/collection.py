"""A set of images with their image-level labels: what training reads, and what evaluation compares with masks.

The user's own images: a plain folder of pictures, and a CSV file with their labels.

Photographs that a text file lists, one path or URI a line, with the labels of a CSV file.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from dcsm_attr.datasets.images import image_extensions
from dcsm_attr.datasets.labels import ImageLabels, LabelRow, read_image_labels, require_files, summarize_names
from dcsm_attr.io import is_uri, read_lines

__all__ = ["Collection", "LabeledImage", "folder_collection", "image_list_collection", "list_images"]


@dataclass(frozen=True)
class LabeledImage:
    """One image of a collection.

    Attributes:
        name: its id, unique in the collection.
        path: of the image file; a string is a URI, such as ``"s3://bucket/photo.jpg"``.
        classes: the classes in it (image-level labels), from 0, ascending.
        mask: the true label map as a palette or gray picture, 0 background, ``c + 1`` for class ``c``, 255 void. None:
            there is none, or it is not to be read.
    """

    name: str
    path: Path | str
    classes: tuple[int, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class Collection:
    """Photographs and the names of their classes.

    Attributes:
        class_names: one per class, without the background.
        images: in a fixed order.
    """

    class_names: tuple[str, ...]
    images: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __iter__(self) -> Iterator[LabeledImage]:
        """The images in order."""
        return iter(self.images)

    def evenly_spaced(self, count: int) -> "Collection":
        """So many images at equal distances; all, if there are not more or 0 are asked for."""
        total = len(self)
        count = min(count or total, total)
        return replace(self, images=tuple(self.images[i * total // count] for i in range(count)))

    def presence(self) -> Tensor:
        """Which classes are in which image, ``(N, C)`` bool."""
        present = torch.zeros(len(self), len(self.class_names), dtype=torch.bool)
        for row, photograph in zip(present, self.images, strict=True):
            row[list(photograph.classes)] = True
        return present


def list_images(folder: str | Path) -> list[Path]:
    """The files in a folder whose ending is that of a picture, sorted; folders in it are not looked at.

    Files whose names begin with a dot are left out: what other programs, or a run that was killed, have left.

    Raises:
        ValueError: if there is none, or no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. Give one with pictures in it.")
    endings = image_extensions()
    pictures = sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in endings and not p.name.startswith(".")
    )
    if not pictures:
        raise ValueError(f"{folder}: the folder holds no pictures. Those in folders below it are not looked at.")
    return pictures


def folder_collection(
    images: str | Path,
    labels: str | Path,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    masks: str | Path | None = None,
) -> Collection:
    """Photographs of a folder with the labels of a CSV file.

    Pictures that the file does not list, in any split, are left out with one warning, which counts them: nothing is
    learned from them, but a forgotten row should be seen.

    Args:
        images: the folder. No two pictures in it may have the same name but for the ending.
        labels: the CSV file (:mod:`dcsm_attr.datasets.labels`); its ids are names of files in the folder, with or
            without the ending.
        split: only rows of this split are taken. None: all.
        class_names: in the order of the class numbers. None: those that the file names in any split, sorted.
        masks: the folder of the true label maps, ``NAME.png`` for each image of the split. None: there are none.

    Returns:
        The images in the order of the file, named without their endings.

    Raises:
        OSError: if the CSV file cannot be opened.
        ValueError: if the CSV file is bad, naming file and line; if the folder is missing, holds no pictures, or two of
            one name; if the split has no rows; if two ids mean one picture; or if ids have no picture or photographs no
            mask, naming the first five.
    """
    images, labels = Path(images), Path(labels)
    table = read_image_labels(labels, class_names)
    pictures = _images_by_name(images)
    rows = _rows_of(table, split, labels)
    missing = [name for name in rows if name not in pictures]
    if missing:
        raise ValueError(
            f"{labels}: {len(missing)} of {len(rows)} ids have no picture in {images}: {summarize_names(missing)}. An "
            f"id is the name of a file in the folder, with or without the ending."
        )
    listed = {pictures[name] for name in table.rows if name in pictures}
    _warn_of_unlisted(sorted({path.name for path in pictures.values() if path not in listed}), labels)
    photographs = _images(rows, pictures, labels, None if masks is None else Path(masks))
    if masks is not None:
        require_files([p.mask for p in photographs if p.mask is not None], "masks", "Each image needs one of its name.")
    return Collection(table.class_names, photographs)


def _images_by_name(images: Path) -> dict[str, Path]:
    """The pictures by the names that an id may use."""
    by_stem: dict[str, Path] = {}
    for path in list_images(images):
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{images}: {other.name} and {path.name} differ in their endings only, but names must be unique. "
                "Rename one; masks belong into a folder of their own."
            )
    # Where a whole name is also another picture's name without the ending, the whole name is meant.
    return by_stem | {path.name: path for path in by_stem.values()}


def _rows_of(table: ImageLabels, split: str | None, labels: Path) -> Mapping[str, LabelRow]:
    if split is None:
        return table.rows
    rows = {name: row for name, row in table.rows.items() if row.split == split}
    if not rows:
        known = ", ".join(sorted({row.split for row in table.rows.values() if row.split is not None})) or "none"
        raise ValueError(f"{labels}: no row is of the split {split!r}. Splits in the file: {known}.")
    return rows


def _warn_of_unlisted(names: Sequence[str], labels: Path) -> None:
    if names:
        warnings.warn(
            f"{labels}: {len(names)} pictures in the folder have no row and are left out: {summarize_names(names)}.",
            UserWarning,
            stacklevel=3,
        )


def _images(
    rows: Mapping[str, LabelRow], pictures: Mapping[str, Path], labels: Path, masks: Path | None
) -> tuple[LabeledImage, ...]:
    ids: dict[Path, str] = {}
    photographs = []
    for name, row in rows.items():
        path = pictures[name]
        if path in ids:
            raise ValueError(f"{labels}: the ids {ids[path]!r} and {name!r} mean one picture, {path}. Remove one row.")
        ids[path] = name
        mask = None if masks is None else masks / f"{path.stem}.png"
        photographs.append(LabeledImage(path.stem, path, row.classes, mask))
    return tuple(photographs)


def image_list_collection(
    pictures: str | Path, labels: str | Path, *, class_names: Sequence[str] | None = None
) -> Collection:
    """Photographs of a list with the labels of a CSV file; which images, the list alone says.

    Whether the images are there is found out when they are read: a list may name millions.

    Args:
        pictures: a text file in UTF-8, an image a line: a path, relative to the folder of the list, or a URI such
            as ``s3://bucket/photo.jpg``. Empty lines and those that begin with ``#`` are left out.
        labels: the CSV file (:mod:`dcsm_attr.datasets.labels`); its ids are lines of the list, or names of files
            with or without the ending. Rows of other images are not used.
        class_names: in the order of the class numbers. None: those that the CSV file names, sorted.

    Returns:
        The images in the order of the list, named without folder and ending.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list is no text or names no image, or two of one name; if the CSV file is bad; or if
            photographs have no row, naming the first five.
    """
    pictures = Path(pictures)
    lines = _lines(pictures)
    table = read_image_labels(labels, class_names)
    photographs: dict[str, LabeledImage] = {}
    without = []
    for line in lines:
        name = PurePosixPath(line).stem
        if name in photographs:
            raise ValueError(
                f"{pictures}: two images have the name {name!r}: {photographs[name].path} and {line}. Results are "
                "written under it, so that names must be unique; rename one."
            )
        row = _row(table, line)
        if row is None:
            without.append(line)
        photographs[name] = LabeledImage(name, _path(pictures, line), () if row is None else row.classes)
    if without:
        raise ValueError(
            f"{labels}: {len(without)} of {len(lines)} photographs of {pictures} have no row: "
            f"{summarize_names(without)}. An id is a line of the list, or the name of the file, with or without the "
            f"ending."
        )
    return Collection(table.class_names, tuple(photographs.values()))


def _lines(path: Path) -> list[str]:
    lines = [line for line in read_lines(path) if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path}: names no image; a list has a path or a URI a line.")
    return lines


def _row(table: ImageLabels, line: str) -> LabelRow | None:
    pure = PurePosixPath(line)
    return next((table.rows[name] for name in (line, pure.name, pure.stem) if name in table.rows), None)


def _path(pictures: Path, line: str) -> Path | str:
    return line if is_uri(line) else pictures.parent / line

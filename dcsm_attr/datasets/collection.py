"""Collections: images with image-level labels and, for evaluation, masks.

A :class:`Collection` is what training reads and what evaluation compares with masks. This module builds one from a
folder of images (:func:`folder_collection`) or from a text file that lists images (:func:`image_list_collection`), each
with a CSV file of labels; :mod:`dcsm_attr.datasets.voc` builds one from a folder in the layout of PASCAL VOC.
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
    """The record of one image of a collection.

    Attributes:
        name: id, unique in the collection.
        path: the image file; a string is a URI, such as ``"s3://bucket/photo.jpg"``.
        classes: image-level labels: class indices from 0, ascending.
        mask: the ground-truth label map, a palette or gray image: 0 background, ``c + 1`` for class ``c``, 255 void.
            None: there is no mask, or it must not be read.
    """

    name: str
    path: Path | str
    classes: tuple[int, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class Collection:
    """Labeled images and the names of their classes.

    Attributes:
        class_names: one per class, without the background.
        images: the records, in a fixed order.
    """

    class_names: tuple[str, ...]
    images: tuple[LabeledImage, ...]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __iter__(self) -> Iterator[LabeledImage]:
        """Iterates over the images in order."""
        return iter(self.images)

    def evenly_spaced(self, count: int) -> "Collection":
        """Returns ``count`` evenly spaced images; all images if there are not more, or if ``count`` is 0."""
        total = len(self)
        count = min(count or total, total)
        return replace(self, images=tuple(self.images[i * total // count] for i in range(count)))

    def presence(self) -> Tensor:
        """Returns which classes each image shows, ``(N, C)`` bool."""
        present = torch.zeros(len(self), len(self.class_names), dtype=torch.bool)
        for row, item in zip(present, self.images, strict=True):
            row[list(item.classes)] = True
        return present


def folder_collection(
    images: str | Path,
    labels: str | Path,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    masks: str | Path | None = None,
) -> Collection:
    """Builds a collection from a folder of images and a CSV file of labels.

    Images that the file does not list in any split are left out with one warning, so that a forgotten row is noticed.

    Args:
        images: the folder. Names without their extensions must be unique.
        labels: the CSV file (see :mod:`dcsm_attr.datasets.labels`); an id is the name of a file in the folder, with or
            without its extension.
        split: use only rows of this split. None: all rows.
        class_names: in the order of the class indices. None: the names in any split of the file, sorted.
        masks: folder of the ground-truth label maps, ``NAME.png`` for each image of the split. None: no masks.

    Returns:
        The images in the order of the file, named without their extensions.

    Raises:
        OSError: if the CSV file cannot be opened.
        ValueError: if the CSV file is invalid (file and line are named); if the folder is missing, contains no images,
            or contains two images with the same name; if the split has no rows; if two ids denote the same image; or if
            images or masks are missing (the first five are named).
    """
    images, labels = Path(images), Path(labels)
    table = read_image_labels(labels, class_names)
    paths = _images_by_id(images)
    rows = _rows_of_split(table, split, labels)
    missing = [name for name in rows if name not in paths]
    if missing:
        raise ValueError(
            f"{labels}: {len(missing)} of {len(rows)} ids have no image in {images}: {summarize_names(missing)}. An id "
            "is the name of a file in the folder, with or without its extension."
        )
    listed = {paths[name] for name in table.rows if name in paths}
    unlisted = sorted({path.name for path in paths.values() if path not in listed})
    if unlisted:
        warnings.warn(
            f"{labels}: {len(unlisted)} images in the folder have no row and are left out: "
            f"{summarize_names(unlisted)}.",
            UserWarning,
            stacklevel=2,
        )
    items = _label_images(rows, paths, labels, None if masks is None else Path(masks))
    require_files(
        [item.mask for item in items if item.mask is not None], "masks", "Each image needs a mask of the same name."
    )
    return Collection(table.class_names, items)


def list_images(folder: str | Path) -> list[Path]:
    """Lists the files of a folder with the extension of an image format, sorted; subfolders are not searched.

    Hidden files (names that start with a dot) are skipped: other programs or killed runs may have left them.

    Raises:
        ValueError: if the folder does not exist or contains no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder. Pass a folder that contains images.")
    extensions = image_extensions()
    images = sorted(
        p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in extensions and not p.name.startswith(".")
    )
    if not images:
        raise ValueError(f"{folder}: the folder contains no images. Subfolders are not searched.")
    return images


def _images_by_id(folder: Path) -> dict[str, Path]:
    """Maps every id that may denote an image, its name with or without the extension, to the image."""
    by_stem: dict[str, Path] = {}
    for path in list_images(folder):
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{folder}: {other.name} and {path.name} differ only in their extensions, but names must be unique. "
                "Rename one; keep masks in another folder."
            )
    # A full name takes precedence over the same name without an extension: a.jpg denotes a.jpg, not a.jpg.png.
    return by_stem | {path.name: path for path in by_stem.values()}


def _rows_of_split(table: ImageLabels, split: str | None, labels: Path) -> Mapping[str, LabelRow]:
    if split is None:
        return table.rows
    rows = {name: row for name, row in table.rows.items() if row.split == split}
    if not rows:
        known = ", ".join(sorted({row.split for row in table.rows.values() if row.split is not None})) or "none"
        raise ValueError(f"{labels}: no row belongs to the split {split!r}. Splits in the file: {known}.")
    return rows


def _label_images(
    rows: Mapping[str, LabelRow], paths: Mapping[str, Path], labels: Path, masks: Path | None
) -> tuple[LabeledImage, ...]:
    ids: dict[Path, str] = {}
    items = []
    for name, row in rows.items():
        path = paths[name]
        if path in ids:
            raise ValueError(f"{labels}: the ids {ids[path]!r} and {name!r} denote one image, {path}. Remove one row.")
        ids[path] = name
        mask = None if masks is None else masks / f"{path.stem}.png"
        items.append(LabeledImage(path.stem, path, row.classes, mask))
    return tuple(items)


def image_list_collection(
    image_list: str | Path, labels: str | Path, *, class_names: Sequence[str] | None = None
) -> Collection:
    """Builds a collection from a text file that lists images and a CSV file of labels.

    The list decides which images belong to the collection. Whether the files exist is found out when they are read,
    because a list may name millions of them.

    Args:
        image_list: a text file in UTF-8 with one image per line: a path relative to the folder of the list, or a URI
            such as ``s3://bucket/photo.jpg``. Empty lines and lines that start with ``#`` are ignored.
        labels: the CSV file (see :mod:`dcsm_attr.datasets.labels`); an id is a line of the list, or the name of a file
            with or without its extension. Rows of other images are ignored.
        class_names: in the order of the class indices. None: the names in the CSV file, sorted.

    Returns:
        The images in the order of the list, named without folder and extension.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list is not text, names no image, or names two images with the same name; if the CSV file is
            invalid; or if images have no row (the first five are named).
    """
    image_list = Path(image_list)
    lines = [line for line in read_lines(image_list) if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{image_list}: names no image; a list has one path or URI per line.")
    table = read_image_labels(labels, class_names)
    items: dict[str, LabeledImage] = {}
    unlabeled = []
    for line in lines:
        pure = PurePosixPath(line)
        if pure.stem in items:
            raise ValueError(
                f"{image_list}: two images have the name {pure.stem!r}: {items[pure.stem].path} and {line}. Results "
                "are written under this name, so names must be unique; rename one."
            )
        row = next((table.rows[name] for name in (line, pure.name, pure.stem) if name in table.rows), None)
        if row is None:
            unlabeled.append(line)
        path = line if is_uri(line) else image_list.parent / line
        items[pure.stem] = LabeledImage(pure.stem, path, () if row is None else row.classes)
    if unlabeled:
        raise ValueError(
            f"{labels}: {len(unlabeled)} of {len(lines)} images of {image_list} have no row: "
            f"{summarize_names(unlabeled)}. An id is a line of the list, or the name of the file with or without its "
            "extension."
        )
    return Collection(table.class_names, tuple(items.values()))

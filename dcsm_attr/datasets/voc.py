"""Reads collections in the folder layout of PASCAL VOC: split lists, image-level labels, and where the masks are.

A folder in this layout contains ``JPEGImages``, ``SegmentationClass`` (masks), ``ImageSets/Segmentation`` (one list per
split), and ``Annotations`` (one XML file per image, with its objects). Two optional files extend it:
``image_labels.csv`` with image-level labels and ``classes.txt`` with other class names than VOC's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.labels import read_class_names, read_image_labels, require_files, summarize_names
from dcsm_attr.datasets.masks import VOC_CLASSES
from dcsm_attr.io import read_lines

__all__ = [
    "CLASS_FILE",
    "LABEL_FILE",
    "LIST_FOLDER",
    "VocEntry",
    "annotated_classes",
    "annotation_files",
    "read_voc_list",
    "voc_class_names",
    "voc_collection",
]

#: Folder of the split lists, relative to the root.
LIST_FOLDER = Path("ImageSets", "Segmentation")

#: File in the root with the image-level labels.
LABEL_FILE = "image_labels.csv"

#: File in the root with the class names, if they are not VOC's.
CLASS_FILE = "classes.txt"


def voc_collection(root: str | Path, split: str, *, labels: str | Path | None = None, masks: bool = True) -> Collection:
    """Builds a collection from one split of a VOC folder.

    The image-level labels come from a CSV file (see :mod:`dcsm_attr.datasets.labels`) or from the XML files in
    ``Annotations``; masks are not read. Which images belong to the split is decided by the split's list; the column
    ``split`` of the CSV file is ignored.

    Args:
        root: the folder that contains ``ImageSets`` and ``JPEGImages``, such as ``VOCdevkit/VOC2012``.
        split: name of a list in ``ImageSets/Segmentation``, such as ``"train"``, ``"val"`` or ``"train_aug"``; see
            :func:`read_voc_list`.
        labels: the CSV file. None: ``image_labels.csv`` in ``root`` if it exists, otherwise the annotations.
        masks: whether to set :attr:`LabeledImage.mask`. False: the masks need not exist.

    Returns:
        The images in the order of the list, with the classes of :func:`voc_class_names`.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list, the labels or an annotation is invalid (file and line are named); if there are no
            labels; or if images, masks or their labels are missing (the first five are named).
    """
    root = Path(root)
    entries = read_voc_list(root, split)
    require_files([entry.image for entry in entries], "images", f"The split {split!r} lists them.")
    if masks:
        require_files([entry.mask for entry in entries], "masks", "To work without masks, pass masks=False.")
    class_names = voc_class_names(root)
    classes = _classes_of_images(root, [entry.name for entry in entries], labels, class_names)
    items = [
        LabeledImage(entry.name, entry.image, of_image, entry.mask if masks else None)
        for entry, of_image in zip(entries, classes, strict=True)
    ]
    return Collection(class_names, tuple(items))


@dataclass(frozen=True)
class VocEntry:
    """One line of a split list.

    Attributes:
        name: the id, such as ``"2007_000032"``.
        image: path of the image; the file may be missing.
        mask: path of the mask; the file may be missing.
    """

    name: str
    image: Path
    mask: Path


def read_voc_list(root: str | Path, split: str) -> tuple[VocEntry, ...]:
    """Reads ``ImageSets/Segmentation/SPLIT.txt``.

    A line is an id, or, as in the lists with the additional annotations of SBD, the paths of image and mask relative to
    the root: ``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``. The masks of ids are in
    ``SegmentationClass``, or in ``SegmentationClassAug`` if the name of the list ends with ``aug``.

    Args:
        root: the folder that contains ``ImageSets``.
        split: name of the list.

    Returns:
        The entries in the order of the list.

    Raises:
        OSError: if the list cannot be opened.
        ValueError: naming the file and the line, if the list does not exist (existing lists are named), is not UTF-8
            text or is empty, if a line has another form, or if an id is listed twice.
    """
    root = Path(root)
    folder = root / LIST_FOLDER
    if not folder.is_dir():
        raise ValueError(f"{root}: not a VOC folder: it has no {LIST_FOLDER}. Pass a folder such as VOCdevkit/VOC2012.")
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise ValueError(f"{path}: there is no list of the split {split!r}. Existing lists: {known}.")
    entries: dict[str, VocEntry] = {}
    line_of: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        entry = _parse_entry(root, split, line.split())
        if entry is None:
            raise ValueError(
                f"{path}, line {number}: must be an id, or the paths of an image and its mask, got {line!r}."
            )
        if entry.name in entries:
            raise ValueError(
                f"{path}, line {number}: the id {entry.name!r} is listed twice, first in line {line_of[entry.name]}."
            )
        entries[entry.name], line_of[entry.name] = entry, number
    if not entries:
        raise ValueError(f"{path}: lists no image.")
    return tuple(entries.values())


def _parse_entry(root: Path, split: str, fields: list[str]) -> VocEntry | None:
    """Returns the entry of a line; None if the line has another form."""
    if len(fields) == 1 and "/" not in fields[0]:
        masks = "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass"
        return VocEntry(fields[0], root / "JPEGImages" / f"{fields[0]}.jpg", root / masks / f"{fields[0]}.png")
    if len(fields) == 2 and all("/" in field for field in fields):
        image, mask = (root / field.lstrip("/") for field in fields)
        return VocEntry(image.stem, image, mask) if image.stem == mask.stem else None
    return None


def voc_class_names(root: str | Path) -> tuple[str, ...]:
    """Returns the class names of a VOC folder: those of its ``classes.txt`` (one per line), otherwise VOC's 20.

    Raises:
        ValueError: naming the file, if it names no class, or names a class twice.
    """
    path = Path(root) / CLASS_FILE
    return read_class_names(path) if path.is_file() else VOC_CLASSES


def _classes_of_images(
    root: Path, names: Sequence[str], labels: str | Path | None, class_names: Sequence[str]
) -> list[tuple[int, ...]]:
    path = root / LABEL_FILE if labels is None else Path(labels)
    if labels is not None or path.is_file():
        rows = read_image_labels(path, class_names).rows
        missing = [name for name in names if name not in rows]
        if missing:
            raise ValueError(
                f"{path}: {len(missing)} of {len(names)} images of the split have no row: {summarize_names(missing)}. "
                "Derive labels of the whole split with `dcsm-attr labels`."
            )
        return [rows[name].classes for name in names]
    annotations = annotation_files(root, names)
    if annotations is None:
        raise ValueError(
            f"{root}: has no image-level labels: neither image_labels.csv nor Annotations. Derive them with `dcsm-attr "
            "labels`, or pass a CSV file as labels."
        )
    return [annotated_classes(annotation, class_names) for annotation in annotations]


def annotation_files(root: str | Path, names: Sequence[str]) -> list[Path] | None:
    """Returns the paths ``Annotations/ID.xml`` of images.

    Args:
        root: the folder that may contain ``Annotations``.
        names: the ids.

    Returns:
        One path per id, in order. None: the folder has no ``Annotations``.

    Raises:
        ValueError: if the folder exists, but files are missing (the first five are named).
    """
    folder = Path(root) / "Annotations"
    if not folder.is_dir():
        return None
    files = [folder / f"{name}.xml" for name in names]
    require_files(files, "annotations", "Complete the folder, or pass the labels as a CSV file.")
    return files


def annotated_classes(path: Path, class_names: Sequence[str] = VOC_CLASSES) -> tuple[int, ...]:
    """Reads the classes of the objects in an annotation, as class indices in ascending order.

    Objects marked ``difficult`` are included because the image shows them; parts of objects (head, hand, foot) are not.

    Args:
        path: the XML file.
        class_names: in the order of the class indices.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is not XML, names no object, or names an unknown class.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not complete XML ({error}).") from error
    names = {item.findtext("name", "").strip() for item in root.findall("object")}
    if not names:
        raise ValueError(f"{path}: names no object; each image must show at least one class.")
    unknown = sorted(names - set(class_names))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is none of the {len(class_names)} classes.")
    return tuple(sorted(class_names.index(name) for name in names))

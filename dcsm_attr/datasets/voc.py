"""Photographs in the folder layout of PASCAL VOC.

The lists of PASCAL VOC: which images belong to a split, and where their masks are.

The annotations of PASCAL VOC: which objects an image shows, from its XML file.
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
    "CLASS_LIST",
    "LABEL_LIST",
    "LISTS",
    "VocEntry",
    "annotated_classes",
    "annotation_files",
    "read_voc_list",
    "voc_class_names",
    "voc_collection",
]


#: Where the lists stand in the root.
LISTS = Path("ImageSets", "Segmentation")


@dataclass(frozen=True)
class VocEntry:
    """One line of a list.

    Attributes:
        name: the id, such as ``"2007_000032"``.
        image: its file, which need not be there.
        mask: its file, which need not be there.
    """

    name: str
    image: Path
    mask: Path


def read_voc_list(root: str | Path, split: str) -> tuple[VocEntry, ...]:
    """Read ``ImageSets/Segmentation/SPLIT.txt``.

    A line is an id; or, as in the lists with the additional annotations of SBD, the image and the mask as paths
    from the root: ``/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png``. The masks of a list of ids lie
    in ``SegmentationClass``, or in ``SegmentationClassAug`` where the name of the list ends in ``aug``.

    Args:
        root: the folder that holds ``ImageSets``.
        split: name of the list.

    Returns:
        The entries in the order of the list.

    Raises:
        OSError: if the list cannot be opened.
        ValueError: naming the file and the line, if there is no such list (those that exist are named), it is no text
            in UTF-8 or empty, a line has another form, or an id is listed twice.
    """
    root = Path(root)
    folder = root / LISTS
    if not folder.is_dir():
        raise ValueError(f"{root}: not a VOC folder, for it has no {LISTS}. Give the one like VOCdevkit/VOC2012.")
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise ValueError(f"{path}: there is no list of the split {split!r}. There are: {known}.")
    entries: dict[str, tuple[int, VocEntry]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        entry = _entry(root, split, line.split())
        if entry is None:
            raise ValueError(
                f"{path}, line {number}: must be an id, or the paths of an image and its mask, got {line!r}."
            )
        if entry.name in entries:
            raise ValueError(
                f"{path}, line {number}: the id {entry.name!r} is listed twice, first in line {entries[entry.name][0]}."
            )
        entries[entry.name] = number, entry
    if not entries:
        raise ValueError(f"{path}: lists no image.")
    return tuple(entry for _, entry in entries.values())


def _entry(root: Path, split: str, fields: list[str]) -> VocEntry | None:
    """Entry of a line; None if it has another form."""
    if len(fields) == 1 and "/" not in fields[0]:
        masks = "SegmentationClassAug" if split.endswith("aug") else "SegmentationClass"
        return VocEntry(fields[0], root / "JPEGImages" / f"{fields[0]}.jpg", root / masks / f"{fields[0]}.png")
    if len(fields) == 2 and all("/" in field for field in fields):
        photograph, mask = (root / field.lstrip("/") for field in fields)
        return VocEntry(photograph.stem, photograph, mask) if photograph.stem == mask.stem else None
    return None


def annotation_files(root: str | Path, names: Sequence[str]) -> list[Path] | None:
    """The files ``Annotations/ID.xml`` of images.

    Args:
        root: the folder that may hold ``Annotations``.
        names: the ids.

    Returns:
        One path an id, in order. None: there is no such folder.

    Raises:
        ValueError: if the folder is there, but not all of the files; the first five missing ones are named.
    """
    folder = Path(root) / "Annotations"
    if not folder.is_dir():
        return None
    files = [folder / f"{name}.xml" for name in names]
    require_files(files, "annotations", "Complete the folder, or give the labels as a CSV file.")
    return files


def annotated_classes(path: Path, class_names: Sequence[str] = VOC_CLASSES) -> tuple[int, ...]:
    """The classes of the objects in an annotation, from 0, ascending.

    Objects marked ``difficult`` count, for they are in the image; parts of objects (head, hand, foot) do not.

    Args:
        path: the XML file.
        class_names: in the order of the class numbers.

    Raises:
        OSError: if it cannot be opened.
        ValueError: naming the file, if it is no XML, names no object, or one that is none of the classes.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not complete XML ({error}).") from error
    names = {thing.findtext("name", "").strip() for thing in root.findall("object")}
    if not names:
        raise ValueError(f"{path}: names no object; each image must show at least one class.")
    unknown = sorted(names - set(class_names))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is none of the {len(class_names)} classes.")
    return tuple(sorted(class_names.index(name) for name in names))


#: The file in the root of a folder in VOC's layout with the image-level labels.
LABEL_LIST = "image_labels.csv"

#: The file in the root of a folder in VOC's layout that names other classes than VOC's.
CLASS_LIST = "classes.txt"


def voc_class_names(root: str | Path) -> tuple[str, ...]:
    """The classes of a folder in VOC's layout: those of its ``classes.txt`` (one per line), or VOC's 20.

    Raises:
        ValueError: naming the file, if it names no class, or one twice.
    """
    path = Path(root) / CLASS_LIST
    return read_class_names(path) if path.is_file() else VOC_CLASSES


def voc_collection(root: str | Path, split: str, *, labels: str | Path | None = None, masks: bool = True) -> Collection:
    """One split of a VOC folder, with image-level labels that were made without looking at masks.

    The labels come from a CSV file (:mod:`dcsm_attr.datasets.labels`), or from the XML files in ``Annotations``,
    whose objects marked ``difficult`` count. Which photographs belong to the split, the list alone says; the column
    ``split`` of the CSV file is not compared with it.

    Args:
        root: the folder that holds ``ImageSets`` and ``JPEGImages``, such as ``VOCdevkit/VOC2012``.
        split: name of a list in ``ImageSets/Segmentation``, such as ``"train"``, ``"val"`` or ``"train_aug"``; see
            :func:`dcsm_attr.datasets.voc.read_voc_list`.
        labels: the CSV file. None: ``image_labels.csv`` in ``root`` if there is one, else the annotations.
        masks: whether the images get their masks. False: :attr:`LabeledImage.mask` is None, and no folder of masks
            needs to be there.

    Returns:
        The images in the order of the list, with the classes of :func:`voc_class_names`.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list, the labels or an annotation is bad, naming file and line; if there are no labels; or if
            photographs, masks or their labels are missing, naming the first five.
    """
    root = Path(root)
    entries = read_voc_list(root, split)
    require_files([entry.image for entry in entries], "photographs", f"The split {split!r} lists them.")
    if masks:
        require_files([entry.mask for entry in entries], "masks", "To do without masks, pass masks=False.")
    class_names = voc_class_names(root)
    classes = _classes(root, [entry.name for entry in entries], labels, class_names)
    photographs = [
        LabeledImage(entry.name, entry.image, shown, entry.mask if masks else None)
        for entry, shown in zip(entries, classes, strict=True)
    ]
    return Collection(class_names, tuple(photographs))


def _classes(
    root: Path, names: Sequence[str], labels: str | Path | None, class_names: Sequence[str]
) -> list[tuple[int, ...]]:
    path = root / LABEL_LIST if labels is None else Path(labels)
    if labels is not None or path.is_file():
        return _listed_classes(path, names, class_names)
    annotations = annotation_files(root, names)
    if annotations is None:
        raise ValueError(
            f"{root}: has no image-level labels: neither image_labels.csv nor Annotations. Derive them with `dcsm-attr "
            "labels`, or pass a CSV file as labels."
        )
    return [annotated_classes(annotation, class_names) for annotation in annotations]


def _listed_classes(path: Path, names: Sequence[str], class_names: Sequence[str]) -> list[tuple[int, ...]]:
    rows = read_image_labels(path, class_names).rows
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(names)} photographs of the split have no row: {summarize_names(missing)}. "
            "Derive labels of the whole split with `dcsm-attr labels`."
        )
    return [rows[name].classes for name in names]

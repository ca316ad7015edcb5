"""Photographs in the folder layout of PASCAL VOC."""

from collections.abc import Sequence
from pathlib import Path

from dcsm_attr.class_names import read_class_names
from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.image_labels import read_image_labels
from dcsm_attr.datasets.missing import first_five, require_files
from dcsm_attr.datasets.voc_annotations import annotated_classes, annotation_files
from dcsm_attr.datasets.voc_lists import read_voc_list
from dcsm_attr.palette import VOC_CLASSES

__all__ = ["CLASS_LIST", "LABEL_LIST", "voc_class_names", "voc_collection"]

#: The file in the root of a folder in VOC's layout with the image-level labels.
LABEL_LIST = "image_labels.csv"

#: The file in the root of a folder in VOC's layout that names other classes than VOC's.
CLASS_LIST = "classes.txt"


def voc_class_names(root: str | Path) -> tuple[str, ...]:
    """The classes of a folder in VOC's layout: those of its ``classes.txt`` (one a line), or VOC's 20.

    Raises:
        ValueError: naming the file, if it names no class, or one twice.
    """
    path = Path(root) / CLASS_LIST
    return read_class_names(path) if path.is_file() else VOC_CLASSES


def voc_collection(root: str | Path, split: str, *, labels: str | Path | None = None, masks: bool = True) -> Collection:
    """One split of a VOC folder, with image-level labels that were made without looking at masks.

    The labels come from a CSV file (:mod:`dcsm_attr.datasets.image_labels`), or from the XML files in ``Annotations``,
    whose objects marked ``difficult`` count. Which photographs belong to the split, the list alone says; the column
    ``split`` of the CSV file is not compared with it.

    Args:
        root: the folder that holds ``ImageSets`` and ``JPEGImages``, such as ``VOCdevkit/VOC2012``.
        split: name of a list in ``ImageSets/Segmentation``, such as ``"train"``, ``"val"`` or ``"train_aug"``; see
            :func:`dcsm_attr.datasets.voc_lists.read_voc_list`.
        labels: the CSV file. None: ``image_labels.csv`` in ``root`` if there is one, else the annotations.
        masks: whether the photographs get their masks. False: :attr:`Photograph.mask` is None, and no folder of masks
            needs to be there.

    Returns:
        The photographs in the order of the list, with the classes of :func:`voc_class_names`.

    Raises:
        OSError: if a file cannot be opened.
        ValueError: if the list, the labels or an annotation is bad, naming file and line; if there are no labels; or if
            photographs, masks or their labels are missing, naming the first five.
    """
    root = Path(root)
    entries = read_voc_list(root, split)
    require_files([entry.photograph for entry in entries], "photographs", f"The split {split!r} lists them.")
    if masks:
        require_files([entry.mask for entry in entries], "masks", "To do without masks, pass masks=False.")
    class_names = voc_class_names(root)
    classes = _classes(root, [entry.name for entry in entries], labels, class_names)
    photographs = [
        Photograph(entry.name, entry.photograph, shown, entry.mask if masks else None)
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
            f"{path}: {len(missing)} of {len(names)} photographs of the split have no row: {first_five(missing)}. "
            "Derive labels of the whole split with `dcsm-attr labels`."
        )
    return [rows[name].classes for name in names]

"""The annotations of PASCAL VOC: which objects a photograph shows, from its XML file."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from dcsm_attr.datasets.missing import require_files
from dcsm_attr.palette import VOC_CLASSES

__all__ = ["annotated_classes", "annotation_files"]


def annotation_files(root: str | Path, names: Sequence[str]) -> list[Path] | None:
    """The files ``Annotations/ID.xml`` of photographs.

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

    Objects marked ``difficult`` count, for they are in the photograph; parts of objects (head, hand, foot) do not.

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
        raise ValueError(f"{path}: names no object; each photograph must show at least one class.")
    unknown = sorted(names - set(class_names))
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is none of the {len(class_names)} classes.")
    return tuple(sorted(class_names.index(name) for name in names))

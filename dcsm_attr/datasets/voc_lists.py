"""The lists of PASCAL VOC: which photographs belong to a split, and where their masks are."""

from dataclasses import dataclass
from pathlib import Path

from dcsm_attr.text_lines import read_lines

__all__ = ["LISTS", "VocEntry", "read_voc_list"]

#: Where the lists stand in the root.
LISTS = Path("ImageSets", "Segmentation")


@dataclass(frozen=True)
class VocEntry:
    """One line of a list.

    Attributes:
        name: the id, such as ``"2007_000032"``.
        photograph: its file, which need not be there.
        mask: its file, which need not be there.
    """

    name: str
    photograph: Path
    mask: Path


def read_voc_list(root: str | Path, split: str) -> tuple[VocEntry, ...]:
    """Read ``ImageSets/Segmentation/SPLIT.txt``.

    A line is an id; or, as in the lists with the additional annotations of SBD, the photograph and the mask as paths
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
                f"{path}, line {number}: must be an id, or the paths of a photograph and its mask, got {line!r}."
            )
        if entry.name in entries:
            raise ValueError(
                f"{path}, line {number}: the id {entry.name!r} is listed twice, first in line {entries[entry.name][0]}."
            )
        entries[entry.name] = number, entry
    if not entries:
        raise ValueError(f"{path}: lists no photograph.")
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

"""The photographs that a command is given: a VOC folder, or pictures with a file of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection

__all__ = ["labelled_collection", "opened_collection"]


def labelled_collection(data: Path, labels: Path | None, split: str | None, class_names: Sequence[str]) -> "Collection":
    """The photographs for a network that is there already, with its classes, of which they need not show each.

    Args:
        data: as in :func:`opened_collection`.
        labels: as there.
        split: as there.
        class_names: of the network.

    Raises:
        ValueError: as :func:`opened_collection`; and if the photographs have other classes.
    """
    collection = opened_collection(data, labels, split, class_names)
    if collection.class_names != tuple(class_names):
        raise ValueError(
            f"the photographs of {data} have the classes {collection.class_names}, the network {tuple(class_names)}. "
            "Give the network that was trained on these classes, in this order."
        )
    return collection


def opened_collection(
    data: Path, labels: Path | None, split: str | None, class_names: Sequence[str] | None = None
) -> "Collection":
    """The photographs of one split with their image-level labels; masks are not looked at.

    Args:
        data: a VOC folder, one of pictures, or a list of pictures.
        labels: a CSV file of labels, which a folder or a list of pictures needs.
        split: of the VOC folder (None: train), or of the file for a folder (None: all rows); a list says itself which
            photographs are meant.
        class_names: that the file may use, in their order. None: those that it uses, sorted. A VOC folder has its own.

    Raises:
        ValueError: if pictures come without labels, or something does not fit.
    """
    from dcsm_attr.datasets.folder import folder_collection
    from dcsm_attr.datasets.picture_list import list_collection
    from dcsm_attr.datasets.voc import voc_collection

    if (data / "ImageSets").is_dir():
        return voc_collection(data, split or "train", labels=labels, masks=False)
    if labels is None:
        raise ValueError(
            f"{data}: has no ImageSets, so that it is no VOC folder; for other pictures pass --labels FILE.csv."
        )
    if data.is_file():
        return list_collection(data, labels, class_names=class_names)
    return folder_collection(data, labels, split=split, class_names=class_names)

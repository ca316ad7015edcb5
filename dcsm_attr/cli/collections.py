"""The photographs that a command is given: a VOC folder, or pictures with a file of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection

__all__ = ["labelled_collection", "opened_collection"]


def labelled_collection(data: Path, labels: Path | None, split: str, class_names: Sequence[str]) -> "Collection":
    """The same for a classifier that is there already.

    Args:
        data: as in :func:`opened_collection`.
        labels: as there.
        split: as there.
        class_names: of the classifier.

    Raises:
        ValueError: as :func:`opened_collection`; and if the photographs have other classes.
    """
    collection = opened_collection(data, labels, split)
    if collection.class_names != class_names:
        raise ValueError(
            f"the photographs of split {split!r} have the classes {collection.class_names}, the classifier "
            f"{class_names}."
        )
    return collection


def opened_collection(data: Path, labels: Path | None, split: str) -> "Collection":
    """The photographs of one split with their image-level labels; masks are not looked at.

    Args:
        data: a VOC folder, or one of pictures.
        labels: a CSV file of labels, which a folder of pictures needs.
        split: of the VOC folder or of the file.

    Raises:
        ValueError: if a folder of pictures comes without labels, or something does not fit.
    """
    from dcsm_attr.datasets.folder import folder_collection
    from dcsm_attr.datasets.voc import voc_collection

    if (data / "ImageSets").is_dir():
        return voc_collection(data, split, labels=labels, masks=False)
    if labels is None:
        raise ValueError(
            f"{data}: has no ImageSets, so that it is no VOC folder; for a folder of pictures pass --labels FILE.csv."
        )
    return folder_collection(data, labels, split=split)

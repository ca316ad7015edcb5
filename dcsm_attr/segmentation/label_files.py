"""Label maps of a whole collection as a folder of pictures, which a later run goes on with."""

import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dcsm_attr.claimed_folder import claim_folder
from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.files import atomic_buffer
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.palette import label_picture

__all__ = ["LabelStream", "Shard", "write_label_maps"]

_logger = logging.getLogger(__name__)

#: For each photograph, in order, its label map ``(H, W)``, 0 to 255, or why it could not be read.
LabelStream = Generator[npt.NDArray[np.integer] | ImageReadError, None, None]


@dataclass(frozen=True)
class Shard:
    """The part of a collection that one of several processes takes, each of which writes into the same folder.

    Attributes:
        index: of this process, from 0.
        count: how many there are.

    Raises:
        ValueError: if the index is not one of so many.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"a shard's index must be in 0 to count - 1 = {self.count - 1}, got {self.index}.")

    @classmethod
    def of_this_process(cls) -> "Shard":
        """The part of one of the processes that ``torchrun`` started; without it, everything."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def write_label_maps(
    collection: Collection,
    folder: str | Path,
    depends_on: Mapping[str, Any],
    labelled: Callable[[Sequence[Photograph]], LabelStream],
    *,
    batch_size: int,
    shard: Shard = Shard(),
    max_pixels: int | None = None,
    description: str = "labels",
    progress: bool = True,
) -> dict[str, str]:
    """Write ``NAME.png``, a palette picture, for each photograph of a collection.

    Batches whose label maps are all there are left out; the others are computed as a whole, so that each photograph
    gets the same, to the last bit, as in a run that was not cut off. A photograph that is known to show no class is
    background all over.

    Args:
        collection: photographs with image-level labels.
        folder: where to write, beside ``settings.json``.
        depends_on: everything that the label maps depend on, ready for JSON.
        labelled: computes them, lazily, in batches of ``batch_size`` photographs, of which each shows a class.
        batch_size: photographs that are computed together.
        shard: every ``count``-th batch is this process's.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.images.read_image`.
        description: for the bar.
        progress: whether to show it.

    Returns:
        Why photographs could not be read, by their names; each is logged too.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps that depend on something else.
    """
    folder = claim_folder(folder, {**depends_on, "batch_size": batch_size}, "label maps")
    showing = [photograph for photograph in collection if photograph.classes]
    batches = [showing[i : i + batch_size] for i in range(0, len(showing), batch_size)][shard.index :: shard.count]
    unfinished = [batch for batch in batches if not all(_path(folder, one).exists() for one in batch)]
    due = [photograph for batch in unfinished for photograph in batch]
    without = [photograph for photograph in collection if not photograph.classes][shard.index :: shard.count]
    empty = [photograph for photograph in without if not _path(folder, photograph).exists()]
    skipped: dict[str, str] = {}
    total = sum(map(len, batches)) + len(without)
    done = total - len(due) - len(empty)
    with tqdm(total=total, initial=done, unit="photo", desc=description, disable=not progress) as bar:
        for photographs, stream in ((due, labelled(due)), (empty, _backgrounds(empty, max_pixels))):
            with closing(stream) as found:
                for photograph, labels in zip(photographs, found, strict=True):
                    if isinstance(labels, ImageReadError):
                        _logger.warning("%s is skipped: %s", photograph.name, labels)
                        skipped[photograph.name] = str(labels)
                    else:
                        with atomic_buffer(_path(folder, photograph)) as file:
                            label_picture(labels).save(file, "PNG")
                    bar.update()
    return skipped


def _path(folder: Path, photograph: Photograph) -> Path:
    return folder / f"{photograph.name}.png"


def _backgrounds(photographs: Sequence[Photograph], max_pixels: int | None) -> LabelStream:
    for photograph in photographs:
        try:
            width, height = read_image(photograph.path, max_pixels=max_pixels).size
            yield np.zeros((height, width), dtype=np.uint8)
        except ImageReadError as error:
            yield error

"""The photographs of a collection on their canvases, with image-level labels."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.training.batches import Draw

__all__ = ["Canvas", "CanvasBatch", "Canvases", "collate"]


@dataclass(frozen=True)
class Canvas:
    """A prepared photograph.

    Attributes:
        number: in its collection.
        image: ``(3, S, S)``; None if the file could not be read.
        present: ``(C,)`` float32 image-level labels.
        failure: why it could not be read; empty if it was.
    """

    number: int
    image: Tensor | None
    present: Tensor
    failure: str = ""


@dataclass(frozen=True)
class CanvasBatch:
    """The readable photographs of a batch.

    Attributes:
        numbers: ``(n,)`` int64, in their collection.
        images: ``(n, 3, S, S)``.
        present: ``(n, C)`` float32.
        failures: a line for each photograph that could not be read.
    """

    numbers: Tensor
    images: Tensor
    present: Tensor
    failures: tuple[str, ...]


class Canvases(Dataset[Canvas]):
    """Photographs on the canvas of a preprocessing, with image-level labels; masks are never looked at."""

    def __init__(self, collection: Collection, preprocess: Preprocess, max_pixels: int | None = None) -> None:
        """Describe the dataset; items are :class:`Draw`.

        Args:
            collection: the photographs.
            preprocess: resizes, pads and normalises.
            max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.images.read_image`.
        """
        self._collection = collection
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        self._present = collection.presence().float()

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self._collection)

    def __getitem__(self, draw: Draw) -> Canvas:
        """Read and prepare one photograph; one that cannot be read comes back with the reason."""
        photograph = self._collection.photographs[draw.number]
        try:
            image = self._preprocess(read_image(photograph.path, max_pixels=self._max_pixels)).tensor
        except ImageReadError as error:
            return Canvas(draw.number, None, self._present[draw.number], str(error))
        return Canvas(draw.number, image.flip(-1) if draw.mirrored else image, self._present[draw.number])


def collate(canvases: list[Canvas]) -> CanvasBatch:
    """Stack the photographs that could be read.

    Args:
        canvases: of one batch.

    Returns:
        The batch; empty tensors if none could be read.
    """
    readable = [(canvas, canvas.image) for canvas in canvases if canvas.image is not None]
    return CanvasBatch(
        numbers=torch.tensor([canvas.number for canvas, _ in readable], dtype=torch.long),
        images=torch.stack([image for _, image in readable]) if readable else torch.empty(0, 3, 0, 0),
        present=torch.stack([canvas.present for canvas in canvases])[[c.image is not None for c in canvases]],
        failures=tuple(canvas.failure for canvas in canvases if canvas.failure),
    )

"""The photographs of a collection on their canvases, with a label map each, to learn from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dcsm_attr.backbones.preprocess import Prepared, Preprocess
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.masks import MaskError, read_mask
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.palette import VOID
from dcsm_attr.training.batches import Draw

__all__ = ["LabelledBatch", "LabelledCanvas", "LabelledCanvases", "collate_labelled"]


@dataclass(frozen=True)
class LabelledCanvas:
    """A prepared photograph with its label map.

    Attributes:
        number: in its collection.
        image: ``(3, S, S)``; None if a file could not be read.
        labels: ``(S, S)`` uint8, 255 where there is no photograph; None if a file could not be read.
        failure: why it could not be read; empty if it was.
    """

    number: int
    image: Tensor | None
    labels: Tensor | None
    failure: str = ""


@dataclass(frozen=True)
class LabelledBatch:
    """The readable photographs of a batch.

    Attributes:
        numbers: ``(n,)`` int64, in their collection.
        images: ``(n, 3, S, S)``.
        labels: ``(n, S, S)`` uint8: 0 background, ``c + 1`` for class ``c``, 255 unknown.
        failures: a line for each photograph that could not be read.
    """

    numbers: Tensor
    images: Tensor
    labels: Tensor
    failures: tuple[str, ...]


class LabelledCanvases(Dataset[LabelledCanvas]):
    """Photographs and label maps on the canvas of a preprocessing."""

    def __init__(
        self, collection: Collection, folder: Path, preprocess: Preprocess, max_pixels: int | None = None
    ) -> None:
        """Describe the dataset; items are :class:`Draw`.

        Args:
            collection: the photographs.
            folder: with a label map ``NAME.png`` for each, of the size of the photograph or of another one: resized
                without mixing labels.
            preprocess: resizes, pads and normalises.
            max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.images.read_image`.
        """
        self._collection = collection
        self._folder = folder
        self._preprocess = preprocess
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self._collection)

    def __getitem__(self, draw: Draw) -> LabelledCanvas:
        """Read and prepare one photograph; one that cannot be read comes back with the reason."""
        photograph = self._collection.photographs[draw.number]
        try:
            prepared = self._preprocess(read_image(photograph.path, max_pixels=self._max_pixels))
            labels = _on_canvas(
                read_mask(
                    self._folder / f"{photograph.name}.png",
                    class_count=len(self._collection.class_names),
                    max_pixels=self._max_pixels,
                ),
                prepared,
            )
        except (ImageReadError, MaskError) as error:
            return LabelledCanvas(draw.number, None, None, str(error))
        image = prepared.tensor
        if draw.mirrored:
            image, labels = image.flip(-1), labels.flip(-1)
        return LabelledCanvas(draw.number, image, labels)


def collate_labelled(canvases: list[LabelledCanvas]) -> LabelledBatch:
    """Stack the photographs that could be read.

    Args:
        canvases: of one batch.

    Returns:
        The batch; empty tensors if none could be read.
    """
    readable = [canvas for canvas in canvases if canvas.image is not None]
    images = [canvas.image for canvas in readable if canvas.image is not None]
    labels = [canvas.labels for canvas in readable if canvas.labels is not None]
    return LabelledBatch(
        numbers=torch.tensor([canvas.number for canvas in readable], dtype=torch.long),
        images=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        labels=torch.stack(labels) if labels else torch.empty(0, 0, 0, dtype=torch.uint8),
        failures=tuple(canvas.failure for canvas in canvases if canvas.failure),
    )


def _on_canvas(labels: Tensor, prepared: Prepared) -> Tensor:
    height, width = prepared.pixels.shape[1:]
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    resized = picture.resize((width, height), Image.Resampling.NEAREST)
    canvas = torch.full(prepared.tensor.shape[1:], VOID, dtype=torch.uint8)
    canvas[prepared.top : prepared.top + height, prepared.left : prepared.left + width] = torch.from_numpy(
        np.array(resized)
    )
    return canvas

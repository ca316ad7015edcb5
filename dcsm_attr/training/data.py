"""The images of a training in batches, in an order that a resumed run repeats.

The photographs of a collection on their canvases, with image-level labels.

Label maps at the resolution of a network's maps.

The photographs of a collection on their canvases, with a label map each, to learn from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import VOID, MaskError, read_mask
from dcsm_attr.datasets.preprocess import CanvasImage, Preprocess

__all__ = [
    "BatchPlan",
    "Canvas",
    "Draw",
    "ImageLabelBatch",
    "ImageLabelDataset",
    "LabeledBatch",
    "LabeledCanvas",
    "LabeledCanvases",
    "collate",
    "collate_labeled",
    "downsample_labels",
]


@dataclass(frozen=True)
class Draw:
    """One image of a batch: its number in the collection, and whether it is mirrored."""

    number: int
    mirrored: bool = False


class BatchPlan(Sampler[list[Draw]]):
    """The batches of a whole training, known in advance: a function of the seed alone.

    Every epoch is a new permutation; epochs follow each other without a gap, so that a batch may hold the end of one
    and the beginning of the next. Of each global batch a process takes every ``processes``-th photograph.
    """

    def __init__(
        self,
        photographs: int,
        batch_size: int,
        steps: int,
        seed: int,
        *,
        first: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        """Plan the batches.

        Args:
            photographs: number of them.
            batch_size: of the global batch.
            steps: number of batches in all.
            seed: of the order and of the mirroring.
            first: the step to begin with; those before it are not drawn again.
            rank: of this process.
            processes: that share each batch.

        Raises:
            ValueError: if the batch cannot be shared evenly.
        """
        if batch_size % processes:
            raise ValueError(f"batch_size must be a multiple of the {processes} processes, got {batch_size}.")
        self._images, self._batch_size, self._steps, self._seed = photographs, batch_size, steps, seed
        self._first, self._rank, self._processes = first, rank, processes

    def __len__(self) -> int:
        """Number of batches that are left."""
        return self._steps - self._first

    def __iter__(self) -> Iterator[list[Draw]]:
        """The batches of this process."""
        draws = self._draws()
        for step in range(self._steps):
            batch = [next(draws) for _ in range(self._batch_size)]
            if step >= self._first:
                yield batch[self._rank :: self._processes]

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            order = torch.randperm(self._images, generator=generator).tolist()
            mirrored = (torch.rand(self._images, generator=generator) < 0.5).tolist()
            yield from map(Draw, order, mirrored)

    def ratio(self, step: int, between: tuple[float, float]) -> float:
        """The ratio that the batch of a step is resized by, the same in every process."""
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        low, high = between
        return low + (high - low) * float(torch.rand((), generator=generator))


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
class ImageLabelBatch:
    """The readable photographs of a batch.

    Attributes:
        numbers: ``(n,)`` int64, in their collection.
        images: ``(n, 3, S, S)``.
        present: ``(n, C)`` float32.
        failures: a line for each image that could not be read.
    """

    numbers: Tensor
    images: Tensor
    present: Tensor
    failures: tuple[str, ...]


class ImageLabelDataset(Dataset[Canvas]):
    """Photographs on the canvas of a preprocessing, with image-level labels; masks are never looked at."""

    def __init__(self, collection: Collection, preprocess: Preprocess, max_pixels: int | None = None) -> None:
        """Describe the dataset; items are :class:`Draw`.

        Args:
            collection: the images.
            preprocess: resizes, pads and normalizes.
            max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        """
        self._collection = collection
        self._preprocess = preprocess
        self._max_pixels = max_pixels
        self._present = collection.presence().float()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._collection)

    def __getitem__(self, draw: Draw) -> Canvas:
        """Read and prepare one image; one that cannot be read comes back with the reason."""
        photograph = self._collection.images[draw.number]
        try:
            image = self._preprocess(read_image(photograph.path, max_pixels=self._max_pixels)).tensor
        except ImageReadError as error:
            return Canvas(draw.number, None, self._present[draw.number], str(error))
        return Canvas(draw.number, image.flip(-1) if draw.mirrored else image, self._present[draw.number])


def collate(canvases: list[Canvas]) -> ImageLabelBatch:
    """Stack the images that could be read.

    Args:
        canvases: of one batch.

    Returns:
        The batch; empty tensors if none could be read.
    """
    readable = [(canvas, canvas.image) for canvas in canvases if canvas.image is not None]
    return ImageLabelBatch(
        numbers=torch.tensor([canvas.number for canvas, _ in readable], dtype=torch.long),
        images=torch.stack([image for _, image in readable]) if readable else torch.empty(0, 3, 0, 0),
        present=torch.stack([canvas.present for canvas in canvases])[[c.image is not None for c in canvases]],
        failures=tuple(canvas.failure for canvas in canvases if canvas.failure),
    )


_LABELS = 256


def downsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """The most frequent label of each cell of a grid; of equally frequent ones the lowest.

    Differs from the release of AffinityNet, which averages the probabilities after the CRF over each cell: label maps
    are hundreds of times smaller on the disk, and can be looked at.

    Args:
        labels: ``(N, H, W)`` integers, 0 to 255.
        size: ``(h, w)`` of the grid, not larger than the maps.

    Returns:
        ``(N, h, w)`` int64.

    Raises:
        ValueError: if the grid is finer than the label maps.
    """
    count, height, width = labels.shape
    if size[0] > height or size[1] > width:
        raise ValueError(f"the grid must not be finer than the label maps of {(height, width)}, got {size}.")
    rows = torch.arange(height, device=labels.device) * size[0] // height
    columns = torch.arange(width, device=labels.device) * size[1] // width
    images = torch.arange(count, device=labels.device)
    cells = (images[:, None, None] * size[0] + rows[:, None]) * size[1] + columns
    keys = cells * _LABELS + labels
    frequencies = torch.bincount(keys.flatten(), minlength=count * size[0] * size[1] * _LABELS)
    return frequencies.view(count, *size, _LABELS).argmax(dim=-1)


@dataclass(frozen=True)
class LabeledCanvas:
    """A prepared photograph with its label map.

    Attributes:
        number: in its collection.
        image: ``(3, S, S)``; None if a file could not be read.
        labels: ``(S, S)`` uint8, 255 where there is no image; None if a file could not be read.
        failure: why it could not be read; empty if it was.
    """

    number: int
    image: Tensor | None
    labels: Tensor | None
    failure: str = ""


@dataclass(frozen=True)
class LabeledBatch:
    """The readable photographs of a batch.

    Attributes:
        numbers: ``(n,)`` int64, in their collection.
        images: ``(n, 3, S, S)``.
        labels: ``(n, S, S)`` uint8: 0 background, ``c + 1`` for class ``c``, 255 unknown.
        failures: a line for each image that could not be read.
    """

    numbers: Tensor
    images: Tensor
    labels: Tensor
    failures: tuple[str, ...]


class LabeledCanvases(Dataset[LabeledCanvas]):
    """Photographs and label maps on the canvas of a preprocessing."""

    def __init__(
        self, collection: Collection, folder: Path, preprocess: Preprocess, max_pixels: int | None = None
    ) -> None:
        """Describe the dataset; items are :class:`Draw`.

        Args:
            collection: the images.
            folder: with a label map ``NAME.png`` for each, of the size of the image or of another one: resized
                without mixing labels.
            preprocess: resizes, pads and normalizes.
            max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        """
        self._collection = collection
        self._folder = folder
        self._preprocess = preprocess
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._collection)

    def __getitem__(self, draw: Draw) -> LabeledCanvas:
        """Read and prepare one image; one that cannot be read comes back with the reason."""
        photograph = self._collection.images[draw.number]
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
            return LabeledCanvas(draw.number, None, None, str(error))
        image = prepared.tensor
        if draw.mirrored:
            image, labels = image.flip(-1), labels.flip(-1)
        return LabeledCanvas(draw.number, image, labels)


def collate_labeled(canvases: list[LabeledCanvas]) -> LabeledBatch:
    """Stack the images that could be read.

    Args:
        canvases: of one batch.

    Returns:
        The batch; empty tensors if none could be read.
    """
    readable = [canvas for canvas in canvases if canvas.image is not None]
    images = [canvas.image for canvas in readable if canvas.image is not None]
    labels = [canvas.labels for canvas in readable if canvas.labels is not None]
    return LabeledBatch(
        numbers=torch.tensor([canvas.number for canvas in readable], dtype=torch.long),
        images=torch.stack(images) if images else torch.empty(0, 3, 0, 0),
        labels=torch.stack(labels) if labels else torch.empty(0, 0, 0, dtype=torch.uint8),
        failures=tuple(canvas.failure for canvas in canvases if canvas.failure),
    )


def _on_canvas(labels: Tensor, prepared: CanvasImage) -> Tensor:
    height, width = prepared.pixels.shape[1:]
    picture = Image.fromarray(labels.numpy().astype(np.uint8))
    resized = picture.resize((width, height), Image.Resampling.NEAREST)
    canvas = torch.full(prepared.tensor.shape[1:], VOID, dtype=torch.uint8)
    canvas[prepared.top : prepared.top + height, prepared.left : prepared.left + width] = torch.from_numpy(
        np.array(resized)
    )
    return canvas

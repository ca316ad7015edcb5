"""The images of a training, in batches whose order a resumed run repeats.

:class:`BatchPlan` decides which images are in each batch, :class:`TrainingImages` reads them, with image-level labels
and label maps, and :func:`data_loader` reads batches ahead in other processes. Images that cannot be read are left out
of their batch and reported.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import VOID, MaskError, read_mask
from dcsm_attr.datasets.preprocess import CanvasImage, Preprocess

__all__ = [
    "Batch",
    "BatchPlan",
    "SampleIndex",
    "TrainingImages",
    "TrainingSample",
    "collate",
    "data_loader",
    "downsample_labels",
]


@dataclass(frozen=True)
class SampleIndex:
    """One image of a batch.

    Attributes:
        index: position in the collection.
        mirrored: whether it is flipped horizontally.
    """

    index: int
    mirrored: bool = False


class BatchPlan(Sampler[list[SampleIndex]]):
    """The batches of a whole training, a function of the seed alone.

    Every epoch is a new permutation of the images. Epochs follow each other without a gap, so that a batch may contain
    the end of one and the beginning of the next. Each process takes every ``world_size``-th image of a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        steps: int,
        seed: int,
        *,
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Plan the batches.

        Args:
            num_images: number of images.
            batch_size: number of images per step, over all processes.
            steps: number of batches.
            seed: random seed of the order and of the mirroring.
            first_step: number of batches to leave out, because they are done.
            rank: of this process.
            world_size: number of processes that share each batch.

        Raises:
            ValueError: if the processes cannot share a batch evenly.
        """
        if batch_size % world_size:
            raise ValueError(f"batch_size must be a multiple of the {world_size} processes, got {batch_size}.")
        self._num_images, self._batch_size, self._steps, self._seed = num_images, batch_size, steps, seed
        self._first_step, self._rank, self._world_size = first_step, rank, world_size

    def __len__(self) -> int:
        """Number of remaining batches."""
        return self._steps - self._first_step

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Iterate over this process's part of each remaining batch."""
        samples = self._endless_samples()
        for step in range(self._steps):
            batch = [next(samples) for _ in range(self._batch_size)]
            if step >= self._first_step:
                yield batch[self._rank :: self._world_size]

    def _endless_samples(self) -> Iterator[SampleIndex]:
        generator = torch.Generator().manual_seed(self._seed)
        while True:
            order = torch.randperm(self._num_images, generator=generator).tolist()
            mirrored = (torch.rand(self._num_images, generator=generator) < 0.5).tolist()
            yield from map(SampleIndex, order, mirrored)

    def scale(self, step: int, scale_range: tuple[float, float]) -> float:
        """Draw the factor that the batch of a step is resized by, the same in every process."""
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        low, high = scale_range
        return low + (high - low) * float(torch.rand((), generator=generator))


def _no_labels() -> Tensor:
    return torch.empty(0, 0, dtype=torch.uint8)


@dataclass(frozen=True)
class TrainingSample:
    """An image on its canvas of S x S pixels, with its labels.

    Attributes:
        index: position in the collection.
        image: ``(3, S, S)``, normalized; None if a file could not be read.
        present: ``(C,)`` float32, the image-level labels.
        labels: ``(S, S)`` uint8, the label map: 0 background, ``c + 1`` for class ``c``, 255 unknown or outside of the
            image; empty without label maps.
        failure: why a file could not be read; empty if all could.
    """

    index: int
    image: Tensor | None
    present: Tensor
    labels: Tensor = field(default_factory=_no_labels)
    failure: str = ""


class TrainingImages(Dataset[TrainingSample]):
    """The images of a collection on their canvas, with image-level labels and, optionally, label maps.

    Masks of the collection are never read. Items are indexed by :class:`SampleIndex`.

    Attributes:
        preprocess: resizes, pads and normalizes.
    """

    def __init__(
        self,
        collection: Collection,
        preprocess: Preprocess,
        labels: str | Path | None = None,
        max_pixels: int | None = None,
    ) -> None:
        """Describe the dataset.

        Args:
            collection: images and their image-level labels.
            preprocess: resizes, pads and normalizes.
            labels: folder with a label map ``NAME.png`` per image, of any size: it is resized without mixing labels.
                None: there are no label maps.
            max_pixels: larger images are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        """
        self.preprocess = preprocess
        self._items = tuple(collection)
        self._num_classes = len(collection.class_names)
        self._present = collection.presence().float()
        self._labels = None if labels is None else Path(labels)
        self._max_pixels = max_pixels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._items)

    def __getitem__(self, sample: SampleIndex) -> TrainingSample:
        """Read one image; if a file cannot be read, the sample contains the reason instead."""
        item, present = self._items[sample.index], self._present[sample.index]
        try:
            prepared = self.preprocess(read_image(item.path, max_pixels=self._max_pixels))
            labels = _no_labels() if self._labels is None else self._read_labels(self._labels, item.name, prepared)
        except (ImageReadError, MaskError) as error:
            return TrainingSample(sample.index, None, present, failure=str(error))
        image = prepared.tensor
        if sample.mirrored:
            image, labels = image.flip(-1), labels.flip(-1)
        return TrainingSample(sample.index, image, present, labels)

    def _read_labels(self, folder: Path, name: str, prepared: CanvasImage) -> Tensor:
        """Read a label map and put it on the canvas of its image."""
        labels = read_mask(folder / f"{name}.png", class_count=self._num_classes, max_pixels=self._max_pixels)
        height, width = prepared.pixels.shape[1:]
        resized = Image.fromarray(labels.numpy().astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        canvas = torch.full(prepared.tensor.shape[1:], VOID, dtype=torch.uint8)
        rows, columns = (slice(start, start + n) for start, n in ((prepared.top, height), (prepared.left, width)))
        canvas[rows, columns] = torch.from_numpy(np.array(resized))
        return canvas


@dataclass(frozen=True)
class Batch:
    """The n readable images of a batch.

    Attributes:
        indices: ``(n,)`` int64, positions in the collection.
        images: ``(n, 3, S, S)``, normalized.
        present: ``(n, C)`` float32, the image-level labels.
        labels: ``(n, S, S)`` uint8, see :class:`TrainingSample`; ``(n, 0, 0)`` without label maps.
        failures: one line per image that could not be read.
    """

    indices: Tensor
    images: Tensor
    present: Tensor
    labels: Tensor
    failures: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of readable images."""
        return len(self.indices)


def collate(samples: list[TrainingSample]) -> Batch:
    """Stack the samples that could be read.

    Args:
        samples: of one batch, at least one.

    Returns:
        The batch, of length 0 if none could be read.
    """
    readable = [(sample, sample.image) for sample in samples if sample.image is not None]
    return Batch(
        indices=torch.tensor([sample.index for sample, _ in readable], dtype=torch.long),
        images=torch.stack([image for _, image in readable]) if readable else torch.empty(0, 3, 0, 0),
        present=torch.stack([sample.present for sample in samples])[[s.image is not None for s in samples]],
        labels=torch.stack([sample.labels for sample, _ in readable]) if readable else _no_labels()[None][:0],
        failures=tuple(sample.failure for sample in samples if sample.failure),
    )


def data_loader(images: TrainingImages, batches: Iterable[list[SampleIndex]], workers: int) -> "DataLoader[Batch]":
    """Read batches ahead.

    Args:
        images: the dataset.
        batches: the samples of each batch.
        workers: number of processes that read images; 0: the current process.

    Returns:
        Iterates over one :class:`Batch` per entry of ``batches``.
    """
    return DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        # By default the loader draws from the global generator, at another point of it in a resumed run.
        generator=torch.Generator(),  # type: ignore[arg-type]
    )


_NUM_LABELS = 256


def downsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Take the most frequent label of each cell of a grid; among equally frequent labels, the lowest.

    Differs from the release of AffinityNet, which averages the probabilities after the CRF over each cell: label maps
    are hundreds of times smaller on disk and can be looked at.

    Args:
        labels: ``(N, H, W)`` integers, 0 to 255.
        size: ``(h, w)`` of the grid, not larger than the label maps.

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
    keys = cells * _NUM_LABELS + labels
    frequencies = torch.bincount(keys.flatten(), minlength=count * size[0] * size[1] * _NUM_LABELS)
    return frequencies.view(count, *size, _NUM_LABELS).argmax(dim=-1)

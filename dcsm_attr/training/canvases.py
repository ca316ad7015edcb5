"""The photographs of a collection as training batches, in an order that a resumed run repeats."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.images import ImageReadError, read_image

__all__ = ["BatchPlan", "Canvases", "Draw", "collate"]


@dataclass(frozen=True)
class Draw:
    """One photograph of a batch: its number in the collection, and whether it is mirrored."""

    number: int
    mirrored: bool = False


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
        self._photographs, self._batch_size, self._steps, self._seed = photographs, batch_size, steps, seed
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
            order = torch.randperm(self._photographs, generator=generator).tolist()
            mirrored = (torch.rand(self._photographs, generator=generator) < 0.5).tolist()
            yield from map(Draw, order, mirrored)

    def ratio(self, step: int, between: tuple[float, float]) -> float:
        """The ratio that the batch of a step is resized by, the same in every process."""
        generator = torch.Generator().manual_seed((self._seed + 1) * 1_000_003 + step)
        low, high = between
        return low + (high - low) * float(torch.rand((), generator=generator))

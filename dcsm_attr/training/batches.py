"""The photographs of a training in batches, in an order that a resumed run repeats."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

__all__ = ["BatchPlan", "Draw"]


@dataclass(frozen=True)
class Draw:
    """One photograph of a batch: its number in the collection, and whether it is mirrored."""

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

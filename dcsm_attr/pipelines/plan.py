"""Which photographs go through the model together: fixed, whoever does it, and however often it is interrupted.

Class maps depend on what else is in a batch, by rounding. With batches that are always the same, and always done as a
whole, the results of a run that was killed, divided, or spread over machines are those of an undisturbed one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.segmentation.label_files import Shard

__all__ = ["PhotographBatch", "batch_count", "collection_digest", "planned_batches"]


@dataclass(frozen=True)
class PhotographBatch:
    """Photographs that go through the model together.

    Attributes:
        number: from 0.
        first: the place of its first photograph in the collection.
        photographs: consecutive ones.
    """

    number: int
    first: int
    photographs: tuple[Photograph, ...]

    def __iter__(self) -> Iterator[tuple[int, Photograph]]:
        """Each photograph with its place in the collection."""
        return enumerate(self.photographs, self.first)


def planned_batches(collection: Collection, batch_size: int, shard: Shard) -> list[PhotographBatch]:
    """The batches of one part of a collection.

    Args:
        collection: in its order.
        batch_size: photographs of each batch but the last.
        shard: every ``count``-th batch is taken.

    Raises:
        ValueError: if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    numbers = range(shard.index, batch_count(len(collection), batch_size), shard.count)
    return [_batch(number, batch_size, collection.photographs) for number in numbers]


def batch_count(photographs: int, batch_size: int) -> int:
    """How many batches so many photographs make."""
    return -(-photographs // batch_size)


def collection_digest(collection: Collection) -> str:
    """SHA-256 of names and classes, in order: the same if and only if the batches hold the same."""
    digest = hashlib.sha256()
    for photograph in collection:
        digest.update(f"{photograph.name}\0{photograph.classes}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _batch(number: int, size: int, photographs: Sequence[Photograph]) -> PhotographBatch:
    first = number * size
    return PhotographBatch(number, first, tuple(photographs[first : first + size]))

"""A set of photographs with their image-level labels: what training reads, and what evaluation compares with masks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["Collection", "Photograph"]


@dataclass(frozen=True)
class Photograph:
    """One photograph of a collection.

    Attributes:
        name: its id, unique in the collection.
        path: of the picture file; a string is a URI, such as ``"s3://bucket/photo.jpg"``.
        classes: the classes in it (image-level labels), from 0, ascending.
        mask: the true label map as a palette or grey picture, 0 background, ``c + 1`` for class ``c``, 255 void. None:
            there is none, or it is not to be read.
    """

    name: str
    path: Path | str
    classes: tuple[int, ...]
    mask: Path | None = None


@dataclass(frozen=True)
class Collection:
    """Photographs and the names of their classes.

    Attributes:
        class_names: one a class, without the background.
        photographs: in a fixed order.
    """

    class_names: tuple[str, ...]
    photographs: tuple[Photograph, ...]

    def __len__(self) -> int:
        """Number of photographs."""
        return len(self.photographs)

    def __iter__(self) -> Iterator[Photograph]:
        """The photographs in order."""
        return iter(self.photographs)

    def spread(self, count: int) -> "Collection":
        """So many photographs at equal distances; all, if there are not more or 0 are asked for."""
        total = len(self)
        count = min(count or total, total)
        return replace(self, photographs=tuple(self.photographs[i * total // count] for i in range(count)))

    def presence(self) -> Tensor:
        """Which classes are in which photograph, ``(N, C)`` bool."""
        present = torch.zeros(len(self), len(self.class_names), dtype=torch.bool)
        for row, photograph in zip(present, self.photographs, strict=True):
            row[list(photograph.classes)] = True
        return present

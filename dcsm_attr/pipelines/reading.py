"""The photographs of a batch, read: without the model, and without what only it imports."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dcsm_attr.datasets.collection import Photograph
from dcsm_attr.images import read_image

__all__ = ["Reading", "failure", "read_photograph"]


@dataclass(frozen=True)
class Reading:
    """A photograph that was read.

    Attributes:
        position: its place in the collection, from 0.
        photograph: what is known of it.
        image: ``(H, W, 3)`` uint8.
        seconds: that it took.
    """

    position: int
    photograph: Photograph
    image: npt.NDArray[np.uint8]
    seconds: float


def read_photograph(position: int, photograph: Photograph, max_pixels: int | None) -> Reading:
    """First step, in whatever thread, process or machine.

    Raises:
        ImageReadError: if the photograph cannot be read.
    """
    begun = time.perf_counter()
    image = np.asarray(read_image(photograph.path, max_pixels=max_pixels))
    return Reading(position, photograph, image, time.perf_counter() - begun)


def failure(photograph: Photograph, reason: str) -> dict[str, Any]:
    """The line of the manifest of a photograph that could not be read."""
    return {"name": photograph.name, "photograph": str(photograph.path), "error": reason}

"""Small pictures of a photograph and of its labels, for the report of a run."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dcsm_attr.datasets.masks import MaskError, read_mask
from dcsm_attr.images import read_image
from dcsm_attr.palette import VOID, label_picture, overlay
from dcsm_attr.storage import Storage, is_uri, read_uri

__all__ = ["THUMBNAIL_SIDE", "Thumbnail", "thumbnail"]

#: Pixels of the longer side.
THUMBNAIL_SIDE = 200

_QUALITY = 75


@dataclass(frozen=True)
class Thumbnail:
    """JPEG files of at most :data:`THUMBNAIL_SIDE` pixels a side.

    Attributes:
        labels: the colours of the labels over the photograph, or alone where it cannot be read; None if there is no
            label picture of the photograph's size.
        photograph: None if it cannot be read, or has more pixels than it had in the run.
    """

    labels: bytes | None
    photograph: bytes | None


def thumbnail(storage: Storage, entry: Mapping[str, Any]) -> Thumbnail:
    """Make the small pictures of a photograph.

    Args:
        storage: of the run.
        entry: the photograph's line in the manifest.

    Raises:
        ImportError: if it is named by a URI, and pyarrow is missing.
    """
    height, width = entry["size"]
    photograph = _photograph(entry["photograph"], height * width)
    if photograph is not None:
        photograph.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    labels = _labels(storage, entry["labels"], (height, width))
    return Thumbnail(
        None if labels is None else _jpeg(_coloured(labels, photograph)),
        None if photograph is None else _jpeg(photograph),
    )


def _photograph(location: str, max_pixels: int) -> Image.Image | None:
    try:
        if is_uri(location):
            with _as_file(read_uri(location)) as path:
                return read_image(path, max_pixels=max_pixels)
        return read_image(location, max_pixels=max_pixels)
    except (OSError, ValueError):
        return None


def _labels(storage: Storage, name: str, size: tuple[int, int]) -> Image.Image | None:
    try:
        with _as_file(storage.read(name)) as path:
            labels = read_mask(path, size, VOID, max_pixels=size[0] * size[1])
    except (OSError, MaskError):
        return None
    return label_picture(labels.numpy())


def _coloured(labels: Image.Image, photograph: Image.Image | None) -> Image.Image:
    if photograph is None:
        labels.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.NEAREST)
        return labels.convert("RGB")
    small: npt.NDArray[np.uint8] = np.asarray(labels.resize(photograph.size, Image.Resampling.NEAREST))
    return Image.fromarray(overlay(np.asarray(photograph), small))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """What was read from a store, where the readers of this package, which trust no file, look for it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name

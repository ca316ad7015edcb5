"""How many pixels a picture file may have: against small files that unpack to gigabytes (decompression bombs)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

__all__ = ["pixel_limit"]

_lock = threading.Lock()
# Of the threads that read with a limit above PIL's own, which is put back by the last of them.
_lifted: list[int] = []
_own: int | None = None


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[int | None]:
    """Have PIL read pictures of so many pixels, in this block.

    PIL knows one limit for the whole process, and checks it in many places. Where ``max_pixels`` is above it, it is
    raised until the block ends, in other threads too; where it is below, only the caller can check it.

    Args:
        max_pixels: the limit. None: PIL's own.

    Yields:
        The limit; None if there is none.

    Raises:
        ValueError: if ``max_pixels`` is not positive.
    """
    if max_pixels is None:
        with _lock:
            limit = _own if _lifted else Image.MAX_IMAGE_PIXELS
        yield limit
        return
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}. None is PIL's own limit.")
    _lift(max_pixels)
    try:
        yield max_pixels
    finally:
        _put_back(max_pixels)


def _lift(max_pixels: int) -> None:
    global _own
    with _lock:
        if not _lifted:
            _own = Image.MAX_IMAGE_PIXELS
        _lifted.append(max_pixels)
        _set()


def _put_back(max_pixels: int) -> None:
    with _lock:
        _lifted.remove(max_pixels)
        _set()


def _set() -> None:
    Image.MAX_IMAGE_PIXELS = None if _own is None else max([_own, *_lifted])

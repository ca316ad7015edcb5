"""Reading photographs, whatever they come as, into RGB.

How many pixels an image file may have: against small files that unpack to gigabytes (decompression bombs).
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dcsm_attr.io import is_uri, read_uri

__all__ = ["ImageReadError", "image_extensions", "open_image_file", "pixel_limit", "read_image"]


_lock = threading.Lock()
# Of the threads that read with a limit above PIL's own, which is put back by the last of them.
_raised_limits: list[int] = []
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
            limit = _own if _raised_limits else Image.MAX_IMAGE_PIXELS
        yield limit
        return
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1, got {max_pixels}. None is PIL's own limit.")
    _raise_limit(max_pixels)
    try:
        yield max_pixels
    finally:
        _restore_limit(max_pixels)


def _raise_limit(max_pixels: int) -> None:
    global _own
    with _lock:
        if not _raised_limits:
            _own = Image.MAX_IMAGE_PIXELS
        _raised_limits.append(max_pixels)
        _set()


def _restore_limit(max_pixels: int) -> None:
    with _lock:
        _raised_limits.remove(max_pixels)
        _set()


def _set() -> None:
    Image.MAX_IMAGE_PIXELS = None if _own is None else max([_own, *_raised_limits])


# Pictures of this kind are programs, which PIL would have Ghostscript execute.
_EXECUTABLE_FORMATS = frozenset({"EPS"})


class ImageReadError(ValueError):
    """A picture that cannot be read; the message names it and says why."""


def read_image(source: Any, *, max_pixels: int | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    Files of any mode are read right, whatever their ending says: the EXIF orientation is applied, palettes and CMYK are
    converted, transparency is laid over white, 16 bits are scaled to 8 (where no level is above 255, they are 8 bits in
    a wide file and stay), and of an animation the first frame is taken.

    Args:
        source: a path, or a URI such as ``"s3://bucket/photo.jpg"``, which takes pyarrow; a PIL image; an array
            ``(H, W)`` or ``(H, W, 3)``, uint8; or a tensor ``(3, H, W)``, uint8 or floating point in [0, 1].
        max_pixels: files with more pixels are refused, against decompression bombs. None: PIL's limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, which is 89 million if nobody changed it.

    Returns:
        The picture in mode ``"RGB"``.

    Raises:
        ImageReadError: if the file is missing, no picture, truncated, or too large; or if an array or tensor has
            another shape, type or range.
        ImportError: of a URI, if pyarrow is missing.
        TypeError: if the source is of another kind.
        ValueError: if ``max_pixels`` is not positive.
    """
    if isinstance(source, (str, os.PathLike)):
        with open_image_file(source, max_pixels=max_pixels) as opened:
            return _to_rgb(opened)
    if isinstance(source, Image.Image):
        with _read_errors("the PIL image"):
            return _to_rgb(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(f"an image must be a path, a PIL image, an array or a tensor; got {type(source).__name__}.")


def image_extensions() -> frozenset[str]:
    """The endings of files that can be pictures, in lower case, such as ``".jpg"``."""
    formats = _formats()
    return frozenset(ending.lower() for ending, name in Image.registered_extensions().items() if name in formats)


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in _EXECUTABLE_FORMATS]


@contextmanager
def open_image_file(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Open an image file, to be decoded in the block; what goes wrong there is the file's fault.

    Args:
        path: of the file, or its URI.
        max_pixels: as in :func:`read_image`.

    Yields:
        The picture as it is in the file, in any mode.

    Raises:
        ImageReadError: as :func:`read_image`; or whatever is raised in the block.
        ValueError: if ``max_pixels`` is not positive.
    """
    with (
        pixel_limit(max_pixels) as limit,
        _read_errors(path, limit),
        Image.open(_source(path), formats=_formats()) as opened,
    ):
        # Between PIL's limit and its double there is only a warning; both are refused alike. To turn it into an error
        # by a filter would be simpler, but filters are shared by all threads that read.
        if limit is not None and opened.width * opened.height > limit:
            raise Image.DecompressionBombError
        yield opened


def _source(path: str | os.PathLike[str]) -> Path | BytesIO:
    if is_uri(path):
        return BytesIO(read_uri(str(path)))
    path = Path(path)
    # A pipe would be waited for.
    if path.exists() and not path.is_file():
        raise ImageReadError(f"{path}: not a file, but {'a folder' if path.is_dir() else 'a device or a pipe'}.")
    return path


@contextmanager
def _read_errors(name: object, limit: int | None = None) -> Iterator[None]:
    try:
        yield
    # A library that is missing is no fault of the file: every other one would fail like it.
    except (ImageReadError, ImportError):
        raise
    except FileNotFoundError as error:
        raise ImageReadError(f"{name}: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name}: not an image, or of a format that is not known.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(
            f"{name}: has more than {limit} pixels, the limit against decompression bombs. If you trust it, raise the "
            "limit: max_pixels, on the command line --max-pixels."
        ) from error
    # Decoders raise everything on broken files: KeyError and struct.error are among it.
    except Exception as error:
        raise ImageReadError(f"{name}: cannot be read ({type(error).__name__}: {error}).") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.seek(0)
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_16_bit(np.asarray(upright))
    if "A" in upright.getbands() or "transparency" in upright.info:
        with_alpha = upright.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return upright.convert("RGB")


def _from_16_bit(levels: np.ndarray) -> Image.Image:
    """16-bit levels to 8; a file with larger values, or fractions, has no range that one could know."""
    if levels.min() < 0 or levels.max() > 65535 or levels.dtype.kind == "f":
        raise ValueError(f"levels from {levels.min()} to {levels.max()} are neither 8 nor 16 bits")
    return Image.fromarray((levels // 257 if levels.max() > 255 else levels).astype(np.uint8)).convert("RGB")


def _from_tensor(tensor: Tensor) -> Image.Image:
    if tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise ImageReadError(f"an image tensor must have shape (3, H, W), got {tuple(tensor.shape)}.")
    if tensor.dtype != torch.uint8:
        if not tensor.is_floating_point() or not ((tensor >= 0) & (tensor <= 1)).all():
            raise ImageReadError(
                f"an image tensor must be uint8, or floating point in [0, 1] and not normalized; got {tensor.dtype} "
                f"from {float(tensor.min()):.3g} to {float(tensor.max()):.3g}."
            )
        tensor = (tensor * 255).round().to(torch.uint8)
    return Image.fromarray(tensor.detach().permute(1, 2, 0).cpu().contiguous().numpy())


def _from_array(array: np.ndarray) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not is_image or array.dtype != np.uint8 or 0 in array.shape:
        raise ImageReadError(
            f"an image array must be uint8 of shape (H, W) or (H, W, 3), got {array.dtype} of shape {array.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")

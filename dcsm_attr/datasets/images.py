"""Reads images of any source (file, URI, PIL image, array, tensor) as upright 8-bit RGB.

Files are untrusted: every failure of a decoder becomes an :class:`ImageReadError` that names the file, and files with
too many pixels (decompression bombs) are rejected before they are decoded.
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

# An EPS file is a program, which PIL would let Ghostscript execute.
_EXECUTABLE_FORMATS = frozenset({"EPS"})


class ImageReadError(ValueError):
    """An image that cannot be read; the message names the image and the reason."""


def read_image(source: Any, *, max_pixels: int | None = None) -> Image.Image:
    """Reads an image as upright 8-bit RGB.

    The format of a file is detected from its content, not from its extension. The EXIF orientation is applied, palettes
    and CMYK are converted, transparency is composited over white, and the first frame of an animation is used. 16-bit
    levels are scaled to 8 bits; levels of at most 255 in a 16-bit file are kept.

    Args:
        source: a path; a URI such as ``"s3://bucket/photo.jpg"``, which needs pyarrow; a PIL image; an array ``(H, W)``
            or ``(H, W, 3)``, uint8; or a tensor ``(3, H, W)``, uint8 or floating point in [0, 1].
        max_pixels: files with more pixels are rejected. None: PIL's limit ``PIL.Image.MAX_IMAGE_PIXELS``, 89 million by
            default.

    Returns:
        The image in mode ``"RGB"``.

    Raises:
        ImageReadError: if the file is missing, not an image, truncated, or too large; or if the shape, type or range of
            an array or tensor is wrong.
        ImportError: if the source is a URI and pyarrow is not installed.
        TypeError: if the source has another type.
        ValueError: if ``max_pixels`` is not positive.
    """
    if isinstance(source, (str, os.PathLike)):
        with open_image_file(source, max_pixels=max_pixels) as image:
            return _to_rgb(image)
    if isinstance(source, Image.Image):
        with _read_errors("the PIL image"):
            return _to_rgb(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise TypeError(f"an image must be a path, a PIL image, an array or a tensor; got {type(source).__name__}.")


@contextmanager
def open_image_file(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Opens an image file, which is decoded inside the ``with`` block.

    Args:
        path: path or URI of the file.
        max_pixels: as in :func:`read_image`.

    Yields:
        The image as stored in the file, in any mode.

    Raises:
        ImageReadError: as in :func:`read_image`; also for any exception raised inside the block.
        ValueError: if ``max_pixels`` is not positive.
    """
    with (
        pixel_limit(max_pixels) as limit,
        _read_errors(path, limit),
        Image.open(_file_source(path), formats=_readable_formats()) as image,
    ):
        # PIL only warns between its limit and twice the limit. A warning filter would turn that into an error, but
        # filters are shared by all threads.
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError
        yield image


def image_extensions() -> frozenset[str]:
    """Returns the extensions of readable image files in lower case, such as ``".jpg"``."""
    formats = _readable_formats()
    return frozenset(extension.lower() for extension, name in Image.registered_extensions().items() if name in formats)


def _readable_formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in _EXECUTABLE_FORMATS]


def _file_source(path: str | os.PathLike[str]) -> Path | BytesIO:
    if is_uri(path):
        return BytesIO(read_uri(str(path)))
    path = Path(path)
    # Opening a pipe would block.
    if path.exists() and not path.is_file():
        raise ImageReadError(f"{path}: not a file, but {'a folder' if path.is_dir() else 'a device or a pipe'}.")
    return path


@contextmanager
def _read_errors(name: object, limit: int | None = None) -> Iterator[None]:
    """Turns every failure to read ``name`` into an :class:`ImageReadError`."""
    try:
        yield
    # A missing library affects every file, so it is not an error of this one.
    except (ImageReadError, ImportError):
        raise
    except FileNotFoundError as error:
        raise ImageReadError(f"{name}: there is no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{name}: not an image, or of an unknown format.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageReadError(
            f"{name}: has more than {limit} pixels, the limit against decompression bombs. If you trust it, raise the "
            "limit: max_pixels, on the command line --max-pixels."
        ) from error
    # Decoders raise any exception on broken files, KeyError and struct.error among them.
    except Exception as error:
        raise ImageReadError(f"{name}: cannot be read ({type(error).__name__}: {error}).") from error


# PIL has one limit per process. Threads that need a higher one raise it together; the last one restores the original.
_limit_lock = threading.Lock()
_raised_limits: list[int] = []
_original_limit: int | None = None


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[int | None]:
    """Lets PIL read images of up to ``max_pixels`` pixels inside the ``with`` block.

    PIL checks one limit for the whole process. If ``max_pixels`` is higher, PIL's limit is raised until the block ends,
    in other threads too; if it is lower, the caller has to check it.

    Args:
        max_pixels: the limit. None: PIL's own.

    Yields:
        The limit; None if there is none.

    Raises:
        ValueError: if ``max_pixels`` is not positive.
    """
    if max_pixels is None:
        with _limit_lock:
            limit = _original_limit if _raised_limits else Image.MAX_IMAGE_PIXELS
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
    global _original_limit
    with _limit_lock:
        if not _raised_limits:
            _original_limit = Image.MAX_IMAGE_PIXELS
        _raised_limits.append(max_pixels)
        _apply_limit()


def _restore_limit(max_pixels: int) -> None:
    with _limit_lock:
        _raised_limits.remove(max_pixels)
        _apply_limit()


def _apply_limit() -> None:
    Image.MAX_IMAGE_PIXELS = None if _original_limit is None else max([_original_limit, *_raised_limits])


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
    """Scales 16-bit levels to 8 bits. Other levels (above 65535, or fractions) have no known range."""
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

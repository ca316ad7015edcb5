"""Writing files so that nothing half-written ever appears under its final name."""

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["atomic_buffer", "atomic_path", "json_bytes", "writable_folder", "write_json"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# More than the room that a file system may have left in the last block of a file.
_PROBE = 1 << 16


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, scratch: Path | None = None) -> Iterator[Path]:
    """Write under another name, and rename when everything is there.

    Args:
        path: the final name; what stands there already is replaced.
        scratch: the folder to write in, on the same file system. None: that of ``path``.

    Yields:
        The path to write to, with the same ending. If the block fails it is removed, and ``path`` is as it was.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full, whatever the block has made of that.
    """
    final = Path(path)
    temporary = (scratch or final.parent) / f".{final.stem[:40]}-{secrets.token_hex(8)}{final.suffix}"
    # Not by tempfile, which lets only the owner read: to widen that again takes the umask, which can be read only by
    # setting it, for all threads.
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(final)
    except BaseException as error:
        full = _disk_full(temporary, error)
        temporary.unlink(missing_ok=True)
        if full is None:
            raise
        raise OSError(
            full.errno,
            f"cannot write {final}: {full.strerror}. Make room, or choose another folder; nothing of it was written",
        ) from error


@contextmanager
def atomic_buffer(path: str | os.PathLike[str]) -> Iterator[BytesIO]:
    """As :func:`atomic_path`, for pictures: PIL, and Matplotlib with it, do not notice that a file was cut off.

    PIL hands a whole picture to the system in one call, and does not look how much of it was taken: on a full disk the
    file ends in the middle, without an error.

    Args:
        path: as in :func:`atomic_path`.

    Yields:
        What to write to; it is written to the file when the block ends.

    Raises:
        OSError: as :func:`atomic_path`.
    """
    buffer = BytesIO()
    yield buffer
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _disk_full(temporary: Path, error: BaseException) -> OSError | None:
    """The error of the system, if there was no room to write a file; None if something else went wrong."""
    if isinstance(error, OSError):
        return error if error.errno in _FULL else None
    if isinstance(error, Exception):
        # torch.save and safetensors raise errors of their own: see whether the file can grow.
        try:
            with temporary.open("ab") as file:
                file.write(bytes(_PROBE))
                os.fsync(file.fileno())
        except OSError as found:
            return found if found.errno in _FULL else None
    return None


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder, and find out now rather than after the work whether files can be written there.

    Args:
        path: the folder; missing parents are made too.

    Returns:
        The folder.

    Raises:
        OSError: naming the folder, if it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write to the folder {folder}: {error.strerror or error}. Choose another one."
        ) from error
    return folder


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write JSON for people to read, in UTF-8; the file appears when it is complete.

    Names of files that are no text in their encoding come back from it as they were.

    Raises:
        OSError: if the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(json_bytes(content, indent=2))


def json_bytes(content: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """JSON in UTF-8, with a line feed at the end.

    Args:
        content: ready for JSON.
        indent: see :func:`json.dumps`. None: all in one line.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    # Lone surrogates are all that UTF-8 lacks, and what replaces them is JSON's own way to write them.
    return text.encode(errors="backslashreplace")

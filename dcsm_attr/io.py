"""Files and folders: atomic writing, local and object storage, folders whose files all come from one setting.

Nested settings laid flat: for tables, and to say in what two of them differ.

The lines of text files that users write.

Writing files so that nothing half-written ever appears under its final name.

Where results are kept: a folder, or a place in an object store; each file appears when it is whole.

Folders whose files all come from one setting, so that what stands there already can be trusted by a later run.
"""

import errno
import json
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "FolderStorage",
    "ObjectStorage",
    "Storage",
    "atomic_buffer",
    "atomic_path",
    "check_run_settings",
    "differences",
    "flattened",
    "is_uri",
    "json_bytes",
    "make_writable_folder",
    "open_run_folder",
    "open_storage",
    "read_lines",
    "read_uri",
    "write_json",
]


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with names such as ``"crf.iterations"``; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": held for inner, held in flattened(value).items()}
        else:
            flat[name] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nested settings, a phrase each: ``"crf.iterations (10 before, 5 now)"``."""
    old, new = flattened(before), flattened(now)
    return [
        f"{name} ({old.get(name, 'nothing')} before, {new.get(name, 'nothing')} now)"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, stripped; empty ones too. The byte order mark of some editors is left out.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is in another encoding.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error}). Save it in that encoding.") from error


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


def make_writable_folder(path: str | os.PathLike[str]) -> Path:
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
        content: JSON-serializable.
        indent: see :func:`json.dumps`. None: all in one line.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    # Lone surrogates are all that UTF-8 lacks, and what replaces them is JSON's own way to write them.
    return text.encode(errors="backslashreplace")


class Storage(ABC):
    """Files by names such as ``"labels/2007_000032.png"``; it can be sent to other processes.

    Attributes:
        location: as it was given.
    """

    location: str

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file, or replace it; it is there as a whole or not at all.

        Raises:
            OSError: if it cannot be written.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: if it is missing.
            OSError: if it cannot be read.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder, without it; none if there is no such folder."""

    @abstractmethod
    def discard_scratch(self) -> None:
        """Remove what writers that were killed have left; nobody else may be writing with the same scratch."""


class FolderStorage(Storage):
    """A folder of a file system."""

    def __init__(self, folder: str | Path, scratch: str | None = None) -> None:
        """Make the folder.

        Args:
            folder: missing parents are made too.
            scratch: the folder in it where files grow. Of writers with a scratch of their own, each can remove what it
                has left behind. None: files grow beside their final place, hidden.

        Raises:
            OSError: if the folder cannot be made or written to.
        """
        self.location = os.fspath(folder)
        # Other processes, to which it may be sent, can be at work elsewhere.
        self._folder = make_writable_folder(folder).absolute()
        self._scratch = None if scratch is None else self._folder / scratch

    def write(self, name: str, content: bytes) -> None:
        """See :meth:`Storage.write`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._scratch is not None:
            self._scratch.mkdir(exist_ok=True)
        with atomic_path(path, scratch=self._scratch) as temporary:
            temporary.write_bytes(content)

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        return (self._folder / name).read_bytes()

    def names(self, folder: str) -> set[str]:
        """See :meth:`Storage.names`."""
        try:
            with os.scandir(self._folder / folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return set()

    def discard_scratch(self) -> None:
        """See :meth:`Storage.discard_scratch`."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


class ObjectStorage(Storage):
    """A place that has a URI, such as ``s3://bucket/run``, through pyarrow, which finds the credentials.

    An object of S3 or Google's store is there when its upload is complete; of ``file://`` that is not so.
    """

    def __init__(self, uri: str) -> None:
        """Find the file system of the URI.

        Raises:
            ImportError: if pyarrow is missing.
            OSError: if the place cannot be reached.
            ValueError: if the URI is of a kind that pyarrow does not know.
        """
        self.location = uri
        self._files, self._root = _file_system(uri)

    def write(self, name: str, content: bytes) -> None:
        """See :meth:`Storage.write`."""
        path = self._path(name)
        # Object stores have no folders: what stands for one there is an object more, and requests for each file.
        if self._files.type_name == "local":
            self._files.create_dir(str(path.parent), recursive=True)
        with self._files.open_output_stream(str(path)) as stream:
            stream.write(content)

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        return _content(self._files, str(self._path(name)))

    def names(self, folder: str) -> set[str]:
        """See :meth:`Storage.names`."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(str(self._path(folder)), allow_not_found=True)
        return {info.base_name for info in self._files.get_file_info(selector) if info.type == FileType.File}

    def discard_scratch(self) -> None:
        """Nothing is left behind: what was not completed does not exist."""

    def _path(self, name: str) -> PurePosixPath:
        return PurePosixPath(self._root) / name


def open_storage(location: str | Path, scratch: str | None = None) -> Storage:
    """A folder, or what a URI names.

    Args:
        location: a path, or a URI such as ``s3://bucket/run``.
        scratch: see :class:`FolderStorage`.

    Raises:
        ImportError, OSError, ValueError: as the classes.
    """
    return ObjectStorage(str(location)) if is_uri(location) else FolderStorage(location, scratch)


def is_uri(location: object) -> bool:
    """Whether it is a string such as ``"s3://bucket/photo.jpg"``, and no path."""
    return isinstance(location, str) and "://" in location


def read_uri(uri: str) -> bytes:
    """The content of what a URI names.

    Raises:
        ImportError: if pyarrow is missing.
        OSError: if it is missing, or cannot be reached.
        ValueError: if the URI is of a kind that pyarrow does not know.
    """
    return _content(*_file_system(uri))


def _content(files: Any, path: str) -> bytes:
    with files.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def _file_system(uri: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise ImportError(
            f"{uri}: places other than folders of this machine are reached by pyarrow, which is missing: pip install "
            "pyarrow."
        ) from error
    found: tuple[Any, str] = FileSystem.from_uri(uri)
    return found


_NAME = "settings.json"


def open_run_folder(folder: str | Path, settings: Mapping[str, Any], holds: str) -> Path:
    """Take a folder for the results of one setting, noted in its ``settings.json``; or go on in one that was taken.

    Args:
        folder: created if missing.
        settings: everything that the results depend on, JSON-serializable.
        holds: what is in it, for messages.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written to.
        ValueError: if it holds results of other settings, which are named, or its ``settings.json`` is damaged.
    """
    check_run_settings(FolderStorage(folder), settings, holds)
    return Path(folder)


def check_run_settings(storage: Storage, settings: Mapping[str, Any], holds: str) -> None:
    """The same for a folder or a place in an object store.

    Args:
        storage: for the results.
        settings: as in :func:`open_run_folder`.
        holds: as there.

    Raises:
        OSError, ValueError: as there.
    """
    now = json.loads(json.dumps(settings))
    try:
        before = storage.read(_NAME)
    except FileNotFoundError:
        storage.write(_NAME, json_bytes(now, indent=2))
        return
    different = differences(_settings(before, storage.location), now)
    if different:
        raise ValueError(
            f"{storage.location}: holds {holds} of other settings, which differ in {'; '.join(different)}. Remove it, "
            "or choose another folder."
        )


def _settings(content: bytes, location: str) -> Mapping[str, Any]:
    try:
        settings = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{location}/{_NAME}: is damaged ({error}). Remove its folder to start again.") from error
    return settings if isinstance(settings, dict) else {}

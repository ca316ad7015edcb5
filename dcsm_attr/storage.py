"""Where results are kept: a folder, or a place in an object store; each file appears when it is whole."""

import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

from dcsm_attr.files import atomic_path, writable_folder

__all__ = ["FolderStorage", "ObjectStorage", "Storage", "is_uri", "opened_storage", "read_uri"]


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
            FileNotFoundError: if it is not there.
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
        self._folder = writable_folder(folder).absolute()
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
        # Object stores have no folders, and ignore this.
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


def opened_storage(location: str | Path, scratch: str | None = None) -> Storage:
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
        OSError: if it is not there, or cannot be reached.
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

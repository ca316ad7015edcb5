"""Files and folders: atomic writing, local and object storage, and run folders that resume.

Every file appears under its final name only when it is complete. Every command that writes many results keeps its
settings in ``settings.json`` in the same folder (:func:`open_run_folder`): the same settings resume, other settings are
an error, and ``overwrite=True`` starts over.
"""

import errno
import json
import os
import secrets
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "FolderStorage",
    "ObjectStorage",
    "Storage",
    "atomic_buffer",
    "atomic_path",
    "diff_settings",
    "flatten_settings",
    "is_uri",
    "json_bytes",
    "make_writable_folder",
    "open_run_folder",
    "open_run_storage",
    "open_storage",
    "read_lines",
    "read_uri",
    "write_json",
]


def read_lines(path: Path) -> list[str]:
    """Read the stripped lines of a UTF-8 text file, including empty ones, without a byte order mark.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if the file has another encoding.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error}). Save it in that encoding.") from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# More than what may still fit into the last block of a file.
_PROBE = 1 << 16


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, scratch: Path | None = None) -> Iterator[Path]:
    """Write under a temporary name, and rename the file when it is complete.

    Args:
        path: the final name; an existing file is replaced.
        scratch: folder of the temporary file, on the same file system. None: the folder of ``path``.

    Yields:
        The temporary path, with the same extension. If the block fails, it is removed and ``path`` is unchanged.

    Raises:
        OSError: if the folder cannot be written to, or the disk is full, whichever error the block raised then.
    """
    final = Path(path)
    temporary = (scratch or final.parent) / f".{final.stem[:40]}-{secrets.token_hex(8)}{final.suffix}"
    # Files of tempfile can be read by their owner only. To change that, one needs the umask, which can be read only by
    # setting it for all threads.
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
            f"cannot write {final}: {full.strerror}. Make room, or choose another folder; nothing was written",
        ) from error


@contextmanager
def atomic_buffer(path: str | os.PathLike[str]) -> Iterator[BytesIO]:
    """Do what :func:`atomic_path` does for images, which PIL and Matplotlib do not write safely.

    PIL passes a whole image to the system in one call and does not check how many bytes were written: if the disk is
    full, the file is cut off without an error.

    Args:
        path: see :func:`atomic_path`.

    Yields:
        A buffer, which is written to the file when the block ends.

    Raises:
        OSError: see :func:`atomic_path`.
    """
    buffer = BytesIO()
    yield buffer
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _disk_full(temporary: Path, error: BaseException) -> OSError | None:
    """Return the system's error if the disk was full; None if something else failed."""
    if isinstance(error, OSError):
        return error if error.errno in _FULL else None
    if isinstance(error, Exception):
        # torch.save and safetensors raise their own errors: test whether the file can grow.
        try:
            with temporary.open("ab") as file:
                file.write(bytes(_PROBE))
                os.fsync(file.fileno())
        except OSError as found:
            return found if found.errno in _FULL else None
    return None


def make_writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create a folder and check that files can be written there, before any work is done.

    Args:
        path: the folder; missing parents are created too.

    Returns:
        The folder.

    Raises:
        OSError: naming the folder, if it cannot be created or written to.
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
    """Write indented JSON in UTF-8; the file appears when it is complete.

    File names that are not valid text are preserved.

    Raises:
        OSError: if the folder cannot be written to.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(json_bytes(content, indent=2))


def json_bytes(content: Mapping[str, Any], *, indent: int | None = None) -> bytes:
    """Return JSON in UTF-8, with a line feed at the end.

    Args:
        content: JSON-serializable.
        indent: see :func:`json.dumps`. None: a single line.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    # UTF-8 has no lone surrogates; their replacement is how JSON escapes them.
    return text.encode(errors="backslashreplace")


class Storage(ABC):
    """A place for files with names such as ``"labels/2007_000032.png"``; it can be sent to other processes.

    Attributes:
        location: the path or URI.
    """

    location: str

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; it appears when it is complete.

        Raises:
            OSError: if it cannot be written.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: if it is missing.
            OSError: if it cannot be read.
        """

    @abstractmethod
    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder, without the folder; none if there is no such folder."""

    @abstractmethod
    def remove(self, pattern: str) -> None:
        """Remove the files and folders directly in the place whose names match a glob pattern, if there are any.

        Raises:
            OSError: if one cannot be removed.
        """

    @abstractmethod
    def discard_scratch(self) -> None:
        """Remove temporary files of killed writers; no other process may be writing with the same scratch folder."""


class FolderStorage(Storage):
    """A folder of a file system."""

    def __init__(self, folder: str | Path, scratch: str | None = None) -> None:
        """Create the folder.

        Args:
            folder: missing parents are created too.
            scratch: subfolder of temporary files. Writers with their own scratch folder can remove their temporary
                files. None: temporary files are hidden files in the folder of their final name.

        Raises:
            OSError: if the folder cannot be created or written to.
        """
        self.location = os.fspath(folder)
        # Other processes may have another working directory.
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

    def remove(self, pattern: str) -> None:
        """See :meth:`Storage.remove`."""
        for path in self._folder.iterdir():
            if fnmatchcase(path.name, pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def discard_scratch(self) -> None:
        """See :meth:`Storage.discard_scratch`."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


class ObjectStorage(Storage):
    """A place with a URI such as ``s3://bucket/run``. It is accessed by pyarrow, which finds the credentials.

    In S3 and Google's store, an object appears when its upload is complete; with ``file://``, it appears before.
    """

    def __init__(self, uri: str) -> None:
        """Find the file system of the URI.

        Raises:
            ImportError: if pyarrow is missing.
            OSError: if the place cannot be reached.
            ValueError: if pyarrow does not support this kind of URI.
        """
        self.location = uri
        self._files, self._root = _file_system(uri)

    def write(self, name: str, content: bytes) -> None:
        """See :meth:`Storage.write`."""
        path = self._path(name)
        # Object stores have no folders; to create one would add an object and requests per file.
        if self._files.type_name == "local":
            self._files.create_dir(str(path.parent), recursive=True)
        with self._files.open_output_stream(str(path)) as stream:
            stream.write(content)

    def read(self, name: str) -> bytes:
        """See :meth:`Storage.read`."""
        return _read_stream(self._files, str(self._path(name)))

    def names(self, folder: str) -> set[str]:
        """See :meth:`Storage.names`."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(str(self._path(folder)), allow_not_found=True)
        return {info.base_name for info in self._files.get_file_info(selector) if info.type == FileType.File}

    def remove(self, pattern: str) -> None:
        """See :meth:`Storage.remove`."""
        from pyarrow.fs import FileSelector, FileType

        for info in self._files.get_file_info(FileSelector(str(PurePosixPath(self._root)), allow_not_found=True)):
            if fnmatchcase(info.base_name, pattern):
                if info.type == FileType.Directory:
                    self._files.delete_dir(info.path)
                else:
                    self._files.delete_file(info.path)

    def discard_scratch(self) -> None:
        """Do nothing: incomplete objects do not exist."""

    def _path(self, name: str) -> PurePosixPath:
        return PurePosixPath(self._root) / name


def open_storage(location: str | Path, scratch: str | None = None) -> Storage:
    """Open a folder or a place in an object store.

    Args:
        location: a path, or a URI such as ``s3://bucket/run``.
        scratch: see :class:`FolderStorage`.

    Raises:
        ImportError, OSError, ValueError: see :class:`FolderStorage` and :class:`ObjectStorage`.
    """
    return ObjectStorage(str(location)) if is_uri(location) else FolderStorage(location, scratch)


def is_uri(location: object) -> bool:
    """Return whether this is a string such as ``"s3://bucket/photo.jpg"`` and not a path."""
    return isinstance(location, str) and "://" in location


def read_uri(uri: str) -> bytes:
    """Read the file with this URI.

    Raises:
        ImportError: if pyarrow is missing.
        OSError: if it is missing, or cannot be reached.
        ValueError: if pyarrow does not support this kind of URI.
    """
    return _read_stream(*_file_system(uri))


def _read_stream(files: Any, path: str) -> bytes:
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


_SETTINGS_FILE = "settings.json"
# The key of that file which says what the folder holds; it keeps --overwrite away from files of other programs.
_CONTENTS = "contents"


def open_run_folder(
    folder: str | Path, settings: Mapping[str, Any], contents: str, *, results: Sequence[str], overwrite: bool = False
) -> Path:
    """Create the folder of a run with its ``settings.json``, or resume the run that the folder holds.

    The same settings resume: results that exist are kept, and the caller computes those that are missing. Other
    settings are an error, unless ``overwrite`` is set.

    Args:
        folder: created if missing.
        settings: everything that the results depend on, JSON-serializable.
        contents: what the folder holds, such as ``"label maps"``; used in messages and written to ``settings.json``.
        results: names or glob patterns (``"labels"``, ``"*.png"``) of the files and subfolders that the run writes
            directly into the folder.
        overwrite: remove the results of an earlier run and start over. Files that match none of ``results`` are kept,
            and a folder without a ``settings.json`` of the same contents is left as it is. Of several processes that
            share a folder, only one may pass True, before the others open it.

    Returns:
        The folder.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if the folder holds a run with other settings, which are named, or something else than
            ``contents``, or if its ``settings.json`` is damaged.
    """
    open_run_storage(FolderStorage(folder), settings, contents, results=results, overwrite=overwrite)
    return Path(folder)


def open_run_storage(
    storage: Storage, settings: Mapping[str, Any], contents: str, *, results: Sequence[str], overwrite: bool = False
) -> None:
    """Do what :func:`open_run_folder` does, for a folder or a place in an object store.

    Args:
        storage: the place.
        settings: see :func:`open_run_folder`.
        contents: see :func:`open_run_folder`.
        results: see :func:`open_run_folder`.
        overwrite: see :func:`open_run_folder`.

    Raises:
        OSError, ValueError: see :func:`open_run_folder`.
    """
    # JSON turns tuples into lists: compare what a reader gets.
    new = json.loads(json.dumps({_CONTENTS: contents, **settings}))
    try:
        old = _parse_settings(storage.read(_SETTINGS_FILE), storage.location)
    except FileNotFoundError:
        storage.write(_SETTINGS_FILE, json_bytes(new, indent=2))
        return
    if old[_CONTENTS] != contents:
        raise ValueError(f"{storage.location}: holds {old[_CONTENTS]}, not {contents}. Choose another folder.")
    if overwrite:
        # The settings are replaced last: if removing is interrupted, no old result is left with the new settings.
        for pattern in results:
            storage.remove(pattern)
        storage.write(_SETTINGS_FILE, json_bytes(new, indent=2))
        return
    different = diff_settings(old, new)
    if different:
        raise ValueError(
            f"{storage.location}: holds {contents} with other settings: {'; '.join(different)}. Run with the same "
            "settings, choose another folder, or pass overwrite=True (--overwrite) to start over."
        )


def _parse_settings(content: bytes, location: str) -> dict[str, Any]:
    try:
        settings = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{location}/{_SETTINGS_FILE}: is damaged ({error}). Choose another folder.") from error
    if not isinstance(settings, dict) or _CONTENTS not in settings:
        raise ValueError(
            f"{location}/{_SETTINGS_FILE}: does not say what the folder contains, so that it is not of this version of "
            "dcsm_attr. Choose another folder."
        )
    return settings


def diff_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the differences of two nested settings, such as ``"crf.iterations (10 before, 5 now)"``."""
    before, now = flatten_settings(old), flatten_settings(new)
    return [
        f"{name} ({before.get(name, 'nothing')} before, {now.get(name, 'nothing')} now)"
        for name in {**before, **now}
        if name not in before or name not in now or before[name] != now[name]
    ]


def flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings into one with names such as ``"crf.iterations"``; lists are kept."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": entry for inner, entry in flatten_settings(value).items()}
        else:
            flat[name] = value
    return flat

"""Folders whose files all come from one setting, so that what stands there already can be trusted by a later run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsm_attr.files import json_bytes
from dcsm_attr.settings import differences
from dcsm_attr.storage import FolderStorage, Storage

__all__ = ["claim_folder", "claim_storage"]

_NAME = "settings.json"


def claim_folder(folder: str | Path, settings: Mapping[str, Any], holds: str) -> Path:
    """Take a folder for the results of one setting, noted in its ``settings.json``; or go on in one that was taken.

    Args:
        folder: made if it is not there.
        settings: everything that the results depend on, ready for JSON.
        holds: what is in it, for messages.

    Returns:
        The folder.

    Raises:
        OSError: if it cannot be written to.
        ValueError: if it holds results of other settings, which are named, or its ``settings.json`` is damaged.
    """
    claim_storage(FolderStorage(folder), settings, holds)
    return Path(folder)


def claim_storage(storage: Storage, settings: Mapping[str, Any], holds: str) -> None:
    """The same for a folder or a place in an object store.

    Args:
        storage: for the results.
        settings: as in :func:`claim_folder`.
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

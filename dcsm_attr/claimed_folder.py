"""Folders whose files all come from one setting, so that what stands there already can be trusted by a later run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcsm_attr.files import writable_folder, write_json
from dcsm_attr.settings import differences

__all__ = ["claim_folder"]


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
        ValueError: if it holds results of other settings, which are named.
    """
    folder = writable_folder(folder)
    now = json.loads(json.dumps(settings))
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, now)
    different = differences(_settings(path), now)
    if different:
        raise ValueError(
            f"{folder}: holds {holds} of other settings, which differ in {'; '.join(different)}. Remove it, or choose "
            "another folder."
        )
    return folder


def _settings(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is damaged ({error}). Remove its folder to start again.") from error
    return content if isinstance(content, dict) else {}

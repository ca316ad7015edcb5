"""Saying what is missing from a set of files, in a line that stays short."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["first_five", "require_files"]

_NAMED = 5


def first_five(names: Sequence[str]) -> str:
    """The first five names, and how many there are beyond them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def require_files(paths: Sequence[Path], what: str, remedy: str) -> None:
    """Find out before the work whether all files of a collection are there.

    Args:
        paths: all of the files.
        what: they are, in the plural, for the message.
        remedy: a sentence that says what to do.

    Raises:
        ValueError: if some are missing; their count, their folder and the first five are named.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ValueError(
            f"{missing[0].parent}: {len(missing)} of {len(paths)} {what} are missing: "
            f"{first_five([path.name for path in missing])}. {remedy}"
        )

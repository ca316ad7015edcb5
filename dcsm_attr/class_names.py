"""The names of classes in a text file in UTF-8, one a line, in the order of the class numbers."""

from pathlib import Path

from dcsm_attr.text_lines import read_lines

__all__ = ["read_class_names"]


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Read the names; empty lines do not count.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: naming the file, if it is no text in UTF-8, names no class, or one twice.
    """
    path = Path(path)
    names = tuple(line for line in read_lines(path) if line)
    if not names:
        raise ValueError(f"{path}: names no class; it must have a name a line.")
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(
                f"{path}: the class {name!r} is named twice, as number {names.index(name)} and {position}."
            )
    return names

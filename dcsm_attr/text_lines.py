"""The lines of text files that users write."""

from pathlib import Path

__all__ = ["read_lines"]


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

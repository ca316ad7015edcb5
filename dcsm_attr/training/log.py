"""The log of a training: a CSV file with a line for each validation, never half-written."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcsm_attr.files import atomic_path

__all__ = ["TrainingLog"]


class TrainingLog:
    """Lines of one table, of which ``step`` is the first column."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Name the file; it is written with the first line.

        Args:
            path: of the CSV file.
            columns: after ``step``.
        """
        self._path = path
        self._columns = ["step", *columns]

    def append(self, line: Mapping[str, object]) -> None:
        """Add a line."""
        self._write([*self._lines(), {name: str(line[name]) for name in self._columns}])

    def forget_after(self, step: int) -> None:
        """Remove the lines of later steps, which a resumed training logs again."""
        self._write([line for line in self._lines() if int(line["step"]) <= step])

    def _lines(self) -> list[dict[str, str]]:
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, lines: list[dict[str, str]]) -> None:
        with atomic_path(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(lines)

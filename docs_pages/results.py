"""The committed results, and which of them a page has shown."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Results", "origin", "table_section"]


class Results:
    """A folder of results that remembers what was read from it.

    Args:
        folder: ``benchmarks/results``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: set[str] = set()

    def names(self, pattern: str) -> list[str]:
        """The files that match, sorted, as paths below the folder."""
        return sorted(path.relative_to(self._folder).as_posix() for path in self._folder.glob(pattern))

    def text(self, name: str) -> str:
        """The text of a file, which counts as shown from now on."""
        self._read.add(name)
        return (self._folder / name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """The content of a JSON file, which counts as shown."""
        return json.loads(self.text(name))

    def csv(self, name: str) -> list[list[str]]:
        """The rows of a CSV file, which counts as shown."""
        return list(csv.reader(self.text(name).splitlines()))

    def link(self, name: str) -> str:
        """A file as the target of a link, or of a picture, from a page in ``docs/measured``; it counts as shown."""
        self._read.add(name)
        return f"../../benchmarks/results/{name}"

    def not_shown(self) -> list[str]:
        """Files that no page has read. A report in Markdown is shown with the JSON file of its name."""
        files = [name for name in self.names("**/*") if (self._folder / name).is_file()]
        return [
            name
            for name in files
            if name not in self._read and not (name.endswith(".md") and f"{name[:-3]}.json" in self._read)
        ]


def origin(measured: dict[str, Any]) -> str:
    """The command and the machine that a result file tells, as one line."""
    gpu = measured["gpu"] or "no GPU"
    return (
        f"`{measured['command']}`; {measured['processor']}, {measured['cores']} cores, {gpu}, Python "
        f"{measured['python']}, torch {measured['torch']}, commit {measured['commit']}."
    )


def table_section(
    heading: str, content: dict[str, Any], table: Callable[[dict[str, Any]], str], about: str = ""
) -> list[str]:
    """A result under its heading: what it is of, its table, its origin."""
    return [heading, *([about] if about else []), table(content), origin(content["measured"])]

"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["markdown_table", "measured_with", "value_text"]


def markdown_table(rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Rows of cells as a table.

    Args:
        rows: the first one is the head.
        numbers: whether what stands behind the first column is aligned to the right, and not to the left, as words are.
    """
    head, *body = rows
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1), *lines[1:]])


def value_text(value: Any) -> str:
    """A setting as a cell."""
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def measured_with(facts: Mapping[str, Any]) -> str:
    """The last section of a report: a table of what its figures were measured with."""
    return "## Measured with\n\n" + markdown_table([["", ""], *([name, value_text(facts[name])] for name in facts)])

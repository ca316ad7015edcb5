"""Blocks of Markdown that the site folds and tabs."""

import textwrap
from collections.abc import Iterable, Mapping

__all__ = ["folded", "page", "tabs"]


def page(title: str, blocks: Iterable[str]) -> str:
    """A page: its title, and blocks with a line between them."""
    return "\n\n".join([f"# {title}", *blocks]) + "\n"


def folded(title: str, blocks: Iterable[str]) -> str:
    """Blocks behind a line that opens them."""
    return f'??? note "{title}"\n\n' + _indented(blocks)


def tabs(panes: Mapping[str, Iterable[str]]) -> str:
    """Blocks of which one pane is seen at a time, by the titles of the panes."""
    return "\n\n".join(f'=== "{title}"\n\n{_indented(blocks)}' for title, blocks in panes.items())


def _indented(blocks: Iterable[str]) -> str:
    return textwrap.indent("\n\n".join(blocks), "    ")

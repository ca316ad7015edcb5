"""Links out of ``docs/``: files of the repository that pages point to stand in the site too, under ``repository/``.

So one relative link leads to the same file on a code host and in the site.
"""

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["linked_files", "place", "relinked", "shown"]

_LINK = re.compile(r'(?P<before>\]\(|(?:src|href)=")(?P<target>[^)\s"#:]+)(?P<anchor>#[^)\s"]*)?(?=[)\s"])')
_DOCS = "docs/"
# What is shown as a page of code, by ending; folders have none either.
_CODE = {".py": "python", ".sh": "bash", ".cfg": "ini", ".toml": "toml", ".yml": "yaml", "": "text"}
_UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def place(path: str) -> str:
    """Where a file or folder of the repository stands among the sources of the site.

    Args:
        path: below the root of the repository.
    """
    if path.startswith(_DOCS):
        return path.removeprefix(_DOCS)
    return f"repository/{path}{'.md' if posixpath.splitext(path)[1] in _CODE else ''}"


def linked_files(pages: Iterable[str], root: Path, text_of: Callable[[str], str]) -> set[str]:
    """What pages point to outside of ``docs/``, and what the Markdown files among it point to, and so on.

    Args:
        pages: paths of Markdown files below the root.
        root: the repository.
        text_of: the text of such a file.

    Returns:
        Paths below the root, of files and folders that are there.
    """
    found: set[str] = set()
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        for link in _LINK.finditer(text_of(page)):
            target = _resolved(page, link["target"])
            if target in found or target.startswith((_DOCS, "..")) or not (root / target).exists():
                continue
            found.add(target)
            if target.endswith(".md"):
                waiting.append(target)
    return found


def _resolved(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def relinked(text: str, page: str, root: Path) -> str:
    """A page's text with its links to files of the repository as links between sources of the site.

    Args:
        text: Markdown.
        page: its path below the root.
        root: the repository.
    """
    here = posixpath.dirname(place(page))

    def moved(link: re.Match[str]) -> str:
        target = _resolved(page, link["target"])
        stays = page.startswith(_DOCS) and target.startswith(_DOCS)
        if stays or target.startswith("..") or not (root / target).exists():
            return link[0]
        return f"{link['before']}{posixpath.relpath(place(target), here or '.')}{link['anchor'] or ''}"

    return _LINK.sub(moved, text)


def shown(path: str, root: Path) -> str | None:
    """The page of a file or folder of the repository; None for what a browser shows as it is."""
    full = root / path
    if full.is_dir():
        inside = sorted(
            f"{one.name}/" if one.is_dir() else one.name for one in full.iterdir() if one.name[0] not in "._"
        )
        body = "\n".join(f"- `{name}`" for name in inside)
        return f"{_UNSEARCHED}# {path}\n\nWhat this folder of the repository holds:\n\n{body}\n"
    ending = posixpath.splitext(path)[1]
    if ending == ".md":
        return _UNSEARCHED + full.read_text(encoding="utf-8")
    if ending not in _CODE:
        return None
    return f"{_UNSEARCHED}# {path}\n\n``````{_CODE[ending]}\n{full.read_text(encoding='utf-8')}``````\n"

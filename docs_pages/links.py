"""Links of pages: to files of the repository, which are part of the site, and from names to the reference."""

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["link_names", "linked_files", "relink", "site_path", "source_page"]

_LINK = re.compile(r'(?P<before>\]\(|(?:src|href)=")(?P<target>[^)\s"#:]+)(?P<anchor>#[^)\s"]*)?(?=[)\s"])')
# Languages of the files that are shown as pages of code; folders have no ending either.
_CODE = {".py": "python", ".sh": "bash", ".cfg": "ini", ".toml": "toml", ".yml": "yaml", "": "text"}
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
_NAME = re.compile(r"<code>(?P<name>dcsm_attr(?:\.\w+)+)</code>")
# Elements that must not contain another link.
_NO_LINKS_INSIDE = re.compile(r"(<(a|h[1-6]|autorefs?|pre)\b.*?</\2>)", re.DOTALL)


def site_path(path: str) -> str:
    """The place of a repository's file or folder among the sources of the site.

    Args:
        path: below the root of the repository.
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}{'.md' if posixpath.splitext(path)[1] in _CODE else ''}"


def linked_files(pages: Mapping[str, str], root: Path) -> set[str]:
    """Files and folders outside of ``docs/`` that pages link to, also by way of other Markdown files.

    Args:
        pages: texts of pages by their paths below the root.
        root: the repository.
    """
    found: set[str] = set()
    waiting = list(pages.items())
    while waiting:
        page, text = waiting.pop()
        for link in _LINK.finditer(text):
            target = _resolve(page, link["target"])
            if target not in found and not target.startswith(("docs/", "..")) and (root / target).exists():
                found.add(target)
                if target.endswith(".md"):
                    waiting.append((target, (root / target).read_text(encoding="utf-8")))
    return found


def relink(text: str, page: str, root: Path) -> str:
    """A page's Markdown with links to files of the repository as links within the site.

    Args:
        text: Markdown.
        page: its path below the root.
        root: the repository.
    """
    folder = posixpath.dirname(site_path(page)) or "."

    def moved(link: re.Match[str]) -> str:
        target = _resolve(page, link["target"])
        within_docs = page.startswith("docs/") and target.startswith("docs/")
        if within_docs or target.startswith("..") or not (root / target).exists():
            return link[0]
        return f"{link['before']}{posixpath.relpath(site_path(target), folder)}{link['anchor'] or ''}"

    return _LINK.sub(moved, text)


def _resolve(page: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def source_page(path: str, root: Path) -> str | None:
    """The page of a file or folder of the repository; None for images, which are copied."""
    full, ending = root / path, posixpath.splitext(path)[1]
    if full.is_dir():
        names = sorted(
            f"{one.name}/" if one.is_dir() else one.name for one in full.iterdir() if one.name[0] not in "._"
        )
        return f"{_NOT_SEARCHED}# {path}\n\n" + "\n".join(f"- `{name}`" for name in names) + "\n"
    if ending == ".md":
        return _NOT_SEARCHED + full.read_text(encoding="utf-8")
    if ending not in _CODE:
        return None
    return f"{_NOT_SEARCHED}# {path}\n\n``````{_CODE[ending]}\n{full.read_text(encoding='utf-8')}``````\n"


def link_names(html: str) -> str:
    """A page's HTML, where ``<code>dcsm_attr.attribution.maps.background</code>`` links to the reference."""
    # Split by a pattern of two groups: text, element without links, its tag, text, and so on.
    parts = _NO_LINKS_INSIDE.split(html)
    texts = [_NAME.sub(r'<autoref identifier="\g<name>" optional>\g<0></autoref>', text) for text in parts[::3]]
    return "".join(text + closed for text, closed in zip(texts, [*parts[1::3], ""], strict=True))

"""The packages, and which may import which: from the contract of import-linter and from the sources."""

import ast
import configparser
import html
import re
from collections.abc import Sequence
from pathlib import Path

from dcsm_attr.evaluation.report import markdown_table
from docs_pages.layout import folded

__all__ = ["file_tables", "imports_of", "layers", "package_table", "packages", "picture", "purpose"]

_SECTION = "importlinter:contract:layers"
_WIDTH, _HEIGHT, _GAP, _MARGIN = 900, 34, 10, 8


def layers(setup: Path, root: str) -> list[list[str]]:
    """The rows of the contract, from the one that may import all others down to the one that may import none.

    Args:
        setup: ``setup.cfg``.
        root: the package, whose name is taken off.
    """
    config = configparser.ConfigParser()
    config.read_string(setup.read_text(encoding="utf-8"))
    rows = config[_SECTION]["layers"].strip().splitlines()
    return [[name.strip().removeprefix(f"{root}.") for name in row.split("|")] for row in rows]


def packages(folder: Path) -> dict[str, Path]:
    """Every package and module directly below the root package, by name, with the file that documents it."""
    modules = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("__")}
    inner = {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return dict(sorted((modules | inner).items()))


def imports_of(source: Path, root: str) -> list[str]:
    """The other packages of the root that a package's files import, wherever in the file, sorted."""
    files = source.parent.rglob("*.py") if source.name == "__init__.py" else [source]
    own = source.parent.name if source.name == "__init__.py" else source.stem
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" if node.module == root else node.module for alias in node.names]
            elif isinstance(node, ast.Import):
                inside = [alias.name for alias in node.names]
            else:
                continue
            found |= {name.split(".")[1] for name in inside if name.startswith(f"{root}.")}
    return sorted(found - {own})


def package_table(folder: Path) -> str:
    """What each package is for, by the beginning of its docstring, and which others it imports."""
    known = packages(folder)
    rows = [["package", "what it is for", "imports"]]
    for name, source in known.items():
        used = [one for one in imports_of(source, folder.name) if one in known]
        rows.append([f'<span id="package-{name}">`{name}`</span>', purpose(source), ", ".join(used) or "-"])
    return markdown_table(rows, numbers=False)


def file_tables(folder: Path) -> str:
    """The files of each package that is a folder, and the beginning of each one's docstring, folded."""
    blocks = []
    for name, source in packages(folder).items():
        files = sorted(path for path in source.parent.rglob("*.py") if path.name != "__init__.py")
        if source.name == "__init__.py":
            rows = [["file", "what it is for"], *([f"`{_dotted(path, folder)}`", purpose(path)] for path in files)]
            blocks.append(folded(name, [markdown_table(rows, numbers=False)]))
    return "\n\n".join(blocks)


def purpose(source: Path) -> str:
    """What a package or file is for: the beginning of its docstring, as Markdown."""
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "-"
    # A role is for Python's readers; here its target is code as all other.
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`"))


def _dotted(path: Path, folder: Path) -> str:
    return ".".join(path.relative_to(folder.parent).with_suffix("").parts)


def picture(rows: Sequence[Sequence[str]]) -> str:
    """The layers as an SVG: a row a layer, a box a package that leads to its line of the table."""
    height = len(rows) * (_HEIGHT + _GAP) + 2 * _MARGIN - _GAP
    left = 3 * _MARGIN + 20
    lines = [
        f'<div class="packages"><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="The packages in layers: each may import what is below it">',
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="4" refY="4" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<path class="arrow" d="M{_MARGIN + 10} {_MARGIN} V{height - 2 * _MARGIN}" marker-end="url(#head)"/>',
    ]
    for number, row in enumerate(rows):
        top = _MARGIN + number * (_HEIGHT + _GAP)
        width = (_WIDTH - left - _MARGIN - (len(row) - 1) * _GAP) / len(row)
        for place, name in enumerate(row):
            x = left + place * (width + _GAP)
            lines.append(
                f'<a href="#package-{name}"><rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{_HEIGHT}" rx="4"/>'
                f'<text x="{x + width / 2:.1f}" y="{top + _HEIGHT / 2 + 5:.0f}">{html.escape(name)}</text></a>'
            )
    return "\n".join([*lines, "</svg></div>"])

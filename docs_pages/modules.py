"""The reference of each package, and the lists of modules on the page of the architecture, from the source tree."""

import ast
import configparser
import re
from pathlib import Path

__all__ = ["import_order", "module_list", "reference_page"]


def import_order(setup: Path) -> str:
    """The layers of import-linter's contract as a text block, one layer per line.

    Args:
        setup: ``setup.cfg``.
    """
    config = configparser.ConfigParser()
    config.read_string(setup.read_text(encoding="utf-8"))
    return "```text\n" + config["importlinter:contract:layers"]["layers"].strip() + "\n```"


def module_list(package: Path) -> str:
    """One line per module of a package: its name and the first line of its docstring.

    Args:
        package: a folder of modules, or one module.
    """
    return "\n".join(f"- `{path.stem}`: {_summary(path)}" for path in _modules(package))


def reference_page(package: Path) -> str:
    """The public names of all modules of a package, for mkdocstrings.

    Args:
        package: a folder of modules, or one module.
    """
    about = _summary(package / "__init__.py") if package.is_dir() else ""
    names = [".".join(path.relative_to(package.parents[0].parent).with_suffix("").parts) for path in _modules(package)]
    return "\n\n".join([f"# dcsm_attr.{package.stem}", about, *(f"::: {name}" for name in names)]) + "\n"


def _modules(package: Path) -> list[Path]:
    return sorted(path for path in package.glob("*.py") if path.stem != "__init__") if package.is_dir() else [package]


def _summary(source: Path) -> str:
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "-"
    text = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`")
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)

"""A griffe extension that converts the Sphinx roles and formulas of docstrings to Markdown.

A role whose target does not exist is a warning, so that the strict build fails. A role whose target is on no page is
shown as code.
"""

import logging
import re
import textwrap
from collections.abc import Callable
from typing import Any

import griffe

__all__ = ["DocstringRoles", "as_markdown"]

_LOG = logging.getLogger("mkdocs.plugins.docstring_roles")
_ROLE = re.compile(r":(?P<role>func|class|meth|attr|mod|data|exc):`(?P<target>[^`]+)`")
_INLINE = re.compile(r":math:`(?P<latex>[^`]+)`")
_BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::[ ]*(?P<first>[^\n]*)\n(?P<rest>(?:(?:(?P=indent) +[^\n]*)?\n)*)", re.MULTILINE
)
# Captum's layout has an empty line after the title of a section, which the parser of Google's style does not accept.
_FREE_LINE = re.compile(r"^( *)(Args|Returns|Raises):\n\n+(?=\1 )", re.MULTILINE)
# Markdown needs an empty line before a list, which is missing after Captum's "*Tensor* of **attributions**:".
_LIST = re.compile(r"^( *)(\*[^\n]*:)\n(?=\1- )", re.MULTILINE)
_LITERAL = re.compile(r"^(?P<words>.*\S)::$", re.MULTILINE)


def as_markdown(text: str, path_of: Callable[[str], str | None]) -> str:
    """A docstring with roles, formulas and literal blocks as Markdown.

    Args:
        text: the docstring without its common indentation.
        path_of: returns the full path of a role's target, or None if it does not exist.

    Returns:
        Markdown, where ``:func:`~a.b``` is a reference with the text ``b``.
    """

    def reference(found: re.Match[str]) -> str:
        target = found["target"]
        path = path_of(target.lstrip("~"))
        name = target.rsplit(".", 1)[-1] if target.startswith("~") else target
        if path is None:
            return f"`{name}`"
        return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'

    def block(found: re.Match[str]) -> str:
        latex = " ".join(f"{found['first']}\n{textwrap.dedent(found['rest'])}".split())
        return f"{found['indent']}$$ {latex} $$\n\n"

    text = _BLOCK.sub(block, text + "\n").rstrip("\n")
    text = _LIST.sub(r"\1\2\n\n", text)
    text = _FREE_LINE.sub(r"\1\2:\n", text)
    text = _INLINE.sub(lambda found: f"${' '.join(found['latex'].split())}$", text)
    return _LITERAL.sub(r"\g<words>:", _ROLE.sub(reference, text))


class DocstringRoles(griffe.Extension):
    """Rewrites all docstrings of a package after loading."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by griffe when a package is loaded."""
        self._rewrite(pkg, pkg)

    def _rewrite(self, obj: Any, package: griffe.Module) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value, lambda name: self._path(name, obj, package))
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member, package)

    def _path(self, name: str, obj: Any, package: griffe.Module) -> str | None:
        path = _full_path(name, obj)
        if _exists(path, package):
            return path
        _LOG.warning("%s refers to %s, which does not exist.", obj.path, name)
        return None


def _full_path(name: str, obj: Any) -> str:
    first, _, rest = name.partition(".")
    try:
        path = obj.resolve(first)
    except griffe.NameResolutionError:
        return name
    return f"{path}.{rest}" if rest else path


def _exists(path: str, package: griffe.Module) -> bool:
    if path.split(".")[0] != package.name:
        return True
    found: Any = package
    for name in path.split(".")[1:]:
        if found.is_alias:
            found = package.modules_collection[found.target_path]
        if name not in found.members and not (found.is_class and name in found.all_members):
            return False
        found = found.members.get(name) or found.all_members[name]
    return True

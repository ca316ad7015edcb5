"""Names of the package in the text of pages as links to the reference."""

import re

__all__ = ["linked_names"]

_NAME = re.compile(r"<code>(?P<name>dcsm_attr(?:\.\w+)+)</code>")
# What must not hold a link: another link, a heading, a reference that a docstring made.
_CLOSED = re.compile(r"(<(a|h[1-6]|autorefs?|pre)\b.*?</\2>)", re.DOTALL)


def linked_names(page: str) -> str:
    """A page's HTML, where ``<code>dcsm_attr.attribution.maps.background</code>`` links to the reference."""
    parts = _CLOSED.split(page)
    # Of three parts each: free text, what is closed, its tag.
    texts = [_NAME.sub(r'<autoref identifier="\g<name>" optional>\g<0></autoref>', text) for text in parts[::3]]
    closed = [*parts[1::3], ""]
    return "".join(text + kept for text, kept in zip(texts, closed, strict=True))

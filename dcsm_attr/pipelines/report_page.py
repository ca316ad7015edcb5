"""The report's page: style, script and figures in one file, to which a browser adds nothing from anywhere."""

import json
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any

__all__ = ["page"]


def page(content: Mapping[str, Any]) -> str:
    """The page as HTML.

    Everything that comes from files goes into it as JSON, and from there into the page as text, never as markup. The
    policy in its head forbids a browser to load anything, and to run anything but the script that was shipped.

    Args:
        content: what ``assets/report.js`` shows, ready for JSON.

    Raises:
        ValueError: if a number in it is not finite.
    """
    style, script = _asset("report.css"), _asset("report.js")
    return Template(_asset("report.html")).substitute(
        style=style, style_digest=_digest(style), script=script, script_digest=_digest(script), content=_json(content)
    )


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the element that it stands in, nor begin a comment there."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("dcsm_attr") / "assets" / name).read_text(encoding="utf-8")

"""Formulas as MathML, which browsers draw without a script, a font, or a network."""

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_mathml"]

# The generic output of pymdownx.arithmatex for $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)
# latex2mathml sets no space after the name of a function: a letter after it would look like a part of the name.
_FUNCTION = re.compile(r"(<mi>(?:log|ln|exp|tanh)</mi>)(?=<m(?:i|n|sub|sup|subsup)>)")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def with_mathml(page: str) -> str:
    """A page's HTML with its formulas as MathML.

    Raises:
        ValueError: naming the formula, if latex2mathml does not support one of its commands.
    """
    return _FORMULA.sub(_convert, page)


def _convert(found: re.Match[str]) -> str:
    inline = found["inline"]
    latex = html.unescape(found["block"] if inline is None else inline).strip()
    mathml = convert(latex, display="block" if inline is None else "inline")
    mathml = _FUNCTION.sub(r'\1<mspace width="0.17em" />', mathml)
    unknown = _COMMAND.search(html.unescape(mathml))
    if unknown:
        raise ValueError(f"latex2mathml does not support {unknown[0]} in the formula {latex!r}: write it without.")
    return mathml if inline is not None else f'<div class="formula">{mathml}</div>'

"""Formulas as MathML, which browsers draw by themselves: no script, no font, no network."""

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_mathml"]

# What pymdownx.arithmatex leaves of $...$ and $$...$$ in its generic form.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.DOTALL
)
# latex2mathml leaves no room behind the name of a function, so that a letter after it is read as a part of the name.
_FUNCTION = re.compile(r"(<mi>(?:log|ln|exp|tanh)</mi>)(?=<m(?:i|n|sub|sup|subsup)>)")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def with_mathml(page: str) -> str:
    """A page's HTML with its formulas as MathML.

    Raises:
        ValueError: naming the formula, if it has a command that is not known.
    """
    return _FORMULA.sub(_converted, page)


def _converted(found: re.Match[str]) -> str:
    inline = found["inline"]
    latex = html.unescape(found["block"] if inline is None else inline).strip()
    mathml = _FUNCTION.sub(
        r'\1<mspace width="0.17em" />', convert(latex, display="block" if inline is None else "inline")
    )
    unknown = _COMMAND.search(html.unescape(mathml))
    if unknown:
        raise ValueError(f"{unknown[0]} in the formula {latex!r} is not known to latex2mathml: write it without.")
    return mathml if inline is not None else f'<div class="formula">{mathml}</div>'

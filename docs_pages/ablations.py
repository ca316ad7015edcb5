"""What ``python -m benchmarks.ablation`` wrote: tables of one title, network by network."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dcsm_attr.evaluation.report import markdown_table
from docs_pages.evaluations import class_table, percent
from docs_pages.layout import folded, tabs
from docs_pages.results import origin

__all__ = ["ablation", "by_title", "network_name", "sections"]

_OWN = "own background, before CRF"
_SHARES = ("coverage", "mistaken", "spilled")
_PROTOCOL_TEXTS = {"known": "known classes", "detected": "detected classes"}


def network_name(content: Mapping[str, Any]) -> str:
    """The network of a result and what it was told, short enough for a tab."""
    about = content["about"]
    return f"{about['network']}, {about['head']} head, {_PROTOCOL_TEXTS[content['protocol']]}"


def by_title(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Results by the title of their table, then by name; first the tables of the paper, in its order."""
    titles: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, content in contents.items():
        titles.setdefault(content["title"], {})[name] = content
    return dict(sorted(titles.items(), key=lambda item: _place(item[0])))


def _place(title: str) -> tuple[float, str]:
    number = re.search(r"\(Table (\d+) of the paper\)", title)
    return (float(number[1]) if number else math.inf, title)


def sections(contents: Mapping[str, Mapping[str, Any]], pictures: Mapping[str, Sequence[str]]) -> list[str]:
    """A heading for each table, and below it a tab for each network.

    Args:
        contents: of the JSON files, by name.
        pictures: the targets of each one's pictures.
    """
    blocks = []
    for title, group in by_title(contents).items():
        blocks.append(f"### {title}")
        blocks.append(tabs({network_name(one): ablation(one, pictures[name]) for name, one in group.items()}))
    return blocks


def ablation(content: Mapping[str, Any], pictures: Sequence[str]) -> list[str]:
    """One measured table: where, the figures, the pictures, each class where the title promises it."""
    blocks = [content["data"], _means(content["rows"])]
    blocks += [f"![{content['title']}]({picture})" for picture in pictures]
    if "each class" in content["title"]:
        blocks.append(folded("Each class", [_classes(content["rows"])]))
    if "mean IoU over exponents" in content["rows"][0]:
        blocks.append(folded("Over the exponent, where it was chosen", [_exponents(content["rows"])]))
    return [*blocks, origin(content["measured"])]


def _means(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0]["mean IoU"])
    table = [["", "", "exponent", *columns, *_SHARES]]
    for row in rows:
        # GrabCut gives labels, and no maps that there could be figures of before the CRF.
        shares = [_first(row[name], (_OWN, "own background, after CRF")) for name in _SHARES]
        exponent = "-" if row["exponent"] is None else f"{row['exponent']:g}"
        means = [percent(row["mean IoU"][column]) for column in columns]
        table.append([row["series"], row["label"], exponent, *means, *map(percent, shares)])
    return markdown_table(table)


def _first(values: Mapping[str, float | None], names: Sequence[str]) -> float | None:
    return next((values[name] for name in names if values[name] is not None), None)


def _classes(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = {
        f"{row['series']}, {row['label']}, {step} CRF": row["IoU"][f"own background, {step} CRF"]
        for row in rows
        for step in ("before", "after")
        if row["IoU"][f"own background, {step} CRF"] is not None
    }
    return class_table(columns)


def _exponents(rows: Sequence[Mapping[str, Any]]) -> str:
    over = [row["mean IoU over exponents"] for row in rows]
    exponents = sorted({exponent for one in over for exponent in one}, key=float)
    table = [["mean IoU in %", "", *exponents]]
    for row, one in zip(rows, over, strict=True):
        table.append([row["series"], row["label"], *(percent(one.get(exponent)) for exponent in exponents)])
    return markdown_table(table)

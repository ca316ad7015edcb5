"""What ``dcsm-attr evaluate``, ``miou`` and ``train`` wrote, as tables."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from dcsm_attr.evaluation.report import markdown_table
from docs_pages.layout import folded
from docs_pages.results import origin

__all__ = ["class_table", "comparison", "given_options", "label_table", "percent", "rows_per_class", "training_log"]

_STEPS = ("before the CRF", "after the CRF")
_PROTOCOLS = ("known", "detected")
# What every evaluation is told, and no setting of the method.
_SAME_EVERYWHERE = ("--weights", "--split", "--protocol", "--count")


def percent(share: float | None) -> str:
    """A fraction of one as per cent, with one decimal; a hyphen where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def given_options(command: str) -> str:
    """The options of a command that say what was evaluated: not the data, and not what is asked of it."""
    options = [part for part in shlex.split(command) if part.startswith("--")]
    chosen = [option for option in options if option.split("=")[0] not in _SAME_EVERYWHERE]
    return f"`{' '.join(chosen).replace('=', ' ')}`" if chosen else "none: `--preset paper`"


def comparison(contents: Mapping[str, Mapping[str, Any]], links: Mapping[str, str]) -> str:
    """Evaluations side by side, one a row.

    Args:
        contents: of ``evaluation.json`` files, by name.
        links: where the report of each stands.
    """
    head = [f"{protocol}, {step}" for protocol in _PROTOCOLS for step in _STEPS]
    rows = [["result", "options", *head, "mean AP of the classifier", "photographs"]]
    for name, content in contents.items():
        by_protocol = {one["protocol"]: one for one in content["evaluations"]}
        some = next(iter(by_protocol.values()))
        rows.append(
            [
                f"[{name.removesuffix('.json')}]({links[name]})",
                given_options(content["measured"]["command"]),
                *(_mean(by_protocol.get(protocol), step) for protocol in _PROTOCOLS for step in _STEPS),
                percent(some["mean average precision of the classifier"]),
                str(some["photographs"]),
            ]
        )
    return markdown_table(rows)


def _mean(evaluation: Mapping[str, Any] | None, step: str) -> str:
    overlap = evaluation and evaluation[step]
    return percent(overlap["mean IoU"]) if overlap else "-"


def rows_per_class(name: str, content: Mapping[str, Any]) -> str:
    """The IoU of every class of one evaluation, and where it was measured, folded."""
    columns = {
        f"{one['protocol']}, {step}": one[step]["IoU"]
        for one in content["evaluations"]
        for step in _STEPS
        if one[step] is not None
    }
    return folded(f"Each class: {name}", [content["data"], class_table(columns), origin(content["measured"])])


def class_table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """The IoU of every class, one a row, by the title of the column."""
    rows = [["IoU in %", *columns]]
    rows += [[name, *(percent(one[name]) for one in columns.values())] for name in next(iter(columns.values()))]
    return markdown_table(rows)


def label_table(contents: Mapping[str, Mapping[str, Any]]) -> str:
    """Label maps that ``dcsm-attr miou`` compared with masks, one a row, by the name of each."""
    columns = ("mean IoU", "unknown", "precision of foreground", "precision of background")
    rows = [["label maps", *(f"{column} in %" for column in columns), "photographs"]]
    rows += [
        [name, *(percent(content[column]) for column in columns), str(content["photographs"])]
        for name, content in contents.items()
    ]
    return markdown_table(rows)


def training_log(rows: Sequence[Sequence[str]]) -> str:
    """``log.csv`` of a training as it stands."""
    head, *body = rows
    return markdown_table([[title.replace("_", " ") for title in head], *body])

"""Evaluations as tables for a reader, and as JSON for a program.

Tables in Markdown.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dcsm_attr.evaluation.result import Confusion, Evaluation, Protocol, measured_on
from dcsm_attr.io import atomic_path, flatten_settings, make_writable_folder

__all__ = ["format_value", "markdown_table", "provenance_section", "write_report"]


def markdown_table(rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Rows of cells as a table.

    Args:
        rows: the first one is the head.
        numbers: whether what stands behind the first column is aligned to the right, and not to the left, as words are.
    """
    head, *body = rows
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *body)]
    return "\n".join([lines[0], "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1), *lines[1:]])


def format_value(value: Any) -> str:
    """A setting as a cell."""
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def provenance_section(facts: Mapping[str, Any]) -> str:
    """The last section of a report: a table of what its figures were measured with."""
    return "## Measured with\n\n" + markdown_table([["", ""], *([name, format_value(facts[name])] for name in facts)])


_PROTOCOL_TEXTS = {
    Protocol.DETECTED: "The segmenter is told nothing: the classes of an image are those that the classifier "
    "detects, and where it detects none, its best one.",
    Protocol.KNOWN: "The segmenter is told which classes are in an image, as when pseudo-labels are made for "
    "training. These figures do not compare with those of detected classes.",
}

_MEAN = "A mean is over the labels that occur, in a mask or in a label map; the others are marked with a hyphen."


def write_report(
    evaluations: Mapping[str, Sequence[Evaluation]], folder: str | Path, *, command: str, data: str
) -> list[Path]:
    """Write ``evaluation.md`` and ``evaluation.json`` into a folder, which is created if missing.

    There is one table a protocol: a row for each class, a column for each set of label maps (before the CRF, after it).
    The JSON file has the same as fractions of one, NaN as null, and the confusion matrices.

    Args:
        evaluations: by the name of the setting; at most one a protocol. All are of the same classes.
        folder: where to write; an earlier report is replaced.
        command: that gives them, see :func:`measured_on`.
        data: what was measured on, in words; begins the report.

    Returns:
        The paths written.

    Raises:
        OSError: naming the folder, if it cannot be written to; no half-written file stays.
        ValueError: if there is no evaluation, a setting has two of one protocol, or classes differ.
    """
    _check(evaluations)
    folder = make_writable_folder(folder)
    measured = measured_on(command)
    content = {
        "measured": measured,
        "data": data,
        "evaluations": [_content(name, one) for name, group in evaluations.items() for one in group],
    }
    texts = {
        "evaluation.md": _markdown(evaluations, measured, data),
        "evaluation.json": json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _check(evaluations: Mapping[str, Sequence[Evaluation]]) -> None:
    if not any(evaluations.values()):
        raise ValueError("evaluations is empty: at least one is needed.")
    for name, group in evaluations.items():
        protocols = [evaluation.protocol.value for evaluation in group]
        if len(set(protocols)) < len(protocols):
            raise ValueError(f"the setting {name!r} has two evaluations of one protocol: {', '.join(protocols)}.")
    if len({evaluation.class_names for group in evaluations.values() for evaluation in group}) > 1:
        raise ValueError("all evaluations of a report must be of the same classes; write a report for each.")


def _content(name: str, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "setting": name,
        "protocol": evaluation.protocol.value,
        "photographs": len(evaluation.photographs),
        "skipped": dict(evaluation.skipped),
        "nothing detected": list(evaluation.nothing_detected),
        "before the CRF": _overlap(evaluation.unrefined, evaluation.class_names),
        "after the CRF": _overlap(evaluation.refined, evaluation.class_names) if _has_crf(evaluation) else None,
        "average precision of the classifier": _named(evaluation.average_precision, evaluation.class_names),
        "mean average precision of the classifier": _number(evaluation.mean_average_precision),
        "settings": dict(evaluation.settings),
    }


def _has_crf(evaluation: Evaluation) -> bool:
    return evaluation.settings["crf"] is not None


def _overlap(confusion: Confusion, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "mean IoU": _number(confusion.mean_iou),
        "IoU": _named(confusion.iou, ("background", *class_names)),
        "confusion matrix (row: truth, column: prediction)": confusion.counts.tolist(),
    }


def _named(values: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values.tolist(), strict=True)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _markdown(evaluations: Mapping[str, Sequence[Evaluation]], measured: Mapping[str, Any], data: str) -> str:
    blocks = ["# Evaluation", data, _MEAN]
    for protocol in Protocol:
        chosen = {name: one for name, group in evaluations.items() for one in group if one.protocol is protocol}
        if chosen:
            blocks += _section(protocol, chosen)
    return "\n\n".join([*blocks, provenance_section(measured)]) + "\n"


def _section(protocol: Protocol, evaluations: Mapping[str, Evaluation]) -> list[str]:
    blocks = [
        f'## Protocol "{protocol.value}"',
        _PROTOCOL_TEXTS[protocol],
        _iou_table(evaluations),
        _facts_table(evaluations),
    ]
    for name, evaluation in evaluations.items():
        if evaluation.skipped:
            reasons = "\n".join(f"- `{photograph}`: {reason}" for photograph, reason in evaluation.skipped.items())
            blocks.append(f"Skipped in {name}, in no figure:\n\n{reasons}")
    return blocks


def _iou_table(evaluations: Mapping[str, Evaluation]) -> str:
    columns: dict[str, Confusion] = {}
    for name, evaluation in evaluations.items():
        columns[f"{name}, before the CRF" if _has_crf(evaluation) else f"{name}, no CRF"] = evaluation.unrefined
        if _has_crf(evaluation):
            columns[f"{name}, after the CRF"] = evaluation.refined
    class_names = next(iter(evaluations.values())).class_names
    values = [confusion.iou.tolist() for confusion in columns.values()]
    rows = [["IoU in %", *columns]]
    rows += [
        [name, *map(_percent, of_class)]
        for name, of_class in zip(("background", *class_names), zip(*values, strict=True), strict=True)
    ]
    rows.append(["**mean**", *(f"**{_percent(confusion.mean_iou)}**" for confusion in columns.values())])
    return markdown_table(rows)


def _facts_table(evaluations: Mapping[str, Evaluation]) -> str:
    """What stands beneath the figures: how many images, how good the classifier is, and the settings."""
    settings = [flatten_settings(evaluation.settings) for evaluation in evaluations.values()]
    facts: dict[str, list[Any]] = {
        "photographs": [len(evaluation.photographs) for evaluation in evaluations.values()],
        "skipped": [len(evaluation.skipped) for evaluation in evaluations.values()],
        "nothing detected": [len(evaluation.nothing_detected) for evaluation in evaluations.values()],
        "mean AP of the classifier in %": [_percent(one.mean_average_precision) for one in evaluations.values()],
    }
    for key in {key: None for setting in settings for key in setting}:
        facts[f"`{key}`"] = [setting.get(key, "-") for setting in settings]
    return markdown_table([["", *evaluations], *([name, *map(format_value, values)] for name, values in facts.items())])


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"

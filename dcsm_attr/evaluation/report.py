"""Reports of evaluations: tables in Markdown for readers, and JSON for programs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dcsm_attr.evaluation.result import PROTOCOLS, Confusion, Evaluation, ProtocolName, run_environment
from dcsm_attr.io import atomic_path, flatten_settings, make_writable_folder

__all__ = ["format_value", "markdown_table", "provenance_section", "write_report"]


def write_report(
    evaluations: Mapping[str, Sequence[Evaluation]], folder: str | Path, *, command: str, data: str
) -> list[Path]:
    """Write ``evaluation.md`` and ``evaluation.json`` into a folder, which is created if missing.

    There is one table per protocol, with one row per class and one column per set of label maps (before and after the
    CRF). The JSON file contains the same numbers as fractions of one, null for NaN, and the confusion matrices.

    Args:
        evaluations: by name; at most one per protocol and name. All have the same classes.
        folder: where to write; an earlier report is replaced.
        command: the command that gives these results, see :func:`dcsm_attr.evaluation.result.run_environment`.
        data: describes the images; the first paragraph of the report.

    Returns:
        The paths of the two files.

    Raises:
        OSError: naming the folder, if it cannot be written to; no incomplete file remains.
        ValueError: if there is no evaluation, a name has two of the same protocol, or classes differ.
    """
    _check_evaluations(evaluations)
    folder = make_writable_folder(folder)
    environment = run_environment(command)
    content = {
        "measured": environment,
        "data": data,
        "evaluations": [_to_json(name, one) for name, group in evaluations.items() for one in group],
    }
    texts = {
        "evaluation.md": _to_markdown(evaluations, environment, data),
        "evaluation.json": json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _check_evaluations(evaluations: Mapping[str, Sequence[Evaluation]]) -> None:
    if not any(evaluations.values()):
        raise ValueError("evaluations is empty: at least one is needed.")
    for name, group in evaluations.items():
        protocols = [evaluation.protocol for evaluation in group]
        if len(set(protocols)) < len(protocols):
            raise ValueError(f"{name!r} has two evaluations of the same protocol: {', '.join(protocols)}.")
    if len({evaluation.class_names for group in evaluations.values() for evaluation in group}) > 1:
        raise ValueError("all evaluations of a report must have the same classes; write one report for each.")


def _to_json(name: str, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "setting": name,
        "protocol": evaluation.protocol,
        "images": len(evaluation.images),
        "skipped": dict(evaluation.skipped),
        "nothing detected": list(evaluation.nothing_detected),
        "before the CRF": _confusion_to_json(evaluation.unrefined, evaluation.class_names),
        "after the CRF": _confusion_to_json(evaluation.refined, evaluation.class_names)
        if _has_crf(evaluation)
        else None,
        "average precision of the classifier": _by_name(evaluation.average_precision, evaluation.class_names),
        "mean average precision of the classifier": _nan_to_none(evaluation.mean_average_precision),
        "settings": dict(evaluation.settings),
    }


def _has_crf(evaluation: Evaluation) -> bool:
    return evaluation.settings["crf"] is not None


def _confusion_to_json(confusion: Confusion, class_names: Sequence[str]) -> dict[str, Any]:
    return {
        "mean IoU": _nan_to_none(confusion.mean_iou),
        "IoU": _by_name(confusion.iou, ("background", *class_names)),
        "confusion matrix (row: truth, column: prediction)": confusion.counts.tolist(),
    }


def _by_name(values: Tensor, names: Sequence[str]) -> dict[str, float | None]:
    return {name: _nan_to_none(value) for name, value in zip(names, values.tolist(), strict=True)}


def _nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value


_PROTOCOL_TEXTS: dict[ProtocolName, str] = {
    "detected": "The segmenter knows nothing about an image: its classes are those that the classifier detects, or the "
    "best one if it detects none.",
    "known": "The segmenter knows which classes are in an image, as for pseudo-labels for training. These figures "
    "cannot be compared with those of detected classes.",
}

_MEAN = "Means are over the labels that occur in a mask or in a label map; the others are marked with a hyphen."


def _to_markdown(evaluations: Mapping[str, Sequence[Evaluation]], environment: Mapping[str, Any], data: str) -> str:
    blocks = ["# Evaluation", data, _MEAN]
    for protocol in PROTOCOLS:
        chosen = {name: one for name, group in evaluations.items() for one in group if one.protocol == protocol}
        if chosen:
            blocks += _protocol_section(protocol, chosen)
    return "\n\n".join([*blocks, provenance_section(environment)]) + "\n"


def _protocol_section(protocol: ProtocolName, evaluations: Mapping[str, Evaluation]) -> list[str]:
    blocks = [
        f'## Protocol "{protocol}"',
        _PROTOCOL_TEXTS[protocol],
        _iou_table(evaluations),
        _settings_table(evaluations),
    ]
    for name, evaluation in evaluations.items():
        if evaluation.skipped:
            reasons = "\n".join(f"- `{image}`: {reason}" for image, reason in evaluation.skipped.items())
            blocks.append(f"Skipped in {name}, and not counted:\n\n{reasons}")
    return blocks


def _iou_table(evaluations: Mapping[str, Evaluation]) -> str:
    columns: dict[str, Confusion] = {}
    for name, evaluation in evaluations.items():
        columns[f"{name}, before the CRF" if _has_crf(evaluation) else f"{name}, no CRF"] = evaluation.unrefined
        if _has_crf(evaluation):
            columns[f"{name}, after the CRF"] = evaluation.refined
    labels = ("background", *next(iter(evaluations.values())).class_names)
    iou_by_label = zip(*(confusion.iou.tolist() for confusion in columns.values()), strict=True)
    rows = [["IoU in %", *columns]]
    rows += [[label, *map(_percent, values)] for label, values in zip(labels, iou_by_label, strict=True)]
    rows.append(["**mean**", *(f"**{_percent(confusion.mean_iou)}**" for confusion in columns.values())])
    return markdown_table(rows)


def _settings_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return the table of the number of images, the classifier's mean AP, and the settings."""
    settings = [flatten_settings(evaluation.settings) for evaluation in evaluations.values()]
    rows: dict[str, list[Any]] = {
        "images": [len(evaluation.images) for evaluation in evaluations.values()],
        "skipped": [len(evaluation.skipped) for evaluation in evaluations.values()],
        "nothing detected": [len(evaluation.nothing_detected) for evaluation in evaluations.values()],
        "mean AP of the classifier in %": [_percent(one.mean_average_precision) for one in evaluations.values()],
    }
    for key in {key: None for setting in settings for key in setting}:
        rows[f"`{key}`"] = [setting.get(key, "-") for setting in settings]
    return markdown_table([["", *evaluations], *([name, *map(format_value, values)] for name, values in rows.items())])


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def markdown_table(rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Format rows of cells as a Markdown table.

    Args:
        rows: the first row is the header.
        numbers: whether all columns but the first are aligned to the right (numbers) or to the left (words).
    """
    header, *body = rows
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, *body)]
    return "\n".join([lines[0], "|---|" + ("---:|" if numbers else "---|") * (len(header) - 1), *lines[1:]])


def format_value(value: Any) -> str:
    """Format the value of a setting for a cell."""
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def provenance_section(environment: Mapping[str, Any]) -> str:
    """Return the last section of a report, a table of :func:`dcsm_attr.evaluation.result.run_environment`."""
    rows = [[name, format_value(value)] for name, value in environment.items()]
    return "## Measured with\n\n" + markdown_table([["", ""], *rows])

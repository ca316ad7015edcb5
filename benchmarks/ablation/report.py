"""Write a measured table as Markdown, JSON and figures."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.ablation.measure import Measurement
from benchmarks.ablation.tables import Row
from dcsm_attr.evaluation.report import markdown_table, provenance_section
from dcsm_attr.evaluation.result import Confusion, run_environment
from dcsm_attr.io import atomic_buffer, atomic_path, make_writable_folder

__all__ = ["ablation_figure", "exponents_figure", "write_ablation"]

_PROTOCOL_TEXTS = {
    "detected": "The classes of an image are those that the classifier detects.",
    "known": "The classes of an image are known (image-level labels).",
}

# Title, whether after the CRF, whether with the method's own background.
_COLUMNS = (
    ("Eq. 7, before CRF", False, False),
    ("Eq. 7, after CRF", True, False),
    ("own background, before CRF", False, True),
    ("own background, after CRF", True, True),
)

# Properties of a confusion.
_SHARES = ("coverage", "mistaken", "spilled")

_LINE_STYLES = ("--", "-", ":", "-.")
# Distinguishable for readers with color vision deficiency (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
# Number of letters from which tick labels are rotated.
_ROTATE_FROM_LENGTH = 8


def write_ablation(
    measurement: Measurement, folder: str | Path, name: str, *, command: str, data: str, about: Mapping[str, Any]
) -> list[Path]:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into a folder, which is created if missing.

    For a table with :attr:`~benchmarks.ablation.tables.Table.per_exponent`, ``NAME-exponents.png`` is written too.

    Args:
        measurement: of the table.
        folder: where to write; earlier files with these names are replaced.
        name: stem of the file names.
        command: reproduces the result, see :func:`dcsm_attr.evaluation.result.run_environment`.
        data: a sentence about the images.
        about: facts about the network and other settings, with ``class_names`` and ``figure``, the name of the figure's
            file.

    Returns:
        The paths written.

    Raises:
        OSError: if the folder cannot be written to.
    """
    folder = make_writable_folder(folder)
    measured = run_environment(command)
    paths = [folder / f"{name}{ending}" for ending in (".md", ".json", ".png")]
    content = {
        "title": measurement.table.title,
        "protocol": measurement.protocol,
        "data": data,
        "about": dict(about),
        "measured": measured,
        "images": measurement.result.num_images,
        "skipped": {**measurement.tuning_result.skipped, **measurement.result.skipped},
        "rows": [_row_content(measurement, row, about["class_names"]) for row in measurement.table.rows],
    }
    with atomic_path(paths[0]) as path:
        path.write_text(_markdown(measurement, measured, data, about), encoding="utf-8")
    with atomic_path(paths[1]) as path:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_buffer(paths[2]) as file:
        ablation_figure(measurement).savefig(file, dpi=110)
    if measurement.table.per_exponent:
        paths.append(folder / _exponents_figure_name(name))
        with atomic_buffer(paths[3]) as file:
            exponents_figure(measurement).savefig(file, dpi=110)
    return paths


def _exponents_figure_name(name: str) -> str:
    return f"{name}-exponents.png"


def _row_content(measurement: Measurement, row: Row, class_names: Sequence[str]) -> dict[str, Any]:
    confusions = {
        title: measurement.confusion(row.method, refined=refined, own_background=own)
        for title, refined, own in _COLUMNS
    }
    labels = ("background", *class_names)
    content: dict[str, Any] = {
        "series": row.series,
        "label": row.label,
        "method": row.method.name,
        "exponent": measurement.exponents.get(row.method.name),
    }
    if measurement.table.per_exponent:
        content["mean IoU over exponents"] = {
            f"{exponent:g}": _number(one.mean_iou)
            for exponent, one in measurement.confusions_by_exponent(row.method).items()
        }
    content["mean IoU"] = {title: None if one is None else _number(one.mean_iou) for title, one in confusions.items()}
    content["IoU"] = {
        title: None if one is None else dict(zip(labels, map(_number, one.iou.tolist()), strict=True))
        for title, one in confusions.items()
    }
    for name in _SHARES:
        content[name] = {
            title: None if one is None else _number(getattr(one, name)) for title, one in confusions.items()
        }
    return content


def _number(share: float) -> float | None:
    return None if math.isnan(share) else round(share, 5)


def _markdown(measurement: Measurement, measured: Mapping[str, Any], data: str, about: Mapping[str, Any]) -> str:
    blocks = [
        f"# {measurement.table.title}",
        f"Mean IoU in %. {_PROTOCOL_TEXTS[measurement.protocol]} {data} The exponent of the background, which sets "
        f"where the foreground begins, is the best one of each method on the images on which it was chosen. The last "
        f"three columns describe the labels with that background before the CRF: coverage is the share of the true "
        f"foreground that is labeled as foreground, mistaken the share of this with a wrong class, spilled the share "
        f"of labeled foreground that is background.",
        markdown_table(_main_table(measurement)),
        f"![{measurement.table.title}]({about['figure']})",
    ]
    if measurement.table.rows_per_class:
        blocks += ["## Each class", markdown_table(_class_table(measurement, about["class_names"]))]
    if measurement.table.per_exponent:
        blocks += [
            "## The exponent of the background",
            f"On the {measurement.tuning_result.num_images} images on which it is chosen, compared on the canvas.",
            markdown_table(_exponents_table(measurement)),
            f"![Over the exponent]({_exponents_figure_name(about['figure'].removesuffix('.png'))})",
        ]
    if measurement.result.skipped:
        skipped = "\n".join(f"- `{name}`: {reason}" for name, reason in measurement.result.skipped.items())
        blocks.append(f"Skipped, not in any figure:\n\n{skipped}")
    facts = {**{key: value for key, value in about.items() if key not in ("class_names", "figure")}, **measured}
    return "\n\n".join([*blocks, provenance_section(facts)]) + "\n"


def _main_table(measurement: Measurement) -> list[list[str]]:
    rows = [["", measurement.table.axis, "exponent", *(title for title, _, _ in _COLUMNS), *_SHARES]]
    for row in measurement.table.rows:
        exponent = measurement.exponents.get(row.method.name)
        means = [
            _percent(measurement.confusion(row.method, refined=refined, own_background=own))
            for _, refined, own in _COLUMNS
        ]
        labeled = measurement.confusion(row.method, refined=row.method.labels is not None, own_background=True)
        shares = ["-" if labeled is None else f"{100 * getattr(labeled, name):.0f}" for name in _SHARES]
        rows.append([row.series, row.label, "-" if exponent is None else f"{exponent:g}", *means, *shares])
    return rows


def _class_table(measurement: Measurement, class_names: Sequence[str]) -> list[list[str]]:
    columns = {
        f"{row.series}, {row.label}, {'after' if refined else 'before'} CRF": one
        for row in measurement.table.rows
        for refined in (False, True)
        if (one := measurement.confusion(row.method, refined=refined, own_background=True)) is not None
    }
    rows = [["IoU in %", *columns]]
    ious = [one.iou.tolist() for one in columns.values()]
    for number, name in enumerate(("background", *class_names)):
        rows.append([name, *("-" if math.isnan(iou[number]) else f"{100 * iou[number]:.1f}" for iou in ious)])
    return [*rows, ["**mean**", *(f"**{_percent(one)}**" for one in columns.values())]]


def _exponents_table(measurement: Measurement) -> list[list[str]]:
    by_row = [measurement.confusions_by_exponent(row.method) for row in measurement.table.rows]
    exponents = sorted({exponent for one in by_row for exponent in one})
    rows = [["mean IoU in %", "", *(f"{exponent:g}" for exponent in exponents)]]
    for row, one in zip(measurement.table.rows, by_row, strict=True):
        rows.append([row.series, row.label, *(_percent(one.get(exponent)) for exponent in exponents)])
    return rows


def _percent(confusion: Confusion | None) -> str:
    return "-" if confusion is None else f"{100 * confusion.mean_iou:.1f}"


def ablation_figure(measurement: Measurement) -> Figure:
    """Draw mean IoU over the axis of the table, before and after the CRF, each method with its own background.

    Args:
        measurement: of the table.

    Returns:
        The figure: curves where the labels of a series are numbers, points where they are names.
    """
    labels = list(dict.fromkeys(row.label for row in measurement.table.rows))
    figure = Figure(figsize=(max(5.0, 0.75 * len(labels) + 2.2), 3.6), layout="constrained")
    axes = figure.subplots()
    series: dict[str, list[Row]] = {}
    for row in measurement.table.rows:
        series.setdefault(row.series, []).append(row)
    for color, rows in zip(cycle(_COLORS), series.values(), strict=False):
        for refined in (False, True):
            _draw_series(axes, measurement, labels, rows, refined, color)
    rotated = max(map(len, labels)) >= _ROTATE_FROM_LENGTH
    axes.set_xticks(range(len(labels)), labels, rotation=30 if rotated else 0, fontsize=8)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right" if rotated else "center")
    axes.set_xlabel(measurement.table.axis)
    axes.set_title(measurement.table.title, fontsize=9, wrap=True)
    axes.grid(axis="y", alpha=0.3)
    _label_mean_iou(axes)
    return figure


def _draw_series(
    axes: Axes, measurement: Measurement, labels: list[str], rows: list[Row], refined: bool, color: str
) -> None:
    points = [
        (labels.index(row.label), 100 * confusion.mean_iou)
        for row in rows
        if (confusion := measurement.confusion(row.method, refined=refined, own_background=True)) is not None
    ]
    if not points:
        return
    numeric = all(row.label.replace(".", "").isdecimal() for row in rows)
    style = "-" if refined else "--"
    axes.plot(
        *zip(*points, strict=True),
        color=color,
        linestyle=style if numeric else "none",
        marker="s" if refined else "o",
        markersize=5,
        markerfacecolor=color if refined else "white",
        label=f"{rows[0].series}, {'after' if refined else 'before'} the CRF",
    )


def exponents_figure(measurement: Measurement) -> Figure:
    """Draw mean IoU over the exponent of the background, on the images on which it is chosen.

    Args:
        measurement: of a table.

    Returns:
        The figure, with one curve per row.
    """
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.subplots()
    series = list(dict.fromkeys(row.series for row in measurement.table.rows))
    styles = dict(zip(dict.fromkeys(row.label for row in measurement.table.rows), cycle(_LINE_STYLES), strict=False))
    for row in measurement.table.rows:
        confusions = measurement.confusions_by_exponent(row.method)
        if confusions:
            axes.plot(
                list(confusions),
                [100 * one.mean_iou for one in confusions.values()],
                color=_COLORS[series.index(row.series) % len(_COLORS)],
                linestyle=styles[row.label],
                marker=".",
                label=f"{row.series}, {row.label}",
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("exponent of the background")
    axes.grid(alpha=0.3)
    _label_mean_iou(axes)
    return figure


def _label_mean_iou(axes: Axes) -> None:
    axes.set_ylabel("mean IoU in %")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

"""A measured table for a reader, for a program, and as a picture.

A table as a picture.
"""

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
from dcsm_attr.evaluation.result import Confusion, Protocol, measured_on
from dcsm_attr.io import atomic_buffer, atomic_path, make_writable_folder

__all__ = ["ablation_figure", "exponents_figure", "write_ablation"]


_STYLES = ("--", "-", ":", "-.")
# Apart from each other also for those who see few colors (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
# Letters of a label that needs more room than its place.
_ROTATE_FROM_LENGTH = 8


def ablation_figure(measurement: Measurement) -> Figure:
    """Mean IoU over what the table varies, before the CRF and after it, each method with its own background.

    Args:
        measurement: of the table.

    Returns:
        The figure: a curve where the places are numbers, in order; points where they are names.
    """
    labels = list(dict.fromkeys(row.label for row in measurement.table.rows))
    figure = Figure(figsize=(max(5.0, 0.75 * len(labels) + 2.2), 3.6), layout="constrained")
    axes = figure.subplots()
    series: dict[str, list[Row]] = {}
    for row in measurement.table.rows:
        series.setdefault(row.series, []).append(row)
    for color, rows in zip(cycle(_COLORS), series.values(), strict=False):
        for refined in (False, True):
            _draw(axes, measurement, labels, rows, refined, color)
    slanting = max(map(len, labels)) >= _ROTATE_FROM_LENGTH
    axes.set_xticks(range(len(labels)), labels, rotation=30 if slanting else 0, fontsize=8)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("right" if slanting else "center")
    axes.set_xlabel(measurement.table.axis)
    axes.set_ylabel("mean IoU in %")
    axes.set_title(measurement.table.title, fontsize=9, wrap=True)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def exponents_figure(measurement: Measurement) -> Figure:
    """Mean IoU over the exponent of the background, on the images that it is chosen on.

    Args:
        measurement: of a table.

    Returns:
        The figure: a curve for each row.
    """
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.subplots()
    series = list(dict.fromkeys(row.series for row in measurement.table.rows))
    styles = dict(zip(dict.fromkeys(row.label for row in measurement.table.rows), cycle(_STYLES), strict=False))
    for row in measurement.table.rows:
        found = measurement.confusions_by_exponent(row.method)
        if found:
            axes.plot(
                list(found),
                [100 * confusion.mean_iou for confusion in found.values()],
                color=_COLORS[series.index(row.series) % len(_COLORS)],
                linestyle=styles[row.label],
                marker=".",
                label=f"{row.series}, {row.label}",
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("exponent of the background")
    axes.set_ylabel("mean IoU in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw(
    axes: Axes,
    measurement: Measurement,
    labels: list[str],
    rows: list[Row],
    refined: bool,
    color: str,
) -> None:
    """Draw the rows of one series, at the places of their labels."""
    found = [
        (labels.index(row.label), 100 * confusion.mean_iou)
        for row in rows
        if (confusion := measurement.confusion(row.method, refined=refined, own_background=True)) is not None
    ]
    if not found:
        return
    numbers = all(row.label.replace(".", "").isdecimal() for row in rows)
    style = "-" if refined else "--"
    axes.plot(
        *zip(*found, strict=True),
        color=color,
        linestyle=style if numbers else "none",
        marker="s" if refined else "o",
        markersize=5,
        markerfacecolor=color if refined else "white",
        label=f"{rows[0].series}, {'after' if refined else 'before'} the CRF",
    )


_PROTOCOL_TEXTS = {
    Protocol.DETECTED: "The classes of an image are those that the classifier detects.",
    Protocol.KNOWN: "The classes of an image are known (image-level labels).",
}

# Title, whether after the CRF, whether with the method's own background.
_COLUMNS = (
    ("Eq. 7, before CRF", False, False),
    ("Eq. 7, after CRF", True, False),
    ("own background, before CRF", False, True),
    ("own background, after CRF", True, True),
)

# Of a confusion.
_SHARES = ("coverage", "mistaken", "spilled")


def write_ablation(
    measurement: Measurement, folder: str | Path, name: str, *, command: str, data: str, about: Mapping[str, Any]
) -> list[Path]:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into a folder, which is created if missing.

    Of a table with :attr:`~benchmarks.ablation.tables.Table.per_exponent`, ``NAME-exponents.png`` too.

    Args:
        measurement: of the table.
        folder: where to write; earlier files of the name are replaced.
        name: of the files.
        command: that gives it, see :func:`dcsm_attr.evaluation.result.measured_on`.
        data: what was measured on, in words.
        about: the network and what else the figures depend on.

    Returns:
        The paths written.

    Raises:
        OSError: if the folder cannot be written to.
    """
    folder = make_writable_folder(folder)
    measured = measured_on(command)
    paths = [folder / f"{name}{ending}" for ending in (".md", ".json", ".png")]
    content = {
        "title": measurement.table.title,
        "protocol": measurement.protocol.value,
        "data": data,
        "about": dict(about),
        "measured": measured,
        "photographs": measurement.result.photographs,
        "skipped": {**measurement.chosen_on.skipped, **measurement.result.skipped},
        "rows": [_content(measurement, row, about["class_names"]) for row in measurement.table.rows],
    }
    with atomic_path(paths[0]) as path:
        path.write_text(_markdown(measurement, measured, data, about), encoding="utf-8")
    with atomic_path(paths[1]) as path:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    with atomic_buffer(paths[2]) as file:
        ablation_figure(measurement).savefig(file, dpi=110)
    if measurement.table.per_exponent:
        paths.append(folder / _exponent_figure_name(name))
        with atomic_buffer(paths[3]) as file:
            exponents_figure(measurement).savefig(file, dpi=110)
    return paths


def _exponent_figure_name(name: str) -> str:
    return f"{name}-exponents.png"


def _shares(confusion: Confusion | None) -> list[str]:
    if confusion is None:
        return ["-"] * len(_SHARES)
    return [f"{100 * getattr(confusion, name):.0f}" for name in _SHARES]


def _content(measurement: Measurement, row: Row, class_names: Sequence[str]) -> dict[str, Any]:
    figures = {
        title: measurement.confusion(row.method, refined=refined, own_background=own)
        for title, refined, own in _COLUMNS
    }
    labels = ("background", *class_names)
    return {
        "series": row.series,
        "label": row.label,
        "method": row.method.name,
        "exponent": measurement.exponents.get(row.method.name),
        **({"mean IoU over exponents": _rows_by_exponent(measurement, row)} if measurement.table.per_exponent else {}),
        "mean IoU": {title: None if one is None else _number(one.mean_iou) for title, one in figures.items()},
        "IoU": {
            title: None if one is None else dict(zip(labels, map(_number, one.iou.tolist()), strict=True))
            for title, one in figures.items()
        },
        **{
            name: {title: None if one is None else _number(getattr(one, name)) for title, one in figures.items()}
            for name in _SHARES
        },
    }


def _rows_by_exponent(measurement: Measurement, row: Row) -> dict[str, float | None]:
    """Where the background was chosen, by the exponent."""
    found = measurement.confusions_by_exponent(row.method)
    return {f"{exponent:g}": _number(confusion.mean_iou) for exponent, confusion in found.items()}


def _number(share: float) -> float | None:
    return None if math.isnan(share) else round(share, 5)


def _markdown(measurement: Measurement, measured: Mapping[str, Any], data: str, about: Mapping[str, Any]) -> str:
    rows = [["", measurement.table.axis, "exponent", *(title for title, _, _ in _COLUMNS), *_SHARES]]
    rows += [
        [
            row.series,
            row.label,
            _exponent(measurement.exponents.get(row.method.name)),
            *(
                _percent(measurement.confusion(row.method, refined=refined, own_background=own))
                for _, refined, own in _COLUMNS
            ),
            *_shares(measurement.confusion(row.method, refined=row.method.labels is not None, own_background=True)),
        ]
        for row in measurement.table.rows
    ]
    blocks = [
        f"# {measurement.table.title}",
        f"Mean IoU in %. {_PROTOCOL_TEXTS[measurement.protocol]} {data} The exponent of the background, which says "
        f"where the foreground begins, is each method's best on the images that it was chosen on. The last three "
        f"columns are of the labels with that background before the CRF: coverage is the share of the true foreground "
        f"that is labeled as foreground, mistaken the share of this that has a wrong class, spilled the share of what "
        f"is labeled as foreground that is background.",
        markdown_table(rows),
        f"![{measurement.table.title}]({about['picture']})",
    ]
    if measurement.table.rows_per_class:
        blocks += ["## Each class", _class_table(measurement, about["class_names"])]
    if measurement.table.per_exponent:
        blocks += _exponent_section(measurement, about["picture"])
    if measurement.result.skipped:
        skipped = "\n".join(f"- `{name}`: {reason}" for name, reason in measurement.result.skipped.items())
        blocks.append(f"Skipped, in no figure:\n\n{skipped}")
    facts = {**{key: value for key, value in about.items() if key not in ("class_names", "picture")}, **measured}
    return "\n\n".join([*blocks, provenance_section(facts)]) + "\n"


def _exponent_section(measurement: Measurement, picture: str) -> list[str]:
    over = [measurement.confusions_by_exponent(row.method) for row in measurement.table.rows]
    exponents = sorted({exponent for one in over for exponent in one})
    rows = [["mean IoU in %", "", *(f"{exponent:g}" for exponent in exponents)]]
    rows += [
        [row.series, row.label, *(_percent(one.get(exponent)) for exponent in exponents)]
        for row, one in zip(measurement.table.rows, over, strict=True)
    ]
    return [
        "## The exponent of the background",
        f"On the {measurement.chosen_on.photographs} photographs that it is chosen on, compared on the canvas.",
        markdown_table(rows),
        f"![Over the exponent]({_exponent_figure_name(picture.removesuffix('.png'))})",
    ]


def _class_table(measurement: Measurement, class_names: Sequence[str]) -> str:
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
    rows.append(["**mean**", *(f"**{_percent(one)}**" for one in columns.values())])
    return markdown_table(rows)


def _exponent(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _percent(confusion: Confusion | None) -> str:
    return "-" if confusion is None else f"{100 * confusion.mean_iou:.1f}"

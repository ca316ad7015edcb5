"""A table as a picture."""

from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.ablation.measure import Measurement
from benchmarks.ablation.tables import Row

__all__ = ["ablation_figure", "exponents_figure"]


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

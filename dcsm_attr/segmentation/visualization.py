"""Figures of class maps and segmentations, drawn with matplotlib.

The functions ``plot_*`` return a figure; ``draw_*`` draw into given axes.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from dcsm_attr.datasets.masks import overlay, voc_colors

if TYPE_CHECKING:
    from dcsm_attr.segmentation.result import Segmentation

__all__ = [
    "blank_figure",
    "draw_heat_map",
    "draw_image",
    "finish_layout",
    "plot_attribution",
    "plot_labels",
    "plot_maps",
    "plot_segmentation",
    "show",
    "visualize_attribution",
]


_COLUMN_INCHES = 2.6
_TITLE_INCHES = 0.45
_COLOR_MAP = "inferno"


def plot_segmentation(segmentation: "Segmentation") -> Figure:
    """Plots one segmentation: image, legend, maps of all candidates, and label maps before and after the CRF.

    The legend lists class names and scores. Each candidate has a distinct map and, if it was kept, a raw map;
    candidates that serve only as contrast are marked.

    Args:
        segmentation: the result.

    Returns:
        The figure.
    """
    class_maps, image = segmentation.class_maps, segmentation.image
    candidates = len(segmentation.candidates)
    figure, axes = blank_figure(image, 2, 2 + candidates)
    draw_image(axes[0, 0], image, "image")
    _draw_legend(axes[1, 0], segmentation)
    for slot, c in enumerate(segmentation.candidates):
        name = f"{_shorten(segmentation.class_names[c])}  {float(class_maps.scores[0, c]):.2f}"
        role = "" if c in segmentation.classes else " (contrast only)"
        if class_maps.raw is not None:
            draw_heat_map(axes[0, 1 + slot], image, class_maps.raw[0, slot].numpy(), f"{name}\nraw{role}")
        draw_heat_map(axes[1, 1 + slot], image, class_maps.maps[0, slot].numpy(), f"{name}\ndistinct{role}")
    before = "before the CRF" if segmentation.settings.get("crf") else "labels, no CRF"
    draw_image(axes[0, -1], overlay(image, segmentation.display_labels(segmentation.unrefined)), before)
    if segmentation.settings.get("crf"):
        draw_image(axes[1, -1], overlay(image, segmentation.display_labels()), "after the CRF")
    return finish_layout(figure)


def _draw_legend(axes: Axes, segmentation: "Segmentation") -> None:
    colors = voc_colors() / 255
    scores = segmentation.class_maps.scores[0]
    values = np.unique(segmentation.display_labels()).tolist()
    patches = []
    for value, c in zip(segmentation.label_values, segmentation.classes, strict=True):
        share = float((segmentation.labels == c + 1).float().mean())
        text = f"{segmentation.class_names[c]}  {float(scores[c]):.2f}, {share:.0%} of the image"
        patches.append(
            Patch(facecolor=colors[value], edgecolor="black", label=text, alpha=1.0 if value in values else 0.3)
        )
    title = "no class above the threshold: the best one" if segmentation.fallback else None
    axes.legend(handles=patches, loc="center", frameon=False, fontsize=9, title=title, title_fontsize=8)


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def plot_attribution(
    image: npt.NDArray[np.uint8],
    maps: Sequence[tuple[str, npt.NDArray[np.floating[Any]]]],
    raw: Sequence[npt.NDArray[np.floating[Any]]] = (),
) -> Figure:
    """Plots an image and the maps of its classes: raw maps in the first row, distinct maps in the last.

    Args:
        image: ``(H, W, 3)``.
        maps: per class a title and its distinct map ``(H, W)`` in [0, 1].
        raw: per class its map before contrast. Empty: there is only one row.

    Returns:
        The figure.
    """
    figure, axes = blank_figure(image, 2 if raw else 1, 1 + len(maps))
    draw_image(axes[0, 0], image, "image")
    for column, (title, values) in enumerate(maps, start=1):
        if raw:
            draw_heat_map(axes[0, column], image, raw[column - 1], f"{title}\nraw")
        draw_heat_map(axes[-1, column], image, values, "distinct" if raw else title)
    return finish_layout(figure)


def plot_maps(
    image: npt.NDArray[np.uint8],
    maps: Mapping[str, Sequence[npt.ArrayLike]],
    columns: Sequence[str],
    *,
    column_inches: float = _COLUMN_INCHES,
) -> Figure:
    """Plots rows and columns of maps over one image, all with the same color scale.

    Args:
        image: ``(H, W, 3)``.
        maps: row title to the maps ``(h, w)`` of the row, in [0, 1], as for :func:`draw_heat_map`.
        columns: column titles.
        column_inches: width of a column.

    Returns:
        The figure.

    Raises:
        ValueError: if the number of maps of a row differs from the number of columns.
    """
    figure, axes = blank_figure(image, len(maps), len(columns), column_inches)
    # Only the first row has titles.
    figure.set_figheight(figure.get_figheight() - _TITLE_INCHES * (len(maps) - 1))
    for row, (name, row_maps) in enumerate(maps.items()):
        if len(row_maps) != len(columns):
            raise ValueError(
                f"each row must have a map for each of {len(columns)} columns; {name!r} has {len(row_maps)}."
            )
        for column, (title, values) in enumerate(zip(columns, row_maps, strict=True)):
            draw_heat_map(axes[row, column], image, np.asarray(values), "" if row else title)
        axes[row, 0].set_ylabel(name, fontsize=9)
    return finish_layout(figure)


def plot_labels(
    image: npt.NDArray[np.uint8], label_maps: Sequence[tuple[str, npt.ArrayLike]], names: Sequence[str]
) -> Figure:
    """Plots label maps over one image side by side in the colors of VOC, with a legend.

    Args:
        image: ``(H, W, 3)``.
        label_maps: per label map a title and the labels ``(H, W)``, 0 background.
        names: names of the labels from 1.

    Returns:
        The figure.
    """
    figure, axes = blank_figure(image, 1, len(label_maps))
    for one, (title, labels) in zip(axes[0], label_maps, strict=True):
        draw_image(one, overlay(image, np.asarray(labels)), title)
    colors = voc_colors() / 255
    patches = [Patch(facecolor=colors[1 + i], edgecolor="black", label=name) for i, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    return finish_layout(figure)


def visualize_attribution(
    attribution: Tensor, image: npt.NDArray[Any] | None = None, method: str = "blended_heat_map", **options: Any
) -> tuple[Figure, Axes]:
    """Draws one map with Captum's ``visualize_image_attr``, which takes arrays ``(H, W, C)`` and fails on zero maps.

    Args:
        attribution: ``(H, W)``, ``(1, H, W)`` or ``(1, 1, H, W)``, for example ``dcs.attribute(x)`` of one image.
        image: ``(H, W, 3)`` uint8, or floating point in [0, 1]; not normalized. Required by all methods except
            ``"heat_map"``.
        method: as in Captum: ``"heat_map"``, ``"blended_heat_map"``, ``"original_image"``, ``"masked_image"``,
            ``"alpha_scaling"``.
        **options: passed to Captum. Defaults that differ from Captum's: ``sign="positive"``, ``use_pyplot=False``.

    Returns:
        Figure and axes. For a map of zeros: the image, or an empty map, with a title that says so.

    Raises:
        ValueError: if the attribution is not a single map.
    """
    from captum.attr import visualization as captum_visualization

    values = attribution.detach().cpu().float().numpy()
    if values.ndim not in (2, 3, 4) or any(length != 1 for length in values.shape[:-2]):
        raise ValueError(f"attribution must be one map, (H, W), (1, H, W) or (1, 1, H, W); got {values.shape}.")
    values = values.reshape(*values.shape[-2:], 1)
    options = {"sign": "positive", "use_pyplot": False, **options}
    if values.any():
        figure, axes = captum_visualization.visualize_image_attr(values, image, method=method, **options)
        return figure, axes
    figure, axes = options.get("plt_fig_axis") or _single_axes(options.get("fig_size", (6, 6)))
    axes.imshow(np.zeros(values.shape[:2]) if image is None else image, cmap=_COLOR_MAP, vmin=0, vmax=1)
    axes.set_title("the map is zero everywhere")
    axes.axis("off")
    return figure, axes


def _single_axes(size: tuple[int, int]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size)
    return figure, figure.subplots()


def blank_figure(
    image: npt.NDArray[np.uint8], rows: int, columns: int, column_inches: float = _COLUMN_INCHES
) -> tuple[Figure, npt.NDArray[Any]]:
    """Creates a figure with a grid of axes that have the aspect ratio of an image.

    Args:
        image: ``(H, W, 3)``.
        rows: number of rows.
        columns: number of columns.
        column_inches: width of a column.

    Returns:
        The figure and its axes ``(rows, columns)``, which stay invisible until something is drawn on them.
    """
    height, width = image.shape[:2]
    row_inches = column_inches * min(max(height / width, 0.4), 2.5) + _TITLE_INCHES
    figure = Figure(figsize=(column_inches * columns, row_inches * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.axis("off")
    return figure, axes


def draw_image(axes: Axes, image: npt.NDArray[np.uint8], title: str) -> None:
    """Draws an image.

    Args:
        axes: where to draw.
        image: ``(H, W, 3)``.
        title: of the axes.
    """
    axes.imshow(image)
    _finish_axes(axes, title)


def draw_heat_map(axes: Axes, image: npt.NDArray[np.uint8], values: npt.NDArray[np.floating[Any]], title: str) -> None:
    """Draws one map over a gray image.

    Args:
        axes: where to draw.
        image: ``(H, W, 3)``.
        values: ``(h, w)`` in [0, 1], stretched over the image. The color scale is fixed, so that maps are comparable.
        title: of the axes.
    """
    height, width = image.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(values, cmap=_COLOR_MAP, vmin=0, vmax=1, alpha=0.35 + 0.65 * np.clip(values, 0, 1), extent=extent)
    _finish_axes(axes, title)


def _finish_axes(axes: Axes, title: str) -> None:
    axes.axis("on")
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def finish_layout(figure: Figure) -> Figure:
    """Lays out a finished figure so that no title is cut off, and returns it.

    Saving does one layout pass, but with images of fixed aspect ratio the layout converges only in the second.
    """
    figure.draw_without_rendering()
    return figure


def show(figure: Figure) -> None:
    """Shows a figure inline in a notebook, otherwise in a window.

    Args:
        figure: drawn without pyplot, so that pyplot does not keep it open.
    """
    import matplotlib.pyplot as plt

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    shown = plt.figure(figsize=tuple(figure.get_size_inches()), dpi=figure.dpi)
    # A notebook does not show a figure without axes.
    axes = shown.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(pixels)
    axes.axis("off")
    plt.show()

"""Everything about one segmented photograph on one sheet."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dcsm_attr.palette import overlay, voc_colours
from dcsm_attr.visualization import blank_sheet, heat_map, laid_out, picture

if TYPE_CHECKING:
    from dcsm_attr.segmentation.result import Segmentation

__all__ = ["segmentation_sheet"]


def segmentation_sheet(segmentation: "Segmentation") -> Figure:
    """Everything about one photograph on one sheet.

    The photograph and a legend with names and scores; each candidate's raw map (where it was kept) and distinct map;
    the label map before and after the CRF. Candidates that were only subtracted are marked.

    Args:
        segmentation: the result.

    Returns:
        The figure.
    """
    saliency, image = segmentation.saliency, segmentation.image
    candidates = len(segmentation.candidates)
    figure, axes = blank_sheet(image, 2, 2 + candidates)
    picture(axes[0, 0], image, "photograph")
    _legend(axes[1, 0], segmentation)
    for slot, c in enumerate(segmentation.candidates):
        name = f"{_shortened(segmentation.class_names[c])}  {float(saliency.scores[0, c]):.2f}"
        role = "" if c in segmentation.classes else " (only subtracted)"
        if saliency.raw is not None:
            heat_map(axes[0, 1 + slot], image, saliency.raw[0, slot].numpy(), f"{name}\nraw{role}")
        heat_map(axes[1, 1 + slot], image, saliency.maps[0, slot].numpy(), f"{name}\ndistinct{role}")
    before = "before the CRF" if segmentation.settings.get("crf") else "labels, no CRF"
    picture(axes[0, -1], overlay(image, segmentation.display_labels(segmentation.unrefined)), before)
    if segmentation.settings.get("crf"):
        picture(axes[1, -1], overlay(image, segmentation.display_labels()), "after the CRF")
    return laid_out(figure)


def _legend(axes: Axes, segmentation: "Segmentation") -> None:
    colours = voc_colours() / 255
    scores = segmentation.saliency.scores[0]
    values = np.unique(segmentation.display_labels()).tolist()
    patches = []
    for value, c in zip(segmentation.label_values, segmentation.classes, strict=True):
        share = float((segmentation.labels == c + 1).float().mean())
        text = f"{segmentation.class_names[c]}  {float(scores[c]):.2f}, {share:.0%} of the image"
        patches.append(
            Patch(facecolor=colours[value], edgecolor="black", label=text, alpha=1.0 if value in values else 0.3)
        )
    title = "no class above the threshold: the best one" if segmentation.fallback else None
    axes.legend(handles=patches, loc="center", frameon=False, fontsize=9, title=title, title_fontsize=8)


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"

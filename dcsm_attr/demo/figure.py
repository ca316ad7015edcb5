"""One figure of what the demo did."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from dcsm_attr.datasets.scenes import CLASS_NAMES
from dcsm_attr.demo.run import DemoResult, SegmentedScene
from dcsm_attr.palette import overlay

__all__ = ["demo_figure"]

# One colour for the background and one for each class: bright on the dark maps, apart from each other.
_COLOURS = np.array(
    [
        (0, 0, 0),
        (255, 99, 97),
        (88, 160, 255),
        (255, 196, 61),
        (94, 214, 128),
        (214, 120, 255),
        (255, 140, 40),
        (72, 219, 220),
        (255, 130, 190),
    ],
    dtype=np.uint8,
)
_NIGHT = "#14161c"


def demo_figure(result: DemoResult) -> Figure:
    """Scenes in rows; the classes' raw maps, their distinct maps, the segmentation and the truth in columns.

    Args:
        result: of :func:`dcsm_attr.demo.run.run_demo`.

    Returns:
        The figure.
    """
    raw, subtracted, refined = (f"{100 * value:.1f}" for value in result.mean_iou)
    titles = (
        "scene",
        f"raw maps of its classes\nmean IoU {raw}",
        f"subtracted from each other\nmean IoU {subtracted}",
        f"refined by the dense CRF\nmean IoU {refined}",
        "truth",
    )
    rows = len(result.shown)
    figure = Figure(figsize=(2.15 * len(titles), 2.15 * rows + 1.0), facecolor=_NIGHT, layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for row, segmented in zip(axes, result.shown, strict=True):
        for one, picture in zip(row, _pictures(segmented), strict=True):
            one.imshow(picture, interpolation="bilinear")
            one.axis("off")
    for one, title in zip(axes[0], titles, strict=True):
        one.set_title(title, fontsize=9, color="white")
    patches = [Patch(color=_COLOURS[1 + c] / 255, label=name) for c, name in enumerate(CLASS_NAMES)]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color("white")
    return figure


def _pictures(segmented: SegmentedScene) -> list[npt.NDArray[np.uint8]]:
    segmentation = segmented.segmentation
    assert segmentation.saliency.raw is not None
    return [
        segmentation.image,
        _in_class_colours(segmentation.saliency.raw[0], segmentation.candidates),
        _in_class_colours(segmentation.saliency.maps[0], segmentation.candidates),
        overlay(segmentation.image, segmentation.labels.numpy(), 0.7, _COLOURS),
        overlay(segmentation.image, segmented.scene.labels.numpy(), 0.7, _COLOURS),
    ]


def _in_class_colours(maps: Tensor, classes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """All maps in one picture: each pixel shines in the colours of the classes that are seen there."""
    values = maps.numpy()
    colours = _COLOURS[[1 + c for c in classes]].astype(np.float64)
    strongest = values.max(axis=0)
    # A steep weighting: where one class is ahead it has the colour for itself, where classes tie they blend.
    shares = values**6 / np.maximum((values**6).sum(axis=0), 1e-12)
    blended: npt.NDArray[np.uint8] = (np.einsum("khw,kc->hwc", shares, colours) * strongest[..., None]).astype(np.uint8)
    return blended

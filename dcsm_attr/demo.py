"""The demo: segments unseen scenes with the network that is shipped, and measures the effect of each step.

:func:`scene_classifier` is the shipped network as a classifier; :func:`run_demo` segments and measures;
:func:`demo_figure` draws the result.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn
from tqdm import tqdm

from dcsm_attr.attribution.maps import label_probabilities
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.masks import overlay
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.scenes import CLASS_NAMES, Scene, generate_scene
from dcsm_attr.evaluation.metrics import confusion_matrix, mean_iou
from dcsm_attr.models.checkpoint import Architecture, Classifier
from dcsm_attr.models.scene_net import MEAN, SCENE_NET, STD, load_scene_net, scene_score_maps
from dcsm_attr.segmentation import Segmentation, Segmenter

__all__ = [
    "SCENE_CANVAS",
    "STEPS",
    "TEST_SCENE_SEED",
    "DemoResult",
    "SegmentedScene",
    "demo_figure",
    "run_demo",
    "scene_classifier",
    "scene_segmenter",
    "step_labels",
]


#: Preprocessing of the demo: scenes of 128 pixels are not resized.
SCENE_CANVAS = Preprocess(size=128, mean=MEAN, std=STD)


def scene_classifier() -> Classifier:
    """Loads the shipped network as a classifier in evaluation mode, with class names and preprocessing."""
    return Classifier(
        scene_score_maps(load_scene_net()).eval(),
        Architecture(SCENE_NET, len(CLASS_NAMES), head="rectified"),
        CLASS_NAMES,
        SCENE_CANVAS,
    )


#: The compared steps; each adds to the previous one.
STEPS = ("raw maps", "with contrast", "with the CRF")

#: Seed of the scenes of the demo, which differ from those of training and of the choice of the CRF weight.
TEST_SCENE_SEED = 2016

_BATCH = 20


@dataclass(frozen=True)
class SegmentedScene:
    """A scene, its segmentation, and the label map after each step.

    Attributes:
        scene: the scene with its ground truth.
        segmentation: the result of all steps.
        labels: one label map ``(S, S)`` int64 per entry of :data:`STEPS`.
    """

    scene: Scene
    segmentation: Segmentation
    labels: tuple[Tensor, ...]


@dataclass(frozen=True)
class DemoResult:
    """The result of :func:`run_demo`.

    Attributes:
        mean_iou: mean IoU in [0, 1] per entry of :data:`STEPS`.
        confusions: confusion matrix ``(1 + C, 1 + C)`` per entry of :data:`STEPS`; rows truth, columns prediction.
        shown: the scenes with the most classes, for :func:`demo_figure`.
    """

    mean_iou: tuple[float, ...]
    confusions: tuple[Tensor, ...]
    shown: list[SegmentedScene]


def scene_segmenter(network: nn.Module) -> Segmenter:
    """Builds a segmenter with default settings, except for the bilateral weight of the CRF.

    Edges of scenes are sharper than those of photos, so color is more informative: of the weights 1, 2, 3, 4, 6 and 10,
    4 gave the best mean IoU on the scenes of seed 700.
    """
    crf = DenseCRF(bilateral_weight=4)
    return Segmenter(network, crf=crf, class_names=CLASS_NAMES, preprocess=SCENE_CANVAS)


def run_demo(
    network: nn.Module, scenes: int, *, scene_seed: int = TEST_SCENE_SEED, shown: int = 5, progress: bool = True
) -> DemoResult:
    """Draws unseen scenes, segments them, and measures the mean IoU of each step.

    The classes of a scene are detected by the network; the true ones are not used.

    Args:
        network: computes score maps of the scene classes.
        scenes: number of scenes.
        scene_seed: seed of the series of scenes.
        shown: number of scenes to keep for the figure.
        progress: whether to show a progress bar.

    Returns:
        The result.
    """
    segmenter = scene_segmenter(network)
    num_labels = 1 + len(CLASS_NAMES)
    confusions = [torch.zeros(num_labels, num_labels, dtype=torch.int64) for _ in STEPS]
    richest: list[SegmentedScene] = []
    with tqdm(total=scenes, unit="scene", disable=not progress) as bar:
        for start in range(0, scenes, _BATCH):
            indices = range(start, min(start + _BATCH, scenes))
            batch = [generate_scene(i, scene_seed, SCENE_CANVAS.side) for i in indices]
            results = segmenter.segment_batch([scene.image for scene in batch], raw=True)
            for scene, segmentation in zip(batch, results, strict=True):
                segmented = SegmentedScene(scene, segmentation, step_labels(segmentation))
                for confusion, predicted in zip(confusions, segmented.labels, strict=True):
                    confusion += confusion_matrix(predicted, scene.labels, num_labels)
                richest = _most_classes([*richest, segmented], shown)
                bar.update()
    return DemoResult(tuple(float(mean_iou(c)) for c in confusions), tuple(confusions), richest)


def step_labels(segmentation: Segmentation) -> tuple[Tensor, ...]:
    """Returns the label map ``(S, S)`` of each of :data:`STEPS`; the segmentation must have raw maps."""
    raw, foreground = segmentation.class_maps.raw, segmentation.class_maps.foreground
    assert raw is not None
    label_of_slot = torch.tensor([0, *(c + 1 for c in segmentation.classes)])
    without_contrast = label_probabilities(raw[:, foreground[0]], foreground[:, foreground[0]])[0]
    return (
        label_of_slot[without_contrast.argmax(dim=0)],
        label_of_slot[segmentation.unrefined.argmax(dim=0)],
        segmentation.labels,
    )


def _most_classes(scenes: list[SegmentedScene], count: int) -> list[SegmentedScene]:
    """Returns the scenes with the most classes; among equals, those whose objects have the most similar areas."""

    def richness(segmented: SegmentedScene) -> tuple[int, float]:
        areas = np.bincount(segmented.scene.labels.flatten().numpy(), minlength=1 + len(CLASS_NAMES))[1:]
        return int(segmented.scene.present.sum()), float(np.sqrt(areas).sum())

    return sorted(scenes, key=richness, reverse=True)[:count]


# One color for the background and one per class: bright and easy to tell apart.
_COLORS = np.array(
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
_FIGURE_COLOR = "#14161c"


def demo_figure(result: DemoResult) -> Figure:
    """Draws one row per scene: image, raw maps, distinct maps, segmentation and ground truth.

    Args:
        result: from :func:`run_demo`.

    Returns:
        The figure.
    """
    raw, distinct, refined = (f"{100 * value:.1f}" for value in result.mean_iou)
    titles = (
        "scene",
        f"raw class maps\nmean IoU {raw}",
        f"contrasted class maps\nmean IoU {distinct}",
        f"refined by the dense CRF\nmean IoU {refined}",
        "ground truth",
    )
    rows = len(result.shown)
    figure = Figure(figsize=(2.15 * len(titles), 2.15 * rows + 1.0), facecolor=_FIGURE_COLOR, layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for row, segmented in zip(axes, result.shown, strict=True):
        for cell, image in zip(row, _images_to_show(segmented), strict=True):
            cell.imshow(image, interpolation="bilinear")
            cell.axis("off")
    for cell, title in zip(axes[0], titles, strict=True):
        cell.set_title(title, fontsize=9, color="white")
    patches = [Patch(color=_COLORS[1 + c] / 255, label=name) for c, name in enumerate(CLASS_NAMES)]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_color("white")
    return figure


def _images_to_show(segmented: SegmentedScene) -> list[npt.NDArray[np.uint8]]:
    segmentation = segmented.segmentation
    assert segmentation.class_maps.raw is not None
    return [
        segmentation.image,
        _blend_class_colors(segmentation.class_maps.raw[0], segmentation.candidates),
        _blend_class_colors(segmentation.class_maps.maps[0], segmentation.candidates),
        overlay(segmentation.image, segmentation.labels.numpy(), 0.7, _COLORS),
        overlay(segmentation.image, segmented.scene.labels.numpy(), 0.7, _COLORS),
    ]


def _blend_class_colors(maps: Tensor, classes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Blends all maps into one image in the colors of their classes."""
    values = maps.numpy()
    colors = _COLORS[[1 + c for c in classes]].astype(np.float64)
    strongest = values.max(axis=0)
    # A high exponent: colors blend only where classes have nearly the same value.
    shares = values**6 / np.maximum((values**6).sum(axis=0), 1e-12)
    blended: npt.NDArray[np.uint8] = (np.einsum("khw,kc->hwc", shares, colors) * strongest[..., None]).astype(np.uint8)
    return blended

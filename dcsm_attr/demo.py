"""The shipped network as a trained classifier, for commands that take one.

Segment unseen scenes with the shipped network, and measure what each step of the method brings.

One figure of what the demo did.
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


#: The canvas of the demo: a scene as it is drawn.
SCENE_CANVAS = Preprocess(size=128, mean=MEAN, std=STD)


def scene_classifier() -> Classifier:
    """The network of the demo, in evaluation mode.

    Returns:
        With the names of the scenes' classes and the canvas of the demo.
    """
    return Classifier(
        scene_score_maps(load_scene_net()).eval(),
        Architecture(SCENE_NET, len(CLASS_NAMES), head="rectified"),
        CLASS_NAMES,
        SCENE_CANVAS,
    )


#: The steps that are compared, each on top of the one before.
STEPS = ("raw maps", "with subtraction", "with the CRF")

#: Seed of the scenes that the demo draws: other ones than training and the choice of the CRF's widths have seen.
TEST_SCENE_SEED = 2016

_BATCH = 20


@dataclass(frozen=True)
class SegmentedScene:
    """A scene, the segmentation of it, and the label map of each step.

    Attributes:
        scene: with its true labels.
        segmentation: of the last step.
        labels: for each of :data:`STEPS` a label map ``(S, S)`` int64.
    """

    scene: Scene
    segmentation: Segmentation
    labels: tuple[Tensor, ...]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        mean_iou: for each of :data:`STEPS`, in [0, 1].
        confusions: for each of :data:`STEPS` a matrix ``(1 + C, 1 + C)``, rows truth, columns prediction.
        shown: the scenes with the most classes, for the figure.
    """

    mean_iou: tuple[float, ...]
    confusions: tuple[Tensor, ...]
    shown: list[SegmentedScene]


def scene_segmenter(network: nn.Module) -> Segmenter:
    """The method at its defaults, but for one weight of the CRF.

    The scenes' edges are sharper than those of images, so that color may say more: on the scenes of seed 700, of
    the weights 1, 2, 3, 4, 6 and 10 it was 4 that gave the best mean IoU.
    """
    crf = DenseCRF(bilateral_weight=4)
    return Segmenter(network, crf=crf, class_names=CLASS_NAMES, preprocess=SCENE_CANVAS)


def run_demo(
    network: nn.Module, scenes: int, *, scene_seed: int = TEST_SCENE_SEED, shown: int = 5, progress: bool = True
) -> DemoResult:
    """Draw unseen scenes, segment them, and measure the mean IoU of each step.

    Args:
        network: gives score maps of the scenes' classes.
        scenes: how many to draw.
        scene_seed: of the series of scenes.
        shown: how many to keep for the figure.
        progress: whether to show a bar.

    Returns:
        The result. The classes of a scene are those that the network detects, not the true ones.
    """
    segmenter = scene_segmenter(network)
    labels = 1 + len(CLASS_NAMES)
    confusions = [torch.zeros(labels, labels, dtype=torch.int64) for _ in STEPS]
    kept: list[SegmentedScene] = []
    with tqdm(total=scenes, unit="scene", disable=not progress) as bar:
        for start in range(0, scenes, _BATCH):
            drawn = [
                generate_scene(i, scene_seed, SCENE_CANVAS.side) for i in range(start, min(start + _BATCH, scenes))
            ]
            results = segmenter.segment_batch([scene.image for scene in drawn], raw=True)
            for scene, segmentation in zip(drawn, results, strict=True):
                segmented = SegmentedScene(scene, segmentation, step_labels(segmentation))
                for confusion, predicted in zip(confusions, segmented.labels, strict=True):
                    confusion += confusion_matrix(predicted, scene.labels, labels)
                kept = _richest([*kept, segmented], shown)
                bar.update()
    return DemoResult(tuple(float(mean_iou(c)) for c in confusions), tuple(confusions), kept)


def step_labels(segmentation: Segmentation) -> tuple[Tensor, ...]:
    """The label map of each of :data:`STEPS` ``(S, S)``."""
    raw, foreground = segmentation.class_maps.raw, segmentation.class_maps.foreground
    assert raw is not None
    values = torch.tensor([0, *(c + 1 for c in segmentation.classes)])
    without_contrast = label_probabilities(raw[:, foreground[0]], foreground[:, foreground[0]])[0]
    return (
        values[without_contrast.argmax(dim=0)],
        values[segmentation.unrefined.argmax(dim=0)],
        segmentation.labels,
    )


def _richest(scenes: list[SegmentedScene], count: int) -> list[SegmentedScene]:
    """Those with the most classes, and among equals those whose objects cover the picture most evenly."""

    def richness(segmented: SegmentedScene) -> tuple[int, float]:
        areas = np.bincount(segmented.scene.labels.flatten().numpy(), minlength=1 + len(CLASS_NAMES))[1:]
        return int(segmented.scene.present.sum()), float(np.sqrt(areas).sum())

    return sorted(scenes, key=richness, reverse=True)[:count]


# One color for the background and one for each class: bright on the dark maps, apart from each other.
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
_NIGHT = "#14161c"


def demo_figure(result: DemoResult) -> Figure:
    """Scenes in rows; the classes' raw maps, their distinct maps, the segmentation and the truth in columns.

    Args:
        result: of :func:`dcsm_attr.demo.run_demo`.

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
        for one, picture in zip(row, _images_to_show(segmented), strict=True):
            one.imshow(picture, interpolation="bilinear")
            one.axis("off")
    for one, title in zip(axes[0], titles, strict=True):
        one.set_title(title, fontsize=9, color="white")
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
        _in_class_colors(segmentation.class_maps.raw[0], segmentation.candidates),
        _in_class_colors(segmentation.class_maps.maps[0], segmentation.candidates),
        overlay(segmentation.image, segmentation.labels.numpy(), 0.7, _COLORS),
        overlay(segmentation.image, segmented.scene.labels.numpy(), 0.7, _COLORS),
    ]


def _in_class_colors(maps: Tensor, classes: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """All maps in one picture: each pixel shines in the colors of the classes that are seen there."""
    values = maps.numpy()
    colors = _COLORS[[1 + c for c in classes]].astype(np.float64)
    strongest = values.max(axis=0)
    # A steep weighting: where one class is ahead it has the color for itself, where classes tie they blend.
    shares = values**6 / np.maximum((values**6).sum(axis=0), 1e-12)
    blended: npt.NDArray[np.uint8] = (np.einsum("khw,kc->hwc", shares, colors) * strongest[..., None]).astype(np.uint8)
    return blended

"""The comparisons that ``python -m benchmarks.speed`` holds."""

from collections.abc import Sequence

from benchmarks.speed.comparison import OURS, Comparison
from benchmarks.speed.crf import CrfWork, crf_implementations
from benchmarks.speed.pipeline import PipelineWork, pipeline_implementations
from benchmarks.speed.saliency import (
    SaliencyWork,
    backward_implementation,
    our_implementation,
    saliency_implementations,
)
from benchmarks.speed.walk import (
    DENSE,
    PLAIN,
    SPARSE,
    AffinityWork,
    WalkWork,
    affinity_implementations,
    exact_walk,
    walk_implementations,
)
from dcsm_attr.segmentation.segmenter import Precision

__all__ = [
    "CLASS_COUNTS",
    "IMAGE_COUNTS",
    "LABEL_COUNTS",
    "backward_comparison",
    "crf_comparisons",
    "pipeline_comparisons",
    "saliency_comparisons",
    "scaling_comparisons",
    "walk_comparisons",
]


#: How many classes, and how many images, the cost is measured for.
CLASS_COUNTS = (1, 2, 5, 10, 20)
IMAGE_COUNTS = (1, 2, 4, 8, 16)

#: How many maps walk: two are those of an image with one class, 21 all of PASCAL VOC's.
LABEL_COUNTS = (2, 4, 21)

_MEMORY_OF = (OURS, "captum, all layers a call", "torchcam", "PyTorch loop, one forward pass")


def saliency_comparisons(models: Sequence[str], side: int, classes: Sequence[int]) -> list[Comparison]:
    """Class maps of one image with each network, for each number of classes."""
    return [
        Comparison(
            f"{model}, {side} x {side}, K = {count}",
            saliency_implementations,
            SaliencyWork(model, side, count),
            _MEMORY_OF,
        )
        for model in models
        for count in classes
    ]


def scaling_comparisons(model: str, side: int) -> dict[str, list[tuple[int, Comparison]]]:
    """Ours alone for growing numbers of classes (of one image) and of images (with three classes)."""
    of_classes = [(count, SaliencyWork(model, side, count)) for count in CLASS_COUNTS]
    of_images = [(count, SaliencyWork(model, side, 3, count)) for count in IMAGE_COUNTS]
    return {
        what: [(count, Comparison(f"{model}, {count} {what}", our_implementation, work)) for count, work in works]
        for what, works in (("classes", of_classes), ("images", of_images))
    }


def backward_comparison(model: str, side: int) -> Comparison:
    """What one more class must cost."""
    return Comparison(f"{model}, one partial backward pass", backward_implementation, SaliencyWork(model, side, 1))


def crf_comparisons(photographs: Sequence[str]) -> list[Comparison]:
    """One image with 4 and with 21 labels, and a batch of eight with 4.

    Raises:
        ValueError: if there are fewer than eight photographs.
    """
    if len(photographs) < 8:
        raise ValueError(f"the CRF is timed on a batch of 8 photographs, got {len(photographs)}.")
    batch = tuple(photographs[:8])
    return [
        Comparison("dense CRF, 500 x 375, 4 labels", crf_implementations, CrfWork(batch[:1], 4)),
        Comparison("dense CRF, 500 x 375, 21 labels", crf_implementations, CrfWork(batch[:1], 21)),
        Comparison("dense CRF, a batch of 8, 4 labels", crf_implementations, CrfWork(batch, 4)),
    ]


def walk_comparisons() -> list[Comparison]:
    """The maps of an image of 500 x 375, at strides 8 and 4 of the network, for each number of labels.

    And a step of training on the affinities that they walk by: a batch of AffinityNet's.
    """
    walks = [
        Comparison(
            f"random walk, 500 x 375 at stride {stride} ({width} x {height}), L = {labels}",
            walk_implementations,
            WalkWork(height, width, labels),
            (OURS, SPARSE, DENSE),
            exact_walk,
        )
        for stride, width, height in ((8, 63, 47), (4, 125, 94))
        for labels in LABEL_COUNTS
    ]
    training = Comparison(
        "affinities and their gradients, 8 x 448 x 56 x 56",
        affinity_implementations,
        AffinityWork(8, 448, 56),
        (OURS, PLAIN),
    )
    return [*walks, training]


def pipeline_comparisons(
    photographs: Sequence[str],
    models: Sequence[str],
    side: int,
    classes: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> list[Comparison]:
    """From image files to label maps, with each network, for each number of classes.

    Raises:
        ValueError: if there are no images.
    """
    if not photographs:
        raise ValueError("the pipeline is timed on images, got none.")
    return [
        Comparison(
            f"from file to label map, {model}, {side} x {side}, K = {count}, {len(photographs)} photographs",
            pipeline_implementations,
            PipelineWork(tuple(photographs), model, side, count, batch_size, precision),
            (OURS,),
        )
        for model in models
        for count in classes
    ]

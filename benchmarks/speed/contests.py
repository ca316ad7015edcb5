"""The contests that ``python -m benchmarks.speed`` holds."""

from collections.abc import Sequence

from benchmarks.speed.affinities import PLAIN, AffinityWork, affinity_contenders
from benchmarks.speed.contest import OURS, Contest
from benchmarks.speed.crf import CrfWork, crf_contenders
from benchmarks.speed.pipeline import PipelineWork, pipeline_contenders
from benchmarks.speed.saliency import SaliencyWork, backward_contender, our_contender, saliency_contenders
from benchmarks.speed.walk import DENSE, SPARSE, WalkWork, exact_walk, walk_contenders
from dcsm_attr.segmentation.segmenter import Precision

__all__ = [
    "COUNTS_OF_CLASSES",
    "COUNTS_OF_IMAGES",
    "COUNTS_OF_LABELS",
    "backward_contest",
    "crf_contests",
    "pipeline_contests",
    "saliency_contests",
    "scaling_contests",
    "walk_contests",
]


#: How many classes, and how many images, the cost is measured for.
COUNTS_OF_CLASSES = (1, 2, 5, 10, 20)
COUNTS_OF_IMAGES = (1, 2, 4, 8, 16)

#: How many maps walk: two are those of a photograph with one class, 21 all of PASCAL VOC's.
COUNTS_OF_LABELS = (2, 4, 21)

_MEMORY_OF = (OURS, "captum, all layers a call", "torchcam", "PyTorch loop, one forward pass")


def saliency_contests(models: Sequence[str], side: int, classes: Sequence[int]) -> list[Contest]:
    """Class maps of one photograph with each network, for each number of classes."""
    return [
        Contest(
            f"{model}, {side} x {side}, K = {count}", saliency_contenders, SaliencyWork(model, side, count), _MEMORY_OF
        )
        for model in models
        for count in classes
    ]


def scaling_contests(model: str, side: int) -> dict[str, list[tuple[int, Contest]]]:
    """Ours alone for growing numbers of classes (of one photograph) and of photographs (with three classes)."""
    of_classes = [(count, SaliencyWork(model, side, count)) for count in COUNTS_OF_CLASSES]
    of_images = [(count, SaliencyWork(model, side, 3, count)) for count in COUNTS_OF_IMAGES]
    return {
        what: [(count, Contest(f"{model}, {count} {what}", our_contender, work)) for count, work in works]
        for what, works in (("classes", of_classes), ("images", of_images))
    }


def backward_contest(model: str, side: int) -> Contest:
    """What one more class must cost."""
    return Contest(f"{model}, one partial backward pass", backward_contender, SaliencyWork(model, side, 1))


def crf_contests(photographs: Sequence[str]) -> list[Contest]:
    """One photograph with 4 and with 21 labels, and a batch of eight with 4.

    Raises:
        ValueError: if there are fewer than eight photographs.
    """
    if len(photographs) < 8:
        raise ValueError(f"the CRF is timed on a batch of 8 photographs, got {len(photographs)}.")
    batch = tuple(photographs[:8])
    return [
        Contest("dense CRF, 500 x 375, 4 labels", crf_contenders, CrfWork(batch[:1], 4)),
        Contest("dense CRF, 500 x 375, 21 labels", crf_contenders, CrfWork(batch[:1], 21)),
        Contest("dense CRF, a batch of 8, 4 labels", crf_contenders, CrfWork(batch, 4)),
    ]


def walk_contests() -> list[Contest]:
    """The maps of a photograph of 500 x 375, at strides 8 and 4 of the network, for each number of labels.

    And a step of training on the affinities that they walk by: a batch of AffinityNet's.
    """
    walks = [
        Contest(
            f"random walk, 500 x 375 at stride {stride} ({width} x {height}), L = {labels}",
            walk_contenders,
            WalkWork(height, width, labels),
            (OURS, SPARSE, DENSE),
            exact_walk,
        )
        for stride, width, height in ((8, 63, 47), (4, 125, 94))
        for labels in COUNTS_OF_LABELS
    ]
    training = Contest(
        "affinities and their gradients, 8 x 448 x 56 x 56",
        affinity_contenders,
        AffinityWork(8, 448, 56),
        (OURS, PLAIN),
    )
    return [*walks, training]


def pipeline_contests(
    photographs: Sequence[str],
    models: Sequence[str],
    side: int,
    classes: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> list[Contest]:
    """From picture files to label maps, with each network, for each number of classes.

    Raises:
        ValueError: if there are no photographs.
    """
    if not photographs:
        raise ValueError("the pipeline is timed on photographs, got none.")
    return [
        Contest(
            f"from file to label map, {model}, {side} x {side}, K = {count}, {len(photographs)} photographs",
            pipeline_contenders,
            PipelineWork(tuple(photographs), model, side, count, batch_size, precision),
            (OURS,),
        )
        for model in models
        for count in classes
    ]

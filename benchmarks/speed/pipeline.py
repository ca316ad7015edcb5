"""Time the whole pipeline from image files to label maps: overlapping steps, one step after the other, each alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.speed.comparison import OURS, Comparison
from benchmarks.speed.saliency import lower_bound_implementations
from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.segmentation.segmenter import AttributedImage, Precision, PreparedImage, restore_segmentation

__all__ = ["PipelineWork", "pipeline_comparisons", "pipeline_implementations"]


@dataclass(frozen=True)
class PipelineWork:
    """Images with image-level labels, segmented with the paper's settings: three scales, all layers, the CRF.

    Attributes:
        paths: image files.
        model: name in torchvision; its weights are random, on which no time depends.
        side: side of the canvas in pixels.
        classes: number of known classes per image.
        batch_size: number of images per forward pass.
        precision: precision of the model's passes.
    """

    paths: tuple[str, ...]
    model: str
    side: int
    classes: int
    batch_size: int
    precision: Precision = "float32"


def pipeline_comparisons(
    paths: Sequence[str],
    models: Sequence[str],
    side: int,
    classes: Sequence[int],
    batch_size: int,
    precision: Precision,
) -> list[Comparison]:
    """Build one comparison per network and number of classes.

    Raises:
        ValueError: if there are no images.
    """
    if not paths:
        raise ValueError("the pipeline is timed on at least one image, got none.")
    return [
        Comparison(
            f"from file to label map, {model}, {side} x {side}, K = {count}, {len(paths)} images",
            pipeline_implementations,
            PipelineWork(tuple(paths), model, side, count, batch_size, precision),
            (OURS,),
        )
        for model in models
        for count in classes
    ]


def pipeline_implementations(work: PipelineWork) -> dict[str, Callable[[], Any]]:
    """Build the overlapping pipeline, the same steps in sequence, each step alone, and the convolutions alone.

    A GPU is used if there is one.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(work.model, weights=None).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preprocess = Preprocess(size=work.side)
    segmenter = Segmenter(model.to(device), preprocess=preprocess, precision=work.precision)
    without_crf = Segmenter(model, crf=None, preprocess=preprocess, precision=work.precision)
    classes = [list(range(work.classes))] * len(work.paths)
    inputs = list(zip(work.paths, classes, strict=True))

    def stream() -> None:
        for _ in segmenter.segment_stream(work.paths, classes, batch_size=work.batch_size):
            pass

    def in_sequence() -> None:
        for batch in _batches(inputs, work.batch_size):
            segmenter.segment_batch(*zip(*batch, strict=True))

    def prepare() -> list[PreparedImage]:
        return [segmenter.prepare_image(path, known) for path, known in inputs]

    prepared = prepare()

    def attribute(segmenter: Segmenter) -> list[AttributedImage]:
        return [one for batch in _batches(prepared, work.batch_size) for one in segmenter.attribute_batch(batch)]

    attributed = attribute(segmenter)
    return {
        OURS: stream,
        "one step after the other": in_sequence,
        "reading and preparing alone": prepare,
        "class maps alone": lambda: attribute(without_crf),
        "class maps and CRF alone": lambda: attribute(segmenter),
        "restoring alone": lambda: [restore_segmentation(one) for one in attributed],
        "floor, the convolutions": _convolutions(model, work, device),
    }


def _convolutions(model: nn.Module, work: PipelineWork, device: str) -> Callable[[], None]:
    """Run the convolutions of the class maps at all scales, for all full batches."""
    method = DistinctClassSaliency(model)
    first_layer = next(iter(method.layers))
    batch_size = min(work.batch_size, len(work.paths))
    bounds = []
    for scale in method.scales:
        side = round(work.side * scale)
        images = torch.randn(batch_size, 3, side, side).to(device)
        bounds.append(lower_bound_implementations(model, first_layer, images, range(work.classes)))

    def run() -> None:
        reduced = torch.autocast(device, torch.bfloat16) if work.precision == "bfloat16" else nullcontext()
        with reduced:
            for _ in range(len(work.paths) // batch_size):
                for bound in bounds:
                    bound["floor, channels last"]()

    return run


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

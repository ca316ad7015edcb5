"""The whole way from image files to label maps: its steps overlapping, one after the other, and each alone."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.speed.comparison import OURS
from benchmarks.speed.saliency import lower_bound_implementations
from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.segmentation.segmenter import AttributedImage, Precision, PreparedImage, restore_segmentation

__all__ = ["PipelineWork", "pipeline_implementations"]


@dataclass(frozen=True)
class PipelineWork:
    """Photographs with image-level labels, through the paper's settings: three scales, all layers, the CRF.

    Attributes:
        photographs: paths.
        model: a name of torchvision; its weights are drawn, which no time depends on.
        side: of the canvas, in pixels.
        classes: how many are known to be in each.
        batch_size: photographs that go through the model together.
        precision: of the model's passes.
    """

    photographs: tuple[str, ...]
    model: str
    side: int
    classes: int
    batch_size: int
    precision: Precision = "float32"


def pipeline_implementations(work: PipelineWork) -> dict[str, Callable[[], Any]]:
    """The overlapping pipeline, the same one step after the other, each step alone, and the convolutions alone.

    Args:
        work: on a GPU where there is one.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(work.model, weights=None).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preprocess = Preprocess(size=work.side)
    segmenter = Segmenter(model.to(device), preprocess=preprocess, precision=work.precision)
    without_crf = Segmenter(model, crf=None, preprocess=preprocess, precision=work.precision)
    known = [list(range(work.classes))] * len(work.photographs)
    photographs = list(zip(work.photographs, known, strict=True))

    def stream() -> None:
        for _ in segmenter.segment_stream(work.photographs, known, batch_size=work.batch_size):
            pass

    def batches() -> None:
        for batch in _batches(photographs, work.batch_size):
            segmenter.segment_batch(*zip(*batch, strict=True))

    def prepared() -> list[PreparedImage]:
        return [segmenter.prepare_image(*photograph) for photograph in photographs]

    ready = prepared()

    def attributed(segmenter: Segmenter) -> list[AttributedImage]:
        return [one for batch in _batches(ready, work.batch_size) for one in segmenter.attribute_batch(batch)]

    with_maps = attributed(segmenter)
    return {
        OURS: stream,
        "one step after the other": batches,
        "reading and preparing alone": prepared,
        "class maps alone": lambda: attributed(without_crf),
        "class maps and CRF alone": lambda: attributed(segmenter),
        "restoring alone": lambda: [restore_segmentation(one) for one in with_maps],
        "floor, the convolutions": _convolutions(model, work, device),
    }


def _convolutions(model: nn.Module, work: PipelineWork, device: str) -> Callable[[], None]:
    """Those of the class maps, at all scales, of as many whole batches as there are."""
    method = DistinctClassSaliency(model)
    first_layer = next(iter(method.layers))
    sides = [round(work.side * scale) for scale in method.scales]
    together = min(work.batch_size, len(work.photographs))
    floors = [
        lower_bound_implementations(
            model, first_layer, torch.randn(together, 3, side, side).to(device), range(work.classes)
        )
        for side in sides
    ]

    def run() -> None:
        lower = torch.autocast(device, torch.bfloat16) if work.precision == "bfloat16" else nullcontext()
        with lower:
            for _ in range(len(work.photographs) // together):
                for floor in floors:
                    floor["floor, channels last"]()

    return run


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

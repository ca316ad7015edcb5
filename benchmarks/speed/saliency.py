"""Class maps of images: ours, by other libraries, by loops in plain PyTorch, and the convolutions alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision

from benchmarks.speed.comparison import OURS
from benchmarks.speed.floor import forward_from_layer, lower_bound_implementations
from benchmarks.speed.saliency_peers import library_implementations
from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.attribution.layers import default_layers

__all__ = [
    "PARTIAL_BACKWARD",
    "SaliencyWork",
    "backward_implementation",
    "our_implementation",
    "saliency_implementations",
]


#: The name of the implementation that shows what one more class must cost.
PARTIAL_BACKWARD = "one partial backward pass"

# conv3_1 to conv5_3, the layers of the paper; for other networks the default ones.
_PAPER_LAYERS = {"vgg16": tuple(f"features.{i}" for i in (10, 12, 14, 17, 19, 21, 24, 26, 28))}


@dataclass(frozen=True)
class SaliencyWork:
    """Photographs at one scale.

    Attributes:
        model: a name of torchvision; its weights are drawn, which no time depends on.
        side: of the square photographs, in pixels.
        classes: how many are compared.
        images: how many images.
    """

    model: str
    side: int
    classes: int
    images: int = 1


def our_implementation(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    """Ours alone."""
    return {OURS: _Prepared(work).ours()}


def backward_implementation(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    """One backward pass of plain PyTorch, from the score of one class to the first layer."""
    prepared = _Prepared(work)
    images = prepared.images.contiguous(memory_format=torch.channels_last)
    logits, first = forward_from_layer(prepared.model, prepared.layers[0], images)
    return {PARTIAL_BACKWARD: lambda: torch.autograd.grad(logits[:, 0].sum(), first, retain_graph=True)}


def saliency_implementations(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    """Ours first, other libraries, plain loops, the floor.

    All read gradients at the outputs of the same layers.

    Args:
        work: of one image.
    """
    prepared = _Prepared(work)
    asked = (prepared.model, prepared.layers, prepared.images, prepared.classes)
    floor = lower_bound_implementations(prepared.model, prepared.layers[0], prepared.images, prepared.classes)
    return {OURS: prepared.ours(), **library_implementations(*asked), **floor}


class _Prepared:
    def __init__(self, work: SaliencyWork) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = torchvision.models.get_model(work.model, weights=None).eval().to(device)
        self.images = torch.randn(work.images, 3, work.side, work.side).to(device)
        self.layers = list(_PAPER_LAYERS.get(work.model) or default_layers(self.model))
        self.classes = list(range(work.classes))

    def ours(self) -> Callable[[], Any]:
        method = DistinctClassSaliency(self.model, self.layers, scales=(1.0,))
        return lambda: method.class_maps(self.images, candidates=self.classes)

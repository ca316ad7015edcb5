"""Class maps of images: ours, by other libraries, by loops in plain PyTorch, and the convolutions alone.

The floor: what the convolutions and matrix products of the work take alone, run one after the other.

Nothing that gives these gradients exactly can be faster on the same kernels: one forward pass, and for each class a
backward pass down to the first layer. Everything else - rectifiers, pooling, normalization, maps - is not counted.

Guided gradients of several classes at several layers, as one would take them with other libraries, or by hand.

All implementations that give gradients are combined by the same equations; the class activation methods of
pytorch-grad-cam and torchcam give maps of their own (without the guided rule), over the same layers and classes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchvision
from captum.attr import GuidedBackprop, LayerGradientXActivation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from benchmarks.peers.methods import library
from benchmarks.speed.comparison import OURS
from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.attribution import maps as equations
from dcsm_attr.attribution.layers import default_layers

__all__ = [
    "PARTIAL_BACKWARD",
    "SaliencyWork",
    "backward_implementation",
    "forward_from_layer",
    "library_implementations",
    "lower_bound_implementations",
    "our_implementation",
    "saliency_implementations",
]


_aten = torch.ops.aten
_COUNTED = (_aten.convolution, _aten.convolution_backward, _aten.addmm, _aten.mm, _aten.bmm)

_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def lower_bound_implementations(
    model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """The convolutions alone, in both orders of memory.

    Args:
        model: gives ``(N, C)``.
        first_layer: down to whose output gradients go.
        images: ``(N, 3, H, W)``.
        classes: K of them.
    """

    @cache
    def calls() -> list[_Call]:
        return _calls(model, first_layer, images, classes)

    orders = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    return {f"floor, {name}": _replayed(calls, order, images.device) for name, order in orders.items()}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _COUNTED:
            self.calls.append((func, *tree_map_only(Tensor, _shape, (args, kwargs))))
        return func(*args, **kwargs)


def _shape(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _calls(model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]) -> list[_Call]:
    with _Recorder() as recorder, torch.enable_grad():
        logits, first = forward_from_layer(model, first_layer, images)
        for c in classes:
            torch.autograd.grad(logits[:, c].sum(), first, retain_graph=True)
    calls: list[_Call] = recorder.calls
    return calls


def forward_from_layer(model: nn.Module, first_layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass with a graph that begins at a layer, and without one for weights.

    Args:
        model: gives ``(N, C)``.
        first_layer: whose output is a leaf of the graph.
        images: ``(N, 3, H, W)``.

    Returns:
        The logits, and the leaf.
    """
    tapped: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        tapped.append(output.detach().requires_grad_())
        return tapped[-1].clone()

    handle = model.get_submodule(first_layer).register_forward_hook(hook)
    asked = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            return model(images), tapped[0]
    finally:
        handle.remove()
        for parameter, flag in zip(model.parameters(), asked, strict=True):
            parameter.requires_grad_(flag)


def _replayed(calls: Callable[[], list[_Call]], order: torch.memory_format, device: torch.device) -> Callable[[], None]:
    filled: dict[tuple[Any, ...], Tensor] = {}

    def random(meta: Tensor) -> Tensor:
        # Tensors of one shape share their values: the floor is not to be a floor of the memory.
        key = (tuple(meta.shape), meta.dtype)
        if key not in filled:
            values = torch.randn(meta.shape, dtype=meta.dtype, device=device)
            filled[key] = values.contiguous(memory_format=order) if values.ndim == 4 else values
        return filled[key]

    # In the first run, which warms up: who asks for another implementation alone does not wait for it.
    prepared = cache(lambda: [(func, *tree_map_only(Tensor, random, (args, kw))) for func, args, kw in calls()])

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in prepared():
                func(*args, **kwargs)

    return run


_ALPHA = 3.0
_MAX_PASSES = 30


def library_implementations(
    model: nn.Module, layers: Sequence[str], images: Tensor, classes: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """The implementations, by name.

    Args:
        model: in evaluation mode; its parameters require gradients, as torchvision gives it.
        layers: names, of modules with one output each.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        Functions without arguments. Those of libraries that are not installed are left out, and, where it would take
        more than 30 forward passes, a call for each layer and class.
    """
    work = _Work(model, layers, images, classes)
    implementations: dict[str, Callable[[], Any]] = {
        "captum, all layers a call": work.captum_all_layers,
        "PyTorch loop, a forward pass a class": work.loop,
        "PyTorch loop, one forward pass": work.loop_of_one_forward_pass,
    }
    if len(layers) * len(classes) <= _MAX_PASSES:
        implementations["captum, one layer a call"] = work.captum_each_layer
    for name, needs, run in (
        ("pytorch-grad-cam", "pytorch_grad_cam", work.grad_cam),
        ("torchcam", "torchcam.methods", work.torchcam),
    ):
        try:
            library(needs)
        except ImportError:
            continue
        implementations[name] = run
    return implementations


class _Work:
    def __init__(self, model: nn.Module, layers: Sequence[str], images: Tensor, classes: Sequence[int]) -> None:
        self.model = model
        self.names = list(layers)
        self.layers = [model.get_submodule(name) for name in layers]
        self.images = images
        self.classes = list(classes)

    def captum_all_layers(self) -> Tensor:
        method = LayerGradientXActivation(self.model, self.layers, multiply_by_inputs=False)
        return self._with_captum(lambda c: method.attribute(self.images, target=c))

    def captum_each_layer(self) -> Tensor:
        methods = [LayerGradientXActivation(self.model, layer, multiply_by_inputs=False) for layer in self.layers]
        return self._with_captum(lambda c: [method.attribute(self.images, target=c) for method in methods])

    def _with_captum(self, gradients: Callable[[int], Sequence[Tensor]]) -> Tensor:
        guide = GuidedBackprop(self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.apply(guide._register_hooks)
            try:
                reduced = [[_reduced(g) for g in gradients(c)] for c in self.classes]
            finally:
                guide._remove_hooks()
        return self._combined(reduced)

    def loop(self) -> Tensor:
        """What one writes first: for each class a forward and a backward pass, rectifiers guided by module hooks."""
        return self._combined([self._of_one_pass([c])[0] for c in self.classes])

    def loop_of_one_forward_pass(self) -> Tensor:
        """What one writes who knows autograd: one forward pass, and from it a backward pass a class."""
        return self._combined(self._of_one_pass(self.classes))

    def _of_one_pass(self, classes: Sequence[int]) -> list[list[Tensor]]:
        outputs: dict[nn.Module, Tensor] = {}
        handles = [layer.register_forward_hook(_keeping(outputs)) for layer in self.layers]
        handles += [m.register_full_backward_hook(_guided) for m in self.model.modules() if isinstance(m, nn.ReLU)]
        in_place = [m for m in self.model.modules() if isinstance(m, nn.ReLU) and m.inplace]
        for rectifier in in_place:
            rectifier.inplace = False
        try:
            logits = self.model(self.images)
            tapped = [outputs[layer] for layer in self.layers]
            return [
                [_reduced(g) for g in torch.autograd.grad(logits[:, c].sum(), tapped, retain_graph=True)]
                for c in classes
            ]
        finally:
            for handle in handles:
                handle.remove()
            for rectifier in in_place:
                rectifier.inplace = True

    def grad_cam(self) -> Any:
        target = library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        with library("pytorch_grad_cam").GradCAM(model=self.model, target_layers=self.layers) as method:
            return [method(input_tensor=self.images, targets=[target(c)]) for c in self.classes]

    def torchcam(self) -> Any:
        with library("torchcam.methods").GradCAM(self.model, self.names) as method:
            scores = self.model(self.images)
            return [method(c, scores, retain_graph=c != self.classes[-1]) for c in self.classes]

    def _combined(self, reduced: list[list[Tensor]]) -> Tensor:
        """Eq. 3 to 5 of all layers, ``(1, K, H, W)``, from maps ``(1, 1, h, w)`` of each class and layer."""
        size = (self.images.shape[2], self.images.shape[3])
        with torch.no_grad():
            total = sum(
                equations.squash(equations.subtract(equations.upsample(torch.cat(of_layer, dim=1), size)), _ALPHA)
                for of_layer in zip(*reduced, strict=True)
            )
        assert isinstance(total, Tensor)
        return total / len(self.layers)


def _reduced(gradient: Tensor) -> Tensor:
    return equations.absolute_channel_maximum(gradient.detach())


def _keeping(outputs: dict[nn.Module, Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        outputs[module] = output
        # A copy, so that the rectifiers in place that may follow do not overwrite what gradients are taken of.
        return output.clone()

    return hook


def _guided(_: nn.Module, to_input: tuple[Tensor, ...], __: Any) -> tuple[Tensor, ...]:
    return tuple(gradient.clamp(min=0) for gradient in to_input)


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

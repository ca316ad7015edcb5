"""Time class maps: this package, other libraries, loops in plain PyTorch, and the convolutions alone.

All implementations that return gradients combine them by the same equations, from the outputs of the same layers. The
class activation methods of pytorch-grad-cam and torchcam return maps of their own, without the guided rule, for the
same layers and classes.

The lower bound is the time of the convolutions and matrix products alone: one forward pass, and per class a backward
pass to the first layer. No implementation of these gradients can be faster with the same kernels. Rectifiers, pooling,
normalization and maps are not counted.
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

from benchmarks.peers.methods import import_library
from benchmarks.speed.comparison import OURS, Comparison, Scaling, run_comparison
from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.attribution import maps as equations
from dcsm_attr.attribution.layers import default_layers

__all__ = [
    "SaliencyWork",
    "lower_bound_implementations",
    "measure_scaling",
    "saliency_comparisons",
    "saliency_implementations",
]

#: Numbers of classes and of images in the measurement of scaling.
CLASS_COUNTS = (1, 2, 5, 10, 20)
IMAGE_COUNTS = (1, 2, 4, 8, 16)

_CAPTUM = "captum, all layers per call"
_ONE_FORWARD_PASS = "PyTorch loop, one forward pass"
_PARTIAL_BACKWARD = "one partial backward pass"

# conv3_1 to conv5_3, the layers of the paper; other networks use their default layers.
_PAPER_LAYERS = {"vgg16": tuple(f"features.{i}" for i in (10, 12, 14, 17, 19, 21, 24, 26, 28))}
_ALPHA = 3.0
_MAX_PASSES = 30


@dataclass(frozen=True)
class SaliencyWork:
    """Square images at one scale.

    Attributes:
        model: name in torchvision; its weights are random, on which no time depends.
        side: side of the images in pixels.
        classes: number of classes that are contrasted.
        images: number of images.
    """

    model: str
    side: int
    classes: int
    images: int = 1


def saliency_comparisons(models: Sequence[str], side: int, classes: Sequence[int]) -> list[Comparison]:
    """Build one comparison on a single image per network and number of classes."""
    return [
        Comparison(
            f"{model}, {side} x {side}, K = {count}",
            saliency_implementations,
            SaliencyWork(model, side, count),
            (OURS, _CAPTUM, "torchcam", _ONE_FORWARD_PASS),
        )
        for model in models
        for count in classes
    ]


def measure_scaling(model: str, side: int, rounds: int) -> list[Scaling]:
    """Time this package for growing numbers of classes (of one image) and of images (with three classes)."""
    works = {
        "classes": [(count, SaliencyWork(model, side, count)) for count in CLASS_COUNTS],
        "images": [(count, SaliencyWork(model, side, 3, count)) for count in IMAGE_COUNTS],
    }
    single = Comparison(_PARTIAL_BACKWARD, _partial_backward_implementation, SaliencyWork(model, side, 1))
    backward = run_comparison(single, rounds).timings[_PARTIAL_BACKWARD].median
    scalings = []
    for unit, of_unit in works.items():
        seconds = [
            run_comparison(Comparison(f"{model}, {count} {unit}", _our_implementation, work), rounds)
            .timings[OURS]
            .median
            for count, work in of_unit
        ]
        title = f"{model}, {side} x {side}, by the number of {unit}"
        counts = [count for count, _ in of_unit]
        scalings.append(Scaling(title, unit, counts, seconds, backward if unit == "classes" else None))
    return scalings


def saliency_implementations(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    """Build all implementations: this package, other libraries, plain loops, lower bounds.

    Args:
        work: with one image.

    Returns:
        Functions without arguments. Libraries that are not installed are left out, and, where it would take more than
        30 forward passes, one call per layer and class.
    """
    network = _Network(work)
    gradients = _Gradients(network)
    implementations: dict[str, Callable[[], Any]] = {
        OURS: network.class_maps(),
        _CAPTUM: gradients.captum_all_layers,
        "PyTorch loop, a forward pass per class": gradients.loop,
        _ONE_FORWARD_PASS: gradients.loop_with_one_forward_pass,
    }
    if len(network.layers) * len(network.classes) <= _MAX_PASSES:
        implementations["captum, one layer per call"] = gradients.captum_each_layer
    for name, module, run in (
        ("pytorch-grad-cam", "pytorch_grad_cam", gradients.grad_cam),
        ("torchcam", "torchcam.methods", gradients.torchcam),
    ):
        try:
            import_library(module)
        except ImportError:
            continue
        implementations[name] = run
    bounds = lower_bound_implementations(network.model, network.layers[0], network.images, network.classes)
    return {**implementations, **bounds}


def _our_implementation(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    return {OURS: _Network(work).class_maps()}


def _partial_backward_implementation(work: SaliencyWork) -> dict[str, Callable[[], Any]]:
    """One backward pass of plain PyTorch, from the score of one class to the first layer."""
    network = _Network(work)
    images = network.images.contiguous(memory_format=torch.channels_last)
    logits, first = _forward_from_layer(network.model, network.layers[0], images)
    return {_PARTIAL_BACKWARD: lambda: torch.autograd.grad(logits[:, 0].sum(), first, retain_graph=True)}


class _Network:
    """The model, its layers, and random images, on a GPU if there is one."""

    def __init__(self, work: SaliencyWork) -> None:
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = torchvision.models.get_model(work.model, weights=None).eval().to(device)
        self.images = torch.randn(work.images, 3, work.side, work.side).to(device)
        self.layers = list(_PAPER_LAYERS.get(work.model) or default_layers(self.model))
        self.classes = list(range(work.classes))

    def class_maps(self) -> Callable[[], Any]:
        method = DistinctClassSaliency(self.model, self.layers, scales=(1.0,))
        return lambda: method.class_maps(self.images, candidates=self.classes)


class _Gradients:
    """Guided gradients of several classes at several layers, with other libraries and in plain PyTorch."""

    def __init__(self, network: _Network) -> None:
        self.model = network.model
        self.names = network.layers
        self.layers = [network.model.get_submodule(name) for name in network.layers]
        self.images = network.images
        self.classes = network.classes

    def captum_all_layers(self) -> Tensor:
        method = LayerGradientXActivation(self.model, self.layers, multiply_by_inputs=False)
        return self._with_captum(lambda c: method.attribute(self.images, target=c))

    def captum_each_layer(self) -> Tensor:
        methods = [LayerGradientXActivation(self.model, layer, multiply_by_inputs=False) for layer in self.layers]
        return self._with_captum(lambda c: [method.attribute(self.images, target=c) for method in methods])

    def _with_captum(self, gradients: Callable[[int], Sequence[Tensor]]) -> Tensor:
        guided = GuidedBackprop(self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.apply(guided._register_hooks)
            try:
                reduced = [[_reduce_channels(g) for g in gradients(c)] for c in self.classes]
            finally:
                guided._remove_hooks()
        return self._combine(reduced)

    def loop(self) -> Tensor:
        """The straightforward loop: a forward and a backward pass per class, rectifiers guided by module hooks."""
        return self._combine([self._one_pass([c])[0] for c in self.classes])

    def loop_with_one_forward_pass(self) -> Tensor:
        """The efficient loop: one forward pass, and a backward pass per class."""
        return self._combine(self._one_pass(self.classes))

    def _one_pass(self, classes: Sequence[int]) -> list[list[Tensor]]:
        outputs: dict[nn.Module, Tensor] = {}

        def keep_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            outputs[module] = output
            # A copy, so that in-place rectifiers that may follow do not overwrite the kept tensor.
            return output.clone()

        def guide(_: nn.Module, gradients: tuple[Tensor, ...], __: Any) -> tuple[Tensor, ...]:
            return tuple(gradient.clamp(min=0) for gradient in gradients)

        rectifiers = [module for module in self.model.modules() if isinstance(module, nn.ReLU)]
        handles = [layer.register_forward_hook(keep_output) for layer in self.layers]
        handles += [rectifier.register_full_backward_hook(guide) for rectifier in rectifiers]
        in_place = [rectifier for rectifier in rectifiers if rectifier.inplace]
        for rectifier in in_place:
            rectifier.inplace = False
        try:
            logits = self.model(self.images)
            kept = [outputs[layer] for layer in self.layers]
            return [
                [_reduce_channels(g) for g in torch.autograd.grad(logits[:, c].sum(), kept, retain_graph=True)]
                for c in classes
            ]
        finally:
            for handle in handles:
                handle.remove()
            for rectifier in in_place:
                rectifier.inplace = True

    def grad_cam(self) -> Any:
        target = import_library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        with import_library("pytorch_grad_cam").GradCAM(model=self.model, target_layers=self.layers) as method:
            return [method(input_tensor=self.images, targets=[target(c)]) for c in self.classes]

    def torchcam(self) -> Any:
        with import_library("torchcam.methods").GradCAM(self.model, self.names) as method:
            scores = self.model(self.images)
            return [method(c, scores, retain_graph=c != self.classes[-1]) for c in self.classes]

    def _combine(self, reduced: list[list[Tensor]]) -> Tensor:
        """Eq. 3 to 5 of all layers, ``(1, K, H, W)``, from maps ``(1, 1, h, w)`` per class and layer."""
        size = (self.images.shape[2], self.images.shape[3])
        with torch.no_grad():
            total = sum(
                equations.squash(equations.subtract(equations.upsample(torch.cat(of_layer, dim=1), size)), _ALPHA)
                for of_layer in zip(*reduced, strict=True)
            )
        assert isinstance(total, Tensor)
        return total / len(self.layers)


def _reduce_channels(gradient: Tensor) -> Tensor:
    return equations.absolute_channel_maximum(gradient.detach())


# The lower bound

_aten = torch.ops.aten
_COUNTED = (_aten.convolution, _aten.convolution_backward, _aten.addmm, _aten.mm, _aten.bmm)

_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def lower_bound_implementations(
    model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """Build functions that run only the convolutions and matrix products, in both memory formats.

    Args:
        model: returns ``(N, C)``.
        first_layer: gradients are computed down to its output.
        images: ``(N, 3, H, W)``.
        classes: K class numbers.
    """

    @cache
    def calls() -> list[_Call]:
        return _record_calls(model, first_layer, images, classes)

    formats = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    return {f"floor, {name}": _replay(calls, one, images.device) for name, one in formats.items()}


def _record_calls(model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]) -> list[_Call]:
    with _Recorder() as recorder, torch.enable_grad():
        logits, first = _forward_from_layer(model, first_layer, images)
        for c in classes:
            torch.autograd.grad(logits[:, c].sum(), first, retain_graph=True)
    calls: list[_Call] = recorder.calls
    return calls


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _COUNTED:
            self.calls.append((func, *tree_map_only(Tensor, _to_meta, (args, kwargs))))
        return func(*args, **kwargs)


def _to_meta(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _forward_from_layer(model: nn.Module, first_layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a forward pass whose graph begins at the output of a layer and does not include parameters.

    Returns:
        The logits, and the output of the layer.
    """
    outputs: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()

    handle = model.get_submodule(first_layer).register_forward_hook(hook)
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            return model(images), outputs[0]
    finally:
        handle.remove()
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def _replay(
    calls: Callable[[], list[_Call]], memory_format: torch.memory_format, device: torch.device
) -> Callable[[], None]:
    tensors: dict[tuple[Any, ...], Tensor] = {}

    def random(meta: Tensor) -> Tensor:
        # Tensors of one shape share their values, so that little memory is needed.
        key = (tuple(meta.shape), meta.dtype)
        if key not in tensors:
            values = torch.randn(meta.shape, dtype=meta.dtype, device=device)
            tensors[key] = values.contiguous(memory_format=memory_format) if values.ndim == 4 else values
        return tensors[key]

    # Prepared in the warm-up run, so that a process that measures another implementation does not prepare it.
    prepared = cache(lambda: [(func, *tree_map_only(Tensor, random, (args, kw))) for func, args, kw in calls()])

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in prepared():
                func(*args, **kwargs)

    return run

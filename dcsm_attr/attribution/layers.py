"""Which layers of which CNN: where gradients say *where*.

DCSM averages the convolutions of VGG-16's last three resolution stages, at their inputs (conv3_1 to conv5_3). For other
networks the same is found by running the network once.

What gates a gradient by position, found whatever the weights are.

From what a user calls a layer to the points where gradients are read.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import VGG

from dcsm_attr.attribution.gradients import LayerPoint
from dcsm_attr.attribution.guided import rectifies
from dcsm_attr.attribution.model import check_scores, prepared_model

__all__ = [
    "Layer",
    "RandomlyGatedRectifiers",
    "default_layers",
    "is_constant",
    "layer_blocks",
    "layer_points",
    "probe_image",
    "resolve_layers",
    "vgg_blocks",
]


class _RandomGate(torch.autograd.Function):
    """Identity whose backward multiplies each position by a number of its own, between 1/2 and 3/2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # A view would forbid the in-place operations that may follow in the user's model.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        generator = torch.Generator().manual_seed(0)
        return gradient * (0.5 + torch.rand(gradient.shape[2:], generator=generator)).to(gradient)


class RandomlyGatedRectifiers(TorchFunctionMode):
    """Within this context, every rectifier of a map gates gradients by position, whatever its input is.

    A rectifier's derivative differs between positions where its input is on both sides of zero, and a smooth relative's
    where it is not small. In a network whose weights were just drawn, both may fail: SiLU at a thousandth is linear.
    What a gradient says about *where* would then depend on the weights, and so would the layers that are chosen by it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; behind a rectifier of a map, gate the gradient."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not rectifies(func, args, kwargs) or output.ndim != 4 or not output.requires_grad:
            return output
        return _RandomGate.apply(output)


_STAGES = 3
_LAYERS_PER_STAGE = 3
_HEADS = {"classifier", "fc", "head", "heads", "aux1", "aux2", "AuxLogits", "aux_classifier"}


def default_layers(
    model: nn.Module, images: tuple[Tensor, ...] | None = None, arguments: tuple[Any, ...] = ()
) -> list[str]:
    """Choose the layers at whose inputs gradients are read: nine in a deep network, three of each of three stages.

    They are the last three of :func:`layer_blocks`.

    Args:
        model: as for :func:`layer_blocks`.
        images: as for :func:`layer_blocks`.
        arguments: as for :func:`layer_blocks`.

    Returns:
        Names of modules, in the order in which they run.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`layer_blocks`.
    """
    return [name for block in layer_blocks(model, images, arguments)[-_STAGES:] for name in block]


def layer_blocks(
    model: nn.Module, images: tuple[Tensor, ...] | None = None, arguments: tuple[Any, ...] = ()
) -> list[list[str]]:
    """Find the layers at whose inputs gradients may be read, and group them by resolution.

    VGG: every convolution, as in the paper. Other networks are run once, forward and backward,
    on one image of noise; of the convolutions outside the classification head,

    - those count whose input is a map, is not the image itself, and has a gradient that differs between positions;
    - those of one resolution are a block;
    - of each block, tensors with at least half of the second largest number of channels count (the backbone, not the
      bottlenecks), each once, whichever convolutions share it. One tensor alone may be wider: where a block widens
      before it strides (RegNet), that has the width of the next stage;
    - of those, three are taken, evenly spread from the first to the last. VGG-16 has at most three a block; deeper
      networks have dozens with nearly the same map.

    A tensor whose gradient is the same at every position says nothing about where. Behind a pooled linear head that is
    the output of the last block, and with it the input of every convolution above which no rectifier or max pool
    follows. Which those are is found whatever the weights are, see
    :class:`~dcsm_attr.attribution.layers.RandomlyGatedRectifiers`: a network has the same layers before and after
    training.

    Args:
        model: any CNN; it is left as it was.
        images: batches ``(N, C, H, W)``, one for each image that the model takes; their shapes are used where it does
            not take one image of 224 x 224 pixels alone. None: only that is tried.
        arguments: what the model takes after the images, for one image.

    Returns:
        Names of modules, in the order in which they run, block by block, the largest resolution first.

    Raises:
        TypeError, ValueError: if the model returns no scores, see
            :func:`dcsm_attr.attribution.model.check_scores`.
        ValueError: if there is no such convolution.
        RuntimeError: if the model runs with neither size.
    """
    if isinstance(model, VGG):
        return vgg_blocks(model)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no convolution (nn.Conv2d), so that no layer has a map. Name layers yourself, "
            "or use a CNN."
        )
    readings = _readings(_probe(model, images or (), arguments))
    usable = [r for r in readings if r.is_usable]
    if not usable:
        raise ValueError(
            f"no convolution of {type(model).__name__} has an input whose gradient differs between positions; name the "
            "layers yourself with layer=[...]."
        )
    stages: dict[int, list[_ConvolutionInput]] = defaultdict(list)
    for reading in usable:
        stages[reading.positions].append(reading)
    return [
        [reading.name for reading in _spread(_select_backbone(stages[positions]))]
        for positions in sorted(stages, reverse=True)
    ]


def vgg_blocks(model: VGG) -> list[list[str]]:
    """The convolutions of each block of a VGG; of VGG-16 the last three are conv3_1 to conv5_3."""
    blocks: list[list[str]] = [[]]
    for name, module in model.features.named_children():
        if isinstance(module, nn.MaxPool2d):
            blocks.append([])
        elif isinstance(module, nn.Conv2d):
            blocks[-1].append(f"features.{name}")
    return [block for block in blocks if block]


def is_constant(maps: Tensor) -> Tensor:
    """Whether each map is the same at every position, up to rounding.

    Args:
        maps: ``(..., h, w)``.

    Returns:
        ``(...)`` bool; False for a map that is zero everywhere, which says nothing about the layer.
    """
    high, low = maps.amax(dim=(-2, -1)), maps.amin(dim=(-2, -1))
    return (high - low <= 1e-5 * high.abs()) & (high != 0)


@dataclass
class _ConvolutionInput:
    """The input of one convolution in the probing run."""

    name: str
    source: int
    channels: int
    positions: int
    is_usable: bool


def _select_backbone(readings: list[_ConvolutionInput]) -> list[_ConvolutionInput]:
    distinct = {r.source: r for r in reversed(readings)}
    second_widest = sorted(r.channels for r in distinct.values())[-2:][0]
    return [r for r in reversed(distinct.values()) if 2 * r.channels >= second_widest]


def _spread(readings: list[_ConvolutionInput]) -> list[_ConvolutionInput]:
    if len(readings) <= _LAYERS_PER_STAGE:
        return readings
    last = len(readings) - 1
    return [readings[round(i * last / (_LAYERS_PER_STAGE - 1))] for i in range(_LAYERS_PER_STAGE)]


def probe_image(model: nn.Module, size: tuple[int, int] = (224, 224), channels: int | None = None) -> Tensor:
    """One image of fixed noise ``(1, C, H, W)``, with the dtype and device of the model's parameters.

    Args:
        model: C is the number of channels its first convolution takes.
        size: ``(H, W)``.
        channels: C, where it is known.
    """
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(1, channels, *size, generator=generator, dtype=torch.float32, device="cpu")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), noise)
    return noise.to(parameter.device, parameter.dtype)


@dataclass
class _Probe:
    """One forward pass: what the model returned, and what each convolution was given."""

    images: tuple[Tensor, ...]
    output: Any
    inputs: dict[str, tuple[int, Tensor]]


def _probe(model: nn.Module, images: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> _Probe:
    own = tuple(probe_image(model, (x.shape[2], x.shape[3]), x.shape[1]) for x in images)
    if len(images) > 1 or arguments:
        return _run(model, own, arguments)
    canonical = probe_image(model)
    try:
        return _run(model, (canonical,))
    except (RuntimeError, TypeError, ValueError) as error:
        if not images:
            raise RuntimeError(
                f"{type(model).__name__} does not run on {tuple(canonical.shape)}, with which its default layers are "
                "looked for; they are known after the first call with its own images. Or name them with layer=[...]."
            ) from error
        return _run(model, own)


def _run(model: nn.Module, images: tuple[Tensor, ...], arguments: tuple[Any, ...] = ()) -> _Probe:
    inputs: dict[str, tuple[int, Tensor]] = {}
    originals: list[Tensor] = []
    # Hooks fire for every thread that runs the module; only this thread's forward pass is the probe.
    thread = threading.get_ident()

    def hook(name: str, value: Tensor) -> tuple[Tensor] | None:
        if threading.get_ident() != thread:
            return None
        originals.append(value)  # Keeps the id of the tensor from being given to another one.
        # Of a convolution that runs several times the last run counts, as in the engine.
        inputs.pop(name, None)
        inputs[name] = (id(value), value.clone())
        return (inputs[name][1],)

    with ExitStack() as stack:
        stack.enter_context(prepared_model(model, images[0].device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(RandomlyGatedRectifiers())
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and _HEADS.isdisjoint(name.split(".")):
                handle = module.register_forward_pre_hook(lambda _, args, name=name: hook(name, args[0]))
                stack.callback(handle.remove)
        # Copies, since a model may overwrite its inputs, which a leaf does not allow.
        output = model(*(x.requires_grad_().clone() for x in images), *arguments)
    return _Probe(images, output, inputs)


def _readings(probe: _Probe) -> list[_ConvolutionInput]:
    if not probe.inputs:
        return []
    tensors = [tensor for _, tensor in probe.inputs.values()]
    with torch.enable_grad():
        scores = check_scores(probe.output, len(probe.images[0]))
        best = (scores if scores.ndim == 2 else scores.sum(dim=(2, 3))).amax()
    gradients = torch.autograd.grad(best, tensors, allow_unused=True)
    return [
        _ConvolutionInput(
            name, source, tensor.shape[1], tensor.shape[2:].numel(), _is_usable(tensor, gradient, probe.images)
        )
        for (name, (source, tensor)), gradient in zip(probe.inputs.items(), gradients, strict=True)
    ]


def _is_usable(tensor: Tensor, gradient: Tensor | None, images: tuple[Tensor, ...]) -> bool:
    if gradient is None or tensor.ndim != 4 or min(tensor.shape[2:]) < 2:
        return False
    if any(tensor.shape == image.shape for image in images):
        return False
    # Zero padding bends a constant gradient at the border: only the interior can tell.
    interior = gradient[..., 1:-1, 1:-1] if min(tensor.shape[2:]) > 4 else gradient
    return not bool(is_constant(interior).all())


Layer = nn.Module | str | Sequence[nn.Module | str]


def resolve_layers(forward_func: Callable[..., Any], layer: Layer) -> dict[str, nn.Module]:
    """Find the modules that the user means, and their names.

    Args:
        forward_func: the model; of a plain function no names are known, and modules are taken as they are.
        layer: a module, a name as in ``model.named_modules()``, or a sequence of them.

    Returns:
        Names and modules, in the order given.

    Raises:
        TypeError: if something is neither a module nor a name.
        ValueError: if nothing is named, something twice, or something that is not in the model.
    """
    wanted = [layer] if isinstance(layer, (nn.Module, str)) else list(layer)
    if not wanted:
        raise ValueError("layer is empty: name at least one layer, or pass None for the default layers.")
    found: dict[str, nn.Module] = {}
    for item in wanted:
        name, module = _find(forward_func, item, position=len(found))
        if name in found:
            raise ValueError(f"layer {name!r} is named twice.")
        found[name] = module
    return found


def _find(forward_func: Callable[..., Any], item: nn.Module | str, position: int) -> tuple[str, nn.Module]:
    if not isinstance(item, (nn.Module, str)):
        raise TypeError(f"layer must be a module, a name, or a sequence of them; got {type(item).__name__}.")
    if not isinstance(forward_func, nn.Module):
        if isinstance(item, str):
            raise ValueError(
                f"layer {item!r} is a name, but forward_func is a function, whose modules are not known: pass the "
                "module itself."
            )
        return f"{type(item).__name__}_{position}", item
    for name, module in forward_func.named_modules():
        if module is item or name == item:
            return name, module
    if isinstance(item, str):
        close = [name for name, _ in forward_func.named_modules() if name.endswith(item) or name.startswith(item)]
        hint = f" Similar names: {', '.join(close[:5])}." if close else " dict(model.named_modules()) lists the names."
        raise ValueError(f"layer {item!r} is not in {type(forward_func).__name__}.{hint}")
    raise ValueError(
        f"layer {type(item).__name__} is not a module of {type(forward_func).__name__}: take it from the same model "
        "object, e.g. model.layer4."
    )


def layer_points(layers: dict[str, nn.Module], at_input: bool) -> list[LayerPoint]:
    """One point for each layer."""
    return [LayerPoint(name, module, at_input) for name, module in layers.items()]

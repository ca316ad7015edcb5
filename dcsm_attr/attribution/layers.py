"""The layers at which gradients are read: named by the user, or chosen by running the network once.

DCSM averages the convolutions of VGG-16's last three resolution stages, at their inputs (conv3_1 to conv5_3). For other
networks, corresponding layers are found by one forward and backward pass on noise.
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

Layer = nn.Module | str | Sequence[nn.Module | str]

_STAGES = 3
_LAYERS_PER_STAGE = 3
# Modules with one of these names in their path belong to a classification head.
_HEADS = {"classifier", "fc", "head", "heads", "aux1", "aux2", "AuxLogits", "aux_classifier"}


def resolve_layers(forward_func: Callable[..., Any], layer: Layer) -> dict[str, nn.Module]:
    """Find the modules that the user named, and their names in the model.

    Args:
        forward_func: the model. If it is a function, only modules are accepted, not names.
        layer: a module, a name as in ``model.named_modules()``, or a sequence of them.

    Returns:
        Names and modules, in the order given.

    Raises:
        TypeError: if an entry is neither a module nor a name.
        ValueError: if there is no layer, a layer is named twice, or a layer is not in the model.
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
                f"layer {item!r} is a name, but forward_func is a function, whose modules are unknown: pass the "
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
    """Return one :class:`LayerPoint` per layer, at its input or at its output."""
    return [LayerPoint(name, module, at_input) for name, module in layers.items()]


def default_layers(
    model: nn.Module, images: tuple[Tensor, ...] | None = None, arguments: tuple[Any, ...] = ()
) -> list[str]:
    """Choose the layers at whose inputs gradients are read: the last three blocks of :func:`layer_blocks`.

    A deep network has three layers per block, nine in all.

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

    VGG: every convolution, as in the paper. Any other network runs once, forward and backward, on an image of noise.
    The layers are then chosen among the convolutions outside the classification head as follows:

    - The input is a map, is not the image itself, and has a gradient that differs between positions.
    - Inputs of the same resolution form a block.
    - In each block, the inputs with at least half of the second largest number of channels are kept (the backbone, not
      its bottlenecks). Convolutions that share an input count once. The largest number is left out because in some
      networks (RegNet) one tensor per block already has the width of the next block.
    - Of these, three are taken, evenly spaced from the first to the last. VGG-16 has at most three convolutions per
      block; deeper networks have dozens with nearly the same map.

    A gradient that is the same at every position does not localize anything. Behind a pooled linear head, this is the
    gradient at the output of the last block, and at every input above which no rectifier or max pool follows. The
    choice does not depend on the weights (see :class:`RandomlyGatedRectifiers`): a network has the same layers before
    and after training.

    Args:
        model: any CNN; it is left unchanged.
        images: batches ``(N, C, H, W)``, one per image input of the model. Their shapes are used if the model does not
            accept a single image of 224 x 224 pixels. None: only 224 x 224 pixels are tried.
        arguments: forward arguments after the images, for one image.

    Returns:
        Names of modules per block, in the order in which they run; the block of the largest resolution comes first.

    Raises:
        TypeError, ValueError: if the model returns no scores, see
            :func:`dcsm_attr.attribution.model.check_scores`.
        ValueError: if no convolution qualifies.
        RuntimeError: if the model accepts neither size.
    """
    if isinstance(model, VGG):
        return vgg_blocks(model)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no convolution (nn.Conv2d), so no layers can be chosen. Name them with "
            "layer=[...], or use a CNN."
        )
    usable = [one for one in _convolution_inputs(_probe(model, images or (), arguments)) if one.is_usable]
    if not usable:
        raise ValueError(
            f"no convolution of {type(model).__name__} has an input whose gradient differs between positions. Name the "
            "layers with layer=[...]."
        )
    stages: dict[int, list[_ConvolutionInput]] = defaultdict(list)
    for one in usable:
        stages[one.positions].append(one)
    return [
        [one.name for one in _evenly_spaced(_select_backbone(stages[positions]))]
        for positions in sorted(stages, reverse=True)
    ]


def vgg_blocks(model: VGG) -> list[list[str]]:
    """Return the names of the convolutions of each block of a VGG; in VGG-16 the last three are conv3_1 to conv5_3."""
    blocks: list[list[str]] = [[]]
    for name, module in model.features.named_children():
        if isinstance(module, nn.MaxPool2d):
            blocks.append([])
        elif isinstance(module, nn.Conv2d):
            blocks[-1].append(f"features.{name}")
    return [block for block in blocks if block]


@dataclass
class _ConvolutionInput:
    """The input of one convolution in the probe; ``source`` is the id of the tensor."""

    name: str
    source: int
    channels: int
    positions: int
    is_usable: bool


@dataclass
class _Probe:
    """The output of one forward pass, and the input of each convolution with the id of the tensor."""

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
                f"{type(model).__name__} does not accept an input of shape {tuple(canonical.shape)}, which is used "
                "to choose default layers. They can be read after the first call with images; or name them with "
                "layer=[...]."
            ) from error
        return _run(model, own)


def _run(model: nn.Module, images: tuple[Tensor, ...], arguments: tuple[Any, ...] = ()) -> _Probe:
    inputs: dict[str, tuple[int, Tensor]] = {}
    originals: list[Tensor] = []
    # Hooks fire for every thread that runs the module; only the forward pass of this thread is the probe.
    thread = threading.get_ident()

    def hook(name: str, value: Tensor) -> tuple[Tensor] | None:
        if threading.get_ident() != thread:
            return None
        originals.append(value)  # Keeps the tensor alive, so that its id stays unique.
        # If a convolution runs several times, its last run counts, as in run_forward.
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
        # Copies, because a model may overwrite its inputs, which a leaf does not allow.
        output = model(*(x.requires_grad_().clone() for x in images), *arguments)
    return _Probe(images, output, inputs)


def probe_image(model: nn.Module, size: tuple[int, int] = (224, 224), channels: int | None = None) -> Tensor:
    """Return one image of fixed noise ``(1, C, H, W)``, with the dtype and device of the model's parameters.

    Args:
        model: any CNN.
        size: ``(H, W)``.
        channels: C. None: the number of input channels of the first convolution.
    """
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(1, channels, *size, generator=generator, dtype=torch.float32, device="cpu")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), noise)
    return noise.to(parameter.device, parameter.dtype)


def _convolution_inputs(probe: _Probe) -> list[_ConvolutionInput]:
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
    # Zero padding changes a constant gradient at the border, so only the interior is compared.
    interior = gradient[..., 1:-1, 1:-1] if min(tensor.shape[2:]) > 4 else gradient
    return not bool(is_constant(interior).all())


def _select_backbone(inputs: list[_ConvolutionInput]) -> list[_ConvolutionInput]:
    distinct = {one.source: one for one in reversed(inputs)}
    second_widest = sorted(one.channels for one in distinct.values())[-2:][0]
    return [one for one in reversed(distinct.values()) if 2 * one.channels >= second_widest]


def _evenly_spaced(inputs: list[_ConvolutionInput]) -> list[_ConvolutionInput]:
    if len(inputs) <= _LAYERS_PER_STAGE:
        return inputs
    last = len(inputs) - 1
    return [inputs[round(i * last / (_LAYERS_PER_STAGE - 1))] for i in range(_LAYERS_PER_STAGE)]


def is_constant(maps: Tensor) -> Tensor:
    """Test whether each map has the same value at every position, up to rounding.

    Args:
        maps: ``(..., h, w)``.

    Returns:
        ``(...)`` bool; False for a map that is zero everywhere.
    """
    high, low = maps.amax(dim=(-2, -1)), maps.amin(dim=(-2, -1))
    return (high - low <= 1e-5 * high.abs()) & (high != 0)


class _RandomGate(torch.autograd.Function):
    """Identity whose backward multiplies each position by its own number between 1/2 and 3/2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # A copy: in-place operations of the model may follow, which a view does not allow.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        generator = torch.Generator().manual_seed(0)
        return gradient * (0.5 + torch.rand(gradient.shape[2:], generator=generator)).to(gradient)


class RandomlyGatedRectifiers(TorchFunctionMode):
    """Within this context, every rectifier of a map multiplies its gradient by a fixed random number per position.

    The derivative of a rectifier differs between positions if its inputs have both signs, that of a smooth activation
    if its inputs are not small. In a network with random weights both may fail: SiLU near zero is linear. Without
    this context, the chosen layers would depend on the weights.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; if it is a rectifier of a map, multiply its gradient in the backward pass."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not rectifies(func, args, kwargs) or output.ndim != 4 or not output.requires_grad:
            return output
        return _RandomGate.apply(output)

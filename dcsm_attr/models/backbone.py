"""Operations on backbones that ``torch.fx`` has traced: their stages, dilation instead of strides, and copies."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dcsm_attr.attribution.model import fork_rng, prepared_model

__all__ = ["Stage", "copy_backbone", "find_stages", "multi_stage_backbone", "replace_stride_with_dilation"]


# Convolutions of subclasses stay modules in the trace, as in fully_convolutional.
_TRACING = {"leaf_modules": [nn.Conv2d]}
# Side of the image that strides are measured with.
_PROBE_SIDE = 224


@dataclass(frozen=True)
class Stage:
    """The last of the widest maps that a backbone computes at one resolution.

    Attributes:
        node: name of the map in the traced backbone.
        channels: of the map.
        stride: pixels of the image per position of the map.
    """

    node: str
    channels: int
    stride: int


def find_stages(backbone: nn.Module) -> list[Stage]:
    """Find the stages of a backbone that contain a convolution.

    Args:
        backbone: one that ``torch.fx`` can trace, such as that of a
            :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`; left unchanged.

    Returns:
        One per resolution, the finest first.

    Raises:
        ValueError: if the backbone has no convolutions.
    """
    # Tracing sets the mode of every module.
    traced = copy_backbone(backbone)
    names = get_graph_node_names(traced, tracer_kwargs=_TRACING, suppress_diff_warning=True)[1]
    parameter = next(traced.parameters())
    image = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE, device=parameter.device, dtype=parameter.dtype)
    extractor = create_feature_extractor(
        traced, {name: name for name in names}, tracer_kwargs=_TRACING, suppress_diff_warning=True
    ).eval()
    with torch.no_grad(), fork_rng(parameter.device):
        values = extractor(image)
    stages: dict[int, Stage] = {}
    convolved = set()
    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.ndim != 4:
            continue
        stage = Stage(name, value.shape[1], round(_PROBE_SIDE / value.shape[-1]))
        # The first layers of the next stage may have the resolution of this one, with fewer channels.
        if stage.stride not in stages or stage.channels >= stages[stage.stride].channels:
            stages[stage.stride] = stage
        if _has_convolution(backbone, name):
            convolved.add(stage.stride)
    found = [stage for stride, stage in sorted(stages.items()) if stride in convolved]
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no convolutions whose maps could be used. Use a CNN.")
    return found


def _has_convolution(backbone: nn.Module, node: str) -> bool:
    try:
        module = backbone.get_submodule(node)
    except AttributeError:
        return False
    return any(isinstance(inner, nn.Conv2d) for inner in module.modules())


def multi_stage_backbone(backbone: nn.Module, stages: list[Stage]) -> nn.Module:
    """Return a backbone that returns the maps of several stages.

    Args:
        backbone: see :func:`find_stages`; all of its modules are set to the mode of the backbone itself.
        stages: of this backbone.

    Returns:
        A network from images ``(N, 3, H, W)`` to a dictionary of maps with the keys ``"0"``, ``"1"``, ..., in the order
        of the stages. It shares the parameters of the backbone.
    """
    extractor: nn.Module = create_feature_extractor(
        backbone,
        {stage.node: str(number) for number, stage in enumerate(stages)},
        tracer_kwargs=_TRACING,
        suppress_diff_warning=True,
    )
    return extractor


_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
# Networks without padding lose a few positions: SqueezeNet's maps at stride 8 have 27 of 28.
_TOLERANCE = 1.2


def replace_stride_with_dilation(backbone: nn.Module, output_stride: int) -> None:
    """Remove the strides that make the map coarser than required, and dilate the convolutions behind them, in place.

    On ResNets with bottlenecks, this equals torchvision's ``replace_stride_with_dilation``. Here the traced graph tells
    which convolutions are behind a stride, so that any backbone of modules works. Pools lose their stride too. Pools of
    even width become wider by one, so that they have a center, and pools are not dilated, both as in DeepLab's VGG
    (Chen et al., ICLR 2015).

    Args:
        backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`.
        output_stride: largest number of pixels of the image per position of the map.

    Raises:
        TypeError: if the backbone is not traced.
        ValueError: if the stride is not positive, or strides of functions, which are no modules, remain.
    """
    if output_stride < 1:
        raise ValueError(f"output_stride must be at least 1, got {output_stride}.")
    if not isinstance(backbone, fx.GraphModule):
        raise TypeError(
            f"only a traced backbone can be dilated, such as a ScoreMapNetwork's; got {type(backbone).__name__}."
        )
    # Of each node: its stride in pixels, and the dilation of the convolutions behind it.
    reached: dict[fx.Node, tuple[int, int]] = {}
    for node in backbone.graph.nodes:
        inputs = [reached[source] for source in node.all_input_nodes]
        stride, dilation = (max(values) for values in zip(*inputs, strict=True)) if inputs else (1, 1)
        if node.op == "call_module":
            # Some modules are one node of the graph with several layers inside.
            for layer in backbone.get_submodule(str(node.target)).modules():
                stride, dilation = _adapt_layer(layer, stride, dilation, output_stride)
        reached[node] = stride, dilation
    remaining = _measure_stride(backbone)
    if remaining > _TOLERANCE * output_stride:
        raise ValueError(
            f"this network cannot have output_stride={output_stride}: some of its strides are in functions, not in "
            "modules. Use another network, or cut it before them."
        )


def _adapt_layer(layer: nn.Module, stride: int, dilation: int, output_stride: int) -> tuple[int, int]:
    """Change one layer in place, and return the stride and the dilation behind it."""
    if not isinstance(layer, (nn.Conv2d, *_POOLS)):
        return stride, dilation
    own = max(_pair(layer.stride))
    exceeds = own > 1 and stride * own > output_stride
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        # A 1 x 1 convolution has nothing to dilate, and is slower with a dilation.
        if max(layer.kernel_size) > 1:
            layer.dilation = _pair(dilation * value for value in layer.dilation)
            layer.padding = _pair(dilation * value for value in layer.padding)
        layer.stride = (1, 1) if exceeds else layer.stride
    elif exceeds:
        kernel = max(_pair(layer.kernel_size)) | 1
        layer.kernel_size, layer.stride, layer.padding = kernel, 1, kernel // 2
    return (stride, dilation * own) if exceeds else (stride * own, dilation)


def _pair(value: int | Iterable[int]) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def _measure_stride(backbone: nn.Module) -> float:
    parameter = next(backbone.parameters())
    image = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE, device=parameter.device, dtype=parameter.dtype)
    try:
        with prepared_model(backbone, image.device):
            return _PROBE_SIDE / int(backbone(image)["map"].shape[-1])
    except RuntimeError:
        # Branches that no longer have the same size.
        return math.inf


# Graphs of both modes in torchvision's extractors, which PyTorch 2.4 omits from copies.
_GRAPHS = ("train_graph", "eval_graph")


def copy_backbone(backbone: nn.Module) -> nn.Module:
    """Copy a backbone with its weights, so that the copy can change its mode.

    Args:
        backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`, or any module. It
            is left unchanged.

    Returns:
        The copy, which shares no memory with the backbone.
    """
    copied = copy.deepcopy(backbone)
    for name in _GRAPHS:
        if hasattr(backbone, name) and not hasattr(copied, name):
            setattr(copied, name, copy.deepcopy(getattr(backbone, name)))
    return copied

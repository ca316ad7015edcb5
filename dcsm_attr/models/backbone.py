"""A copy of a traced backbone that changes its mode as the backbone does.

The stages of a backbone: one map at each of its resolutions, from one forward pass.

A backbone without its last strides: maps of a higher resolution from the same weights, by dilation.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dcsm_attr.attribution.model import fork_rng, prepared_model

__all__ = ["Stage", "copy_backbone", "find_stages", "multi_stage_backbone", "replace_stride_with_dilation"]


# What torchvision's extractors keep of each mode, and PyTorch 2.4 leaves out of copies of traced modules.
_GRAPHS = ("train_graph", "eval_graph")


def copy_backbone(backbone: nn.Module) -> nn.Module:
    """Copy a backbone with its weights.

    Args:
        backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`, or any module; it is left as it
        is.

    Returns:
        The copy, which shares nothing with it.
    """
    copied = copy.deepcopy(backbone)
    for name in _GRAPHS:
        if hasattr(backbone, name) and not hasattr(copied, name):
            setattr(copied, name, copy.deepcopy(getattr(backbone, name)))
    return copied


# Convolutions of a library's own kind stay modules too, as in fully_convolutional.
_TRACING = {"leaf_modules": [nn.Conv2d]}
_SIDE = 224


@dataclass(frozen=True)
class Stage:
    """What a backbone computes at one resolution.

    Attributes:
        node: name of the last of its widest maps in the traced backbone.
        channels: of the map.
        stride: pixels of the image to one position of the map.
    """

    node: str
    channels: int
    stride: int


def find_stages(backbone: nn.Module) -> list[Stage]:
    """Find the stages of a backbone that hold a convolution.

    Args:
        backbone: that ``torch.fx`` can trace, such as that of a
            :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`; it is left as it is.

    Returns:
        One for each resolution, the finest first.

    Raises:
        ValueError: if it gives no maps.
    """
    # Tracing puts every module in one mode.
    traced = copy_backbone(backbone)
    names = get_graph_node_names(traced, tracer_kwargs=_TRACING, suppress_diff_warning=True)[1]
    parameter = next(traced.parameters())
    image = torch.zeros(1, 3, _SIDE, _SIDE, device=parameter.device, dtype=parameter.dtype)
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
        stage = Stage(name, value.shape[1], round(_SIDE / value.shape[-1]))
        # The blocks of the next stage may begin at the resolution of this one, with fewer channels.
        if stage.stride not in stages or stage.channels >= stages[stage.stride].channels:
            stages[stage.stride] = stage
        if _has_convolution(backbone, name):
            convolved.add(stage.stride)
    found = [stage for stride, stage in sorted(stages.items()) if stride in convolved]
    if not found:
        raise ValueError(f"{type(backbone).__name__} has no convolutions whose maps could be taken: name a CNN.")
    return found


def _has_convolution(backbone: nn.Module, node: str) -> bool:
    try:
        module = backbone.get_submodule(node)
    except AttributeError:
        return False
    return any(isinstance(inner, nn.Conv2d) for inner in module.modules())


def multi_stage_backbone(backbone: nn.Module, stages: list[Stage]) -> nn.Module:
    """The same backbone with the maps of some stages as its result.

    Args:
        backbone: as in :func:`find_stages`, but for its modules, which all take the mode of the backbone itself.
        stages: of it.

    Returns:
        A network that shares the parameters which the stages need; images ``(N, 3, H, W)`` to a dictionary of maps by
        the names ``"0"``, ``"1"``, ..., in the order of the stages.
    """
    extractor: nn.Module = create_feature_extractor(
        backbone,
        {stage.node: str(number) for number, stage in enumerate(stages)},
        tracer_kwargs=_TRACING,
        suppress_diff_warning=True,
    )
    return extractor


_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_PROBE_SIDE = 224
# Networks without padding lose a few positions: SqueezeNet's maps at stride 8 have 27 of 28.
_TOLERANCE = 1.2


def replace_stride_with_dilation(backbone: nn.Module, output_stride: int) -> None:
    """Take the strides away that would make the map coarser, and dilate the convolutions behind them, in place.

    Of ResNets with bottlenecks that is torchvision's ``replace_stride_with_dilation``; here the graph says which
    convolutions lie behind a stride, so that it works on any backbone of modules. Pools lose their stride too; those
    of an even width become wider by one, so that they have a center, and none is dilated, both as in DeepLab's VGG
    (Chen et al., ICLR 2015).

    Args:
        backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`.
        output_stride: pixels of the image to one position of the map, that are not exceeded.

    Raises:
        TypeError: if the backbone was not traced.
        ValueError: if the stride is not positive, or strides are left that are those of no module.
    """
    if output_stride < 1:
        raise ValueError(f"output_stride must be at least 1, got {output_stride}.")
    if not isinstance(backbone, fx.GraphModule):
        raise TypeError(
            f"only a traced backbone can be dilated, such as a ScoreMapNetwork's; got {type(backbone).__name__}."
        )
    # Of each node: pixels to a position, and positions between the values that belonged side by side.
    reached: dict[fx.Node, tuple[int, int]] = {}
    for node in backbone.graph.nodes:
        before = [reached[given] for given in node.all_input_nodes]
        stride, dilation = (max(values) for values in zip(*before, strict=True)) if before else (1, 1)
        if node.op == "call_module":
            # Some modules are traced as one node, with a chain of layers within.
            for layer in backbone.get_submodule(str(node.target)).modules():
                stride, dilation = _kept(layer, stride, dilation, output_stride)
        reached[node] = stride, dilation
    left = _measure_stride(backbone)
    if left > _TOLERANCE * output_stride:
        raise ValueError(
            f"output_stride={output_stride} cannot be had of this network: some of its strides are those of functions, "
            "not of modules. Take another network, or cut it before them."
        )


def _kept(layer: nn.Module, stride: int, dilation: int, output_stride: int) -> tuple[int, int]:
    """Change one layer; the stride and the dilation behind it."""
    if not isinstance(layer, (nn.Conv2d, *_POOLS)):
        return stride, dilation
    own = max(_pair(layer.stride))
    exceeds = own > 1 and stride * own > output_stride
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        # A convolution of one cell has nothing to dilate, and is slower if it is said to be.
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
        # Branches that no longer have one size.
        return math.inf

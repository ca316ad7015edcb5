"""A trunk without its last strides: maps of a higher resolution from the same weights, by dilation."""

import math
from collections.abc import Iterable

import torch
from torch import fx, nn

from dcsm_attr.guest import evaluation_mode

__all__ = ["keep_resolution"]

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_SIDE = 224
# Networks without padding lose a few positions: SqueezeNet's maps at stride 8 have 27 of 28.
_TOLERANCE = 1.2


def keep_resolution(trunk: nn.Module, output_stride: int) -> None:
    """Take the strides away that would make the map coarser, and dilate the convolutions behind them, in place.

    Of ResNets with bottlenecks that is torchvision's ``replace_stride_with_dilation``; here the graph says which
    convolutions lie behind a stride, so that it works on any trunk of modules. Pools lose their stride too; those of an
    even width become wider by one, so that they have a centre, and none is dilated, both as in DeepLab's VGG (Chen et
    al., ICLR 2015).

    Args:
        trunk: of a :class:`~dcsm_attr.backbones.convolutional.ScoreMapNetwork`.
        output_stride: pixels of the image to one position of the map, that are not exceeded.

    Raises:
        TypeError: if the trunk was not traced.
        ValueError: if the stride is not positive, or strides are left that are those of no module.
    """
    if output_stride < 1:
        raise ValueError(f"output_stride must be at least 1, got {output_stride}.")
    if not isinstance(trunk, fx.GraphModule):
        raise TypeError(f"only a traced trunk can be dilated, such as a ScoreMapNetwork's; got {type(trunk).__name__}.")
    # Of each node: pixels to a position, and positions between the values that belonged side by side.
    reached: dict[fx.Node, tuple[int, int]] = {}
    for node in trunk.graph.nodes:
        before = [reached[given] for given in node.all_input_nodes]
        stride, dilation = (max(values) for values in zip(*before, strict=True)) if before else (1, 1)
        if node.op == "call_module":
            # Some modules are traced as one node, with a chain of layers within.
            for layer in trunk.get_submodule(str(node.target)).modules():
                stride, dilation = _kept(layer, stride, dilation, output_stride)
        reached[node] = stride, dilation
    left = _stride_left(trunk)
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


def _stride_left(trunk: nn.Module) -> float:
    parameter = next(trunk.parameters())
    image = torch.zeros(1, 3, _SIDE, _SIDE, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.no_grad(), evaluation_mode(trunk):
            return _SIDE / int(trunk(image)["map"].shape[-1])
    except RuntimeError:
        # Branches that no longer have one size.
        return math.inf

"""The stages of a trunk: one map at each of its resolutions, from one forward pass."""

from dataclasses import dataclass

import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from dcsm_attr.backbones.trunk_copy import copied_trunk
from dcsm_attr.guest import preserved_random_state

__all__ = ["Stage", "staged_trunk", "stages_of"]

# Convolutions of a library's own kind stay modules too, as in fully_convolutional.
_TRACING = {"leaf_modules": [nn.Conv2d]}
_SIDE = 224


@dataclass(frozen=True)
class Stage:
    """What a trunk computes at one resolution.

    Attributes:
        node: name of the last of its widest maps in the traced trunk.
        channels: of the map.
        stride: pixels of the image to one position of the map.
    """

    node: str
    channels: int
    stride: int


def stages_of(trunk: nn.Module) -> list[Stage]:
    """Find the stages of a trunk that hold a convolution.

    Args:
        trunk: that ``torch.fx`` can trace, such as that of a
            :class:`~dcsm_attr.backbones.convolutional.ScoreMapNetwork`; it is left as it is.

    Returns:
        One for each resolution, the finest first.

    Raises:
        ValueError: if it gives no maps.
    """
    # Tracing puts every module in one mode.
    traced = copied_trunk(trunk)
    names = get_graph_node_names(traced, tracer_kwargs=_TRACING, suppress_diff_warning=True)[1]
    parameter = next(traced.parameters())
    image = torch.zeros(1, 3, _SIDE, _SIDE, device=parameter.device, dtype=parameter.dtype)
    extractor = create_feature_extractor(
        traced, {name: name for name in names}, tracer_kwargs=_TRACING, suppress_diff_warning=True
    ).eval()
    with torch.no_grad(), preserved_random_state(parameter.device):
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
        if _convolves(trunk, name):
            convolved.add(stage.stride)
    found = [stage for stride, stage in sorted(stages.items()) if stride in convolved]
    if not found:
        raise ValueError(f"{type(trunk).__name__} has no convolutions whose maps could be taken: name a CNN.")
    return found


def _convolves(trunk: nn.Module, node: str) -> bool:
    try:
        module = trunk.get_submodule(node)
    except AttributeError:
        return False
    return any(isinstance(inner, nn.Conv2d) for inner in module.modules())


def staged_trunk(trunk: nn.Module, stages: list[Stage]) -> nn.Module:
    """The same trunk with the maps of some stages as its result.

    Args:
        trunk: as in :func:`stages_of`, but for its modules, which all take the mode of the trunk itself.
        stages: of it.

    Returns:
        A network that shares the parameters which the stages need; images ``(N, 3, H, W)`` to a dictionary of maps by
        the names ``"0"``, ``"1"``, ..., in the order of the stages.
    """
    extractor: nn.Module = create_feature_extractor(
        trunk,
        {stage.node: str(number) for number, stage in enumerate(stages)},
        tracer_kwargs=_TRACING,
        suppress_diff_warning=True,
    )
    return extractor

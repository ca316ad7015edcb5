"""A copy of a traced trunk that changes its mode as the trunk does."""

import copy

from torch import nn

__all__ = ["copied_trunk"]

# What torchvision's extractors keep of each mode, and PyTorch 2.4 leaves out of copies of traced modules.
_GRAPHS = ("train_graph", "eval_graph")


def copied_trunk(trunk: nn.Module) -> nn.Module:
    """Copy a trunk with its weights.

    Args:
        trunk: of a :class:`~dcsm_attr.backbones.convolutional.ScoreMapNetwork`, or any module; it is left as it is.

    Returns:
        The copy, which shares nothing with it.
    """
    copied = copy.deepcopy(trunk)
    for name in _GRAPHS:
        if hasattr(trunk, name) and not hasattr(copied, name):
            setattr(copied, name, copy.deepcopy(getattr(trunk, name)))
    return copied

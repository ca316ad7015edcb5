"""Optimiser and learning rates of a training, as a preset has them."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from dcsm_attr.training.presets import Preset

__all__ = ["PartedNetwork", "optimisation"]

# Of the falling rate, as in DeepLab and in what followed it.
_POLY_POWER = 0.9


class PartedNetwork(Protocol):
    """A network of a trunk that has learned before and a head that has not."""

    @property
    def trunk(self) -> nn.Module:
        """Images to features."""
        ...

    @property
    def head(self) -> nn.Module:
        """Features to what the loss takes."""
        ...


def optimisation(network: PartedNetwork, preset: Preset) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Make the optimiser of a network and the schedule of its rates.

    Args:
        network: whose trunk and head have rates of their own.
        preset: says which.

    Returns:
        Both, at step 0.
    """
    groups = list(_parameter_groups(network, preset))
    rates = [group["lr"] for group in groups]
    optimiser: torch.optim.Optimizer
    if preset.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=preset.learning_rate, momentum=preset.momentum)
    else:
        optimiser = torch.optim.AdamW(groups, lr=preset.learning_rate)
    if preset.schedule == "constant":
        return optimiser, LambdaLR(optimiser, lambda step: 1.0)
    if preset.schedule == "poly":
        return optimiser, LambdaLR(optimiser, lambda step: (1 - min(step, preset.steps) / preset.steps) ** _POLY_POWER)
    if preset.decay is not None:
        return optimiser, StepLR(optimiser, *preset.decay)
    # The momentum stays: the last step of the schedule is one more than there are.
    total = preset.steps + 1
    # The rise takes a fifth of the steps, but one at least: PyTorch divides by its length.
    return optimiser, OneCycleLR(
        optimiser, rates, total_steps=total, cycle_momentum=False, pct_start=max(0.2, 2 / total)
    )


def _parameter_groups(network: PartedNetwork, preset: Preset) -> Iterator[dict[str, Any]]:
    for part, rate in ((network.trunk, 1.0), (network.head, preset.head_rate)):
        for decays in (True, False):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == decays]
            if parameters:
                yield {
                    "params": parameters,
                    "lr": rate * preset.learning_rate,
                    "weight_decay": preset.weight_decay if decays else 0.0,
                }

"""How a network is trained; of a classifier, the paper's way, and one for little data.

Optimizer and learning rates of a training, as a preset has them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from dcsm_attr.attribution.model import PoolingName

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LITTLE_DATA", "PRESETS", "BackboneHeadNetwork", "ClassifierPreset", "Preset", "PresetName", "optimization"]


PresetName = Literal["paper", "modern"]


@dataclass(frozen=True)
class Preset:
    """Everything that training depends on beside network, photographs and loss.

    Attributes:
        optimizer: ``"sgd"`` with momentum, or ``"adamw"``.
        schedule: ``"constant"``; ``"onecycle"``: the rate rises and falls once (Smith and Topin 2017); ``"poly"``: it
            falls to zero as ``(1 - step / steps) ** 0.9``; ``"step"``: see ``decay``.
        learning_rate: of the backbone; with one-cycle the highest.
        head_rate: of the head, as a multiple of that.
        weight_decay: of all parameters with more than one dimension.
        batch_size: photographs in one step, over all processes.
        steps: of the optimizer.
        head_only: of these, the first ones, in which the head alone is trained.
        ratios: between which each batch is resized, both sides alike.
        gradient_limit: norm that the gradient is scaled down to. None: there is no limit.
        momentum: of SGD.
        decay: of the schedule ``"step"``: a number of steps, and the factor of the rate whenever so many are done.

    Raises:
        ValueError: if a number is out of its range, or ``decay`` does not go with the schedule.
    """

    optimizer: Literal["sgd", "adamw"]
    schedule: Literal["constant", "onecycle", "poly", "step"]
    learning_rate: float
    head_rate: float
    weight_decay: float
    batch_size: int
    steps: int
    head_only: int
    ratios: tuple[float, float] = (0.7, 1.4)
    gradient_limit: float | None = None
    momentum: float = 0.9
    decay: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("learning_rate", "head_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.batch_size < 1 or self.steps < 1:
            raise ValueError(
                f"batch_size and steps must be at least 1, got batch_size={self.batch_size}, steps={self.steps}."
            )
        if not 0 <= self.head_only <= self.steps:
            raise ValueError(f"head_only must lie between 0 and steps = {self.steps}, got {self.head_only}.")
        if not 0 < self.ratios[0] <= self.ratios[1] <= 4:
            raise ValueError(f"ratios must be positive, ascending and at most 4, got {self.ratios}.")
        if (self.schedule == "step") != (self.decay is not None):
            raise ValueError(f"the schedule 'step' alone needs decay; got {self.schedule!r} with decay={self.decay}.")
        if self.decay is not None and (self.decay[0] < 1 or not 0 < self.decay[1] <= 1):
            raise ValueError(f"decay must be a number of steps and a factor in (0, 1], got {self.decay}.")

    def adapted(self, **changes: Any) -> "Self":
        """The same with other numbers; the head keeps its share of the steps.

        Args:
            **changes: fields of the preset; those that are None stay as they are.

        Raises:
            ValueError: if one is out of its range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        steps = given.get("steps", self.steps)
        return replace(self, **given, head_only=round(self.head_only * steps / self.steps))


#: For networks other than classifiers, which are trained from label maps of a few hundred photographs.
LITTLE_DATA = Preset(
    optimizer="adamw",
    schedule="onecycle",
    learning_rate=1e-4,
    head_rate=10.0,
    weight_decay=1e-2,
    batch_size=8,
    steps=500,
    head_only=50,
    gradient_limit=10.0,
)


@dataclass(frozen=True, kw_only=True)
class ClassifierPreset(Preset):
    """The same with what a classifier needs.

    Attributes:
        pooling: of score maps to scores, see :func:`dcsm_attr.attribution.model.pool_score_maps`.
    """

    pooling: PoolingName


PRESETS: dict[PresetName, ClassifierPreset] = {
    # Section 4.2 of the paper: batches of two, 30,000 steps above pool5, then 20,000 of all layers.
    "paper": ClassifierPreset(
        optimizer="sgd",
        schedule="constant",
        learning_rate=1e-5,
        head_rate=1.0,
        weight_decay=5e-4,
        batch_size=2,
        steps=50_000,
        head_only=30_000,
        pooling="max",
    ),
    "modern": ClassifierPreset(
        optimizer="adamw",
        schedule="onecycle",
        learning_rate=2e-4,
        head_rate=5.0,
        weight_decay=1e-2,
        batch_size=16,
        steps=300,
        head_only=30,
        # A maximum teaches one position a class and picture: from few pictures, too little.
        pooling="average",
        gradient_limit=10.0,
    ),
}


# Of the falling rate, as in DeepLab and in what followed it.
_POLY_POWER = 0.9


class BackboneHeadNetwork(Protocol):
    """A network of a backbone that has learned before and a head that has not."""

    @property
    def backbone(self) -> nn.Module:
        """Images to features."""
        ...

    @property
    def head(self) -> nn.Module:
        """Features to what the loss takes."""
        ...


def optimization(network: BackboneHeadNetwork, preset: Preset) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Make the optimizer of a network and the schedule of its rates.

    Args:
        network: whose backbone and head have rates of their own.
        preset: says which.

    Returns:
        Both, at step 0.
    """
    groups = list(_parameter_groups(network, preset))
    rates = [group["lr"] for group in groups]
    optimizer: torch.optim.Optimizer
    if preset.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=preset.learning_rate, momentum=preset.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=preset.learning_rate)
    if preset.schedule == "constant":
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)
    if preset.schedule == "poly":
        return optimizer, LambdaLR(optimizer, lambda step: (1 - min(step, preset.steps) / preset.steps) ** _POLY_POWER)
    if preset.decay is not None:
        return optimizer, StepLR(optimizer, *preset.decay)
    # The momentum stays: the last step of the schedule is one more than there are.
    total = preset.steps + 1
    # The rise takes a fifth of the steps, but one at least: PyTorch divides by its length.
    return optimizer, OneCycleLR(
        optimizer, rates, total_steps=total, cycle_momentum=False, pct_start=max(0.2, 2 / total)
    )


def _parameter_groups(network: BackboneHeadNetwork, preset: Preset) -> Iterator[dict[str, Any]]:
    for part, rate in ((network.backbone, 1.0), (network.head, preset.head_rate)):
        for decays in (True, False):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == decays]
            if parameters:
                yield {
                    "params": parameters,
                    "lr": rate * preset.learning_rate,
                    "weight_decay": preset.weight_decay if decays else 0.0,
                }

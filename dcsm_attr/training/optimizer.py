"""How long and how fast a network is trained: schedules, and the optimizer that follows one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from dcsm_attr.attribution.model import PoolingName

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LITTLE_DATA", "BackboneHeadNetwork", "ClassifierSchedule", "Schedule", "ScheduleName", "build_optimizer"]


#: ``"paper"``: as published. ``"modern"``: for little data.
ScheduleName = Literal["paper", "modern"]


@dataclass(frozen=True)
class Schedule:
    """Optimizer, learning rates, batches and steps of a training.

    Attributes:
        optimizer: ``"sgd"`` with momentum, or ``"adamw"``.
        policy: how the learning rate changes. ``"constant"``; ``"onecycle"``: rises and falls once (Smith and Topin
            2017); ``"poly"``: falls to zero as ``(1 - step / steps) ** 0.9`` (DeepLab); ``"step"``: see ``step_decay``.
        learning_rate: of the backbone; with ``"onecycle"``, the highest.
        head_rate_factor: learning rate of the head, as a multiple of ``learning_rate``.
        weight_decay: of all parameters with more than one dimension.
        batch_size: number of images per step, over all processes.
        steps: number of steps.
        head_only_steps: number of first steps in which only the head is trained.
        scale_range: bounds of the factor that each batch is resized by, in (0, 4].
        max_gradient_norm: larger gradients are scaled down to this norm. None: no limit.
        momentum: of SGD.
        step_decay: of the policy ``"step"``: the learning rate is multiplied by the second number whenever the first
            number of steps is done.

    Raises:
        ValueError: if a number is out of its range, or ``step_decay`` does not go with the policy.
    """

    optimizer: Literal["sgd", "adamw"]
    policy: Literal["constant", "onecycle", "poly", "step"]
    learning_rate: float
    head_rate_factor: float
    weight_decay: float
    batch_size: int
    steps: int
    head_only_steps: int
    scale_range: tuple[float, float] = (0.7, 1.4)
    max_gradient_norm: float | None = None
    momentum: float = 0.9
    step_decay: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("learning_rate", "head_rate_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.batch_size < 1 or self.steps < 1:
            raise ValueError(
                f"batch_size and steps must be at least 1, got batch_size={self.batch_size}, steps={self.steps}."
            )
        if not 0 <= self.head_only_steps <= self.steps:
            raise ValueError(f"head_only_steps must be between 0 and steps = {self.steps}, got {self.head_only_steps}.")
        if not 0 < self.scale_range[0] <= self.scale_range[1] <= 4:
            raise ValueError(f"scale_range must be positive, ascending and at most 4, got {self.scale_range}.")
        if (self.policy == "step") != (self.step_decay is not None):
            raise ValueError(
                f"step_decay belongs to the policy 'step', which needs it; got {self.policy!r} with "
                f"step_decay={self.step_decay}."
            )
        if self.step_decay is not None and (self.step_decay[0] < 1 or not 0 < self.step_decay[1] <= 1):
            raise ValueError(f"step_decay must be a number of steps and a factor in (0, 1], got {self.step_decay}.")

    def with_changes(self, **changes: Any) -> "Self":
        """Return the same schedule with other numbers; the share of steps that train only the head stays the same.

        Args:
            **changes: attributes and their values; None keeps an attribute.

        Raises:
            ValueError: if a number is out of its range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        steps = given.get("steps", self.steps)
        return replace(self, **given, head_only_steps=round(self.head_only_steps * steps / self.steps))


@dataclass(frozen=True, kw_only=True)
class ClassifierSchedule(Schedule):
    """A schedule of a classifier.

    Attributes:
        pooling: from score maps to scores, see :func:`dcsm_attr.attribution.model.pool_score_maps`.
    """

    pooling: PoolingName


#: For networks that learn from label maps of a few hundred images.
LITTLE_DATA = Schedule(
    optimizer="adamw",
    policy="onecycle",
    learning_rate=1e-4,
    head_rate_factor=10.0,
    weight_decay=1e-2,
    batch_size=8,
    steps=500,
    head_only_steps=50,
    max_gradient_norm=10.0,
)


class BackboneHeadNetwork(Protocol):
    """A network with a pretrained backbone and a new head."""

    @property
    def backbone(self) -> nn.Module:
        """Maps images to features."""
        ...

    @property
    def head(self) -> nn.Module:
        """Maps features to the input of the loss."""
        ...


# As in DeepLab.
_POLY_POWER = 0.9


def build_optimizer(network: BackboneHeadNetwork, schedule: Schedule) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Build the optimizer of a network and the scheduler of its learning rates.

    Args:
        network: its backbone and head have different learning rates.
        schedule: optimizer, policy and rates.

    Returns:
        The optimizer and the scheduler, at step 0.
    """
    groups = list(_parameter_groups(network, schedule))
    rates = [group["lr"] for group in groups]
    steps = schedule.steps
    optimizer: torch.optim.Optimizer
    if schedule.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=schedule.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
    if schedule.policy == "constant":
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)
    if schedule.policy == "poly":
        return optimizer, LambdaLR(optimizer, lambda step: (1 - min(step, steps) / steps) ** _POLY_POWER)
    if schedule.step_decay is not None:
        return optimizer, StepLR(optimizer, *schedule.step_decay)
    # The training loop also calls the scheduler after the last step. The rise takes a fifth of the steps, but at least
    # one: PyTorch divides by its length.
    total = steps + 1
    return optimizer, OneCycleLR(
        optimizer, rates, total_steps=total, cycle_momentum=False, pct_start=max(0.2, 2 / total)
    )


def _parameter_groups(network: BackboneHeadNetwork, schedule: Schedule) -> Iterator[dict[str, Any]]:
    for part, rate_factor in ((network.backbone, 1.0), (network.head, schedule.head_rate_factor)):
        for decays in (True, False):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == decays]
            if parameters:
                yield {
                    "params": parameters,
                    "lr": rate_factor * schedule.learning_rate,
                    "weight_decay": schedule.weight_decay if decays else 0.0,
                }

"""What gates a gradient by position, found whatever the weights are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dcsm_attr.rectifiers import rectifies

__all__ = ["GatingRectifiers"]


class _Gate(torch.autograd.Function):
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


class GatingRectifiers(TorchFunctionMode):
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
        return _Gate.apply(output)

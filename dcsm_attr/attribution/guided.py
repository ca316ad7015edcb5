r"""Guided backpropagation as a context manager that changes no module.

At a rectifier, guided backpropagation (Springenberg et al., "Striving for Simplicity", ICLR 2015 workshop) passes on
only positive gradients, and only at positions where the input was positive:

.. math:: g_{in} = g_{out} \cdot [x > 0] \cdot [g_{out} > 0]

:class:`GuidedRectifiers` replaces the *functions* during a forward pass, not the modules. It therefore reaches
in-place, reused and functional rectifiers, and gives the same values as Captum's ``GuidedBackprop`` for models that
the latter supports.

Extension, not in the paper: for similar activations (ReLU6, LeakyReLU, PReLU, RReLU, ELU, SELU, CELU, SiLU, GELU, Mish,
Hardswish, Softplus), positive gradients pass through the derivative of the activation,
:math:`g_{in} = f'(x) \cdot \max(g_{out}, 0)`. For :math:`f = \mathrm{ReLU}` this is the rule above.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["RELU", "RELU_IN_PLACE", "GuidedRectifiers", "rectifies", "unguided_rectifiers"]


_AnyFunction = Callable[..., Any]


class GuidedRectifiers(TorchFunctionMode):
    """Within this context, rectifiers use the guided rule in the backward pass.

    Forward values are unchanged, bit for bit. The rule is part of the graph, so the backward pass may run outside of
    the context. The context applies to the thread that entered it; it does not reach the replicas that ``DataParallel``
    runs in other threads, nor TorchScript code. Of nested contexts only the innermost is active, so that a hook or a
    model of the user may use another method during the forward pass.

    Attributes:
        seen: number of rectifier calls.
        guided: number of calls whose input required a gradient, so that the rule has an effect.

    Examples::

        >>> with GuidedRectifiers() as rule:
        >>>     logits = model(x)  # x requires gradients
        >>> (gradient,) = torch.autograd.grad(logits[:, 243].sum(), x)
        >>> rule.guided
        13
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.guided = 0

    def __enter__(self) -> Any:
        _active_rules.rules.append(self)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        _active_rules.rules.pop()

    def __torch_function__(
        self,
        func: _AnyFunction,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or its guided form if it is a rectifier."""
        kwargs = kwargs or {}
        if _active_rules.rules[-1] is not self or not rectifies(func, args, kwargs):
            return func(*args, **kwargs)
        self.seen += 1
        x, *rest = args or (kwargs.pop("input"),)
        if not x.requires_grad:
            return func(x, *rest, **kwargs)
        self.guided += 1
        if func in RELU or func in RELU_IN_PLACE:
            return _GuidedReLU.apply(x, func in RELU_IN_PLACE or kwargs.get("inplace", False))
        return _guided_activation(func, x, rest, kwargs)


@contextmanager
def unguided_rectifiers() -> Iterator[None]:
    """Within this context, rectifiers keep their own gradient, even inside :class:`GuidedRectifiers`."""
    _active_rules.rules.append(None)
    try:
        yield
    finally:
        _active_rules.rules.pop()


class _ActiveRules(threading.local):
    """The active contexts of a thread, innermost last; None for :func:`unguided_rectifiers`."""

    def __init__(self) -> None:
        self.rules: list[GuidedRectifiers | None] = []


_active_rules = _ActiveRules()


def rectifies(function: _AnyFunction, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Return whether a call is that of a rectifier: ReLU in any form, or a similar activation.

    Args:
        function: the function that a :class:`~torch.overrides.TorchFunctionMode` receives.
        arguments: its positional arguments.
        named: its keyword arguments.

    Returns:
        True for ReLU, and for ReLU6, LeakyReLU, PReLU, RReLU, ELU, SELU, CELU, SiLU, GELU, Mish, Hardswish, Softplus;
        for clamp, hardtanh and threshold if their lower limit is zero.
    """
    if function in _CLAMP_FUNCTIONS:
        limits = {name: value for name, value in named.items() if name != "input"}
        return _CLAMP_FUNCTIONS[function](*arguments[1:], **limits)
    return function in RELU or function in RELU_IN_PLACE or function in _RELU_LIKE


RELU: set[_AnyFunction] = {F.relu, torch.relu, Tensor.relu}
RELU_IN_PLACE: set[_AnyFunction] = {torch.relu_, Tensor.relu_}
_RELU_LIKE: set[_AnyFunction] = {
    *(F.celu, F.elu, F.gelu, F.hardswish, F.leaky_relu, F.mish, F.prelu, F.relu6, F.rrelu, F.selu, F.silu, F.softplus),
    *(F.elu_, F.leaky_relu_, torch.celu, torch.prelu, torch.rrelu, torch.selu, Tensor.prelu),
    *(torch.celu_, torch.rrelu_, torch.selu_),
}


def _is_zero(limit: Any) -> bool:
    # Only plain numbers: reading the value of a tensor would wait for its device.
    return isinstance(limit, (int, float)) and limit == 0


def _clamps_at_zero(*limits: Any, **named: Any) -> bool:
    return _is_zero(named.get("min", limits[0] if limits else None))


# These functions rectify only if their limit is zero; each has a predicate for the arguments after the input.
_CLAMP_FUNCTIONS: dict[_AnyFunction, Callable[..., bool]] = {
    **dict.fromkeys(
        (torch.clamp, torch.clamp_, torch.clip, torch.clip_, torch.clamp_min, torch.clamp_min_), _clamps_at_zero
    ),
    **dict.fromkeys((Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_), _clamps_at_zero),
    **dict.fromkeys((Tensor.clamp_min, Tensor.clamp_min_), _clamps_at_zero),
    **dict.fromkeys(
        (F.hardtanh, F.hardtanh_),
        lambda min_val=-1.0, max_val=1.0, inplace=False: _is_zero(min_val),
    ),
    **dict.fromkeys(
        (F.threshold, torch.threshold, torch.threshold_),
        lambda threshold, value, inplace=False: _is_zero(threshold) and _is_zero(value),
    ),
}


class _GuidedReLU(torch.autograd.Function):
    """ReLU with the guided rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(_open_mask(x))
        if not in_place:
            return x.clamp(min=0)
        ctx.mark_dirty(x)
        return x.clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (is_open,) = ctx.saved_tensors
        return gradients[0].clamp(min=0).mul_(is_open), None


def _open_mask(x: Tensor) -> Tensor:
    """Return a mask that is one where the input is positive.

    On accelerators one byte per element, which needs less memory than the output that ReLU saves. On the CPU the dtype
    of the input, because multiplying by bytes would convert them in each backward pass.
    """
    return torch.gt(x, 0, out=torch.empty_like(x)) if x.device.type == "cpu" else x > 0


def _guided_activation(func: _AnyFunction, x: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    # An in-place activation overwrites this copy and returns it; the guided result is then written to the input.
    copy = x.clone()
    activated = func(copy, *rest, **kwargs)
    guided: Tensor = _PositiveGradients.apply(activated)
    return x.copy_(guided) if activated is copy else guided


class _PositiveGradients(torch.autograd.Function):
    """Identity whose backward pass sets negative gradients to zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # A copy, because a view would not allow in-place operations that may follow in the user's model.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(min=0)

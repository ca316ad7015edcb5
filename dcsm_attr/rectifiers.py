"""Which functions are rectifiers, or relatives of them, however a model calls them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["RELU", "RELU_IN_PLACE", "rectifies"]

_Function = Callable[..., Any]

RELU: set[_Function] = {F.relu, torch.relu, Tensor.relu}
RELU_IN_PLACE: set[_Function] = {torch.relu_, Tensor.relu_}
_RELATIVES: set[_Function] = {
    *(F.celu, F.elu, F.gelu, F.hardswish, F.leaky_relu, F.mish, F.prelu, F.relu6, F.rrelu, F.selu, F.silu, F.softplus),
    *(F.elu_, F.leaky_relu_, torch.celu, torch.prelu, torch.rrelu, torch.selu, Tensor.prelu),
    *(torch.celu_, torch.rrelu_, torch.selu_),
}


def _is_zero(limit: Any) -> bool:
    # A tensor's value would have to be fetched from its device: only plain numbers are looked at.
    return isinstance(limit, (int, float)) and limit == 0


def _cuts_at_zero(*limits: Any, **named: Any) -> bool:
    return _is_zero(named.get("min", limits[0] if limits else None))


# These functions rectify only where they cut at zero: each with a test that reads its arguments after the input.
_LIMITERS: dict[_Function, Callable[..., bool]] = {
    **dict.fromkeys(
        (torch.clamp, torch.clamp_, torch.clip, torch.clip_, torch.clamp_min, torch.clamp_min_), _cuts_at_zero
    ),
    **dict.fromkeys((Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_), _cuts_at_zero),
    **dict.fromkeys((Tensor.clamp_min, Tensor.clamp_min_), _cuts_at_zero),
    **dict.fromkeys(
        (F.hardtanh, F.hardtanh_),
        lambda min_val=-1.0, max_val=1.0, inplace=False: _is_zero(min_val),
    ),
    **dict.fromkeys(
        (F.threshold, torch.threshold, torch.threshold_),
        lambda threshold, value, inplace=False: _is_zero(threshold) and _is_zero(value),
    ),
}


def rectifies(function: _Function, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether a call is that of a rectifier: of ReLU in any spelling, or of a relative.

    Args:
        function: as a :class:`~torch.overrides.TorchFunctionMode` receives it.
        arguments: of the call, by position.
        named: of the call, by name.

    Returns:
        True for ReLU, and for ReLU6, LeakyReLU, PReLU, RReLU, ELU, SELU, CELU, SiLU, GELU, Mish, Hardswish, Softplus;
        for clamp, hardtanh and threshold where they cut at zero.
    """
    if function in _LIMITERS:
        limits = {name: value for name, value in named.items() if name != "input"}
        return _LIMITERS[function](*arguments[1:], **limits)
    return function in RELU or function in RELU_IN_PLACE or function in _RELATIVES

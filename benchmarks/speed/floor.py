"""The floor: what the convolutions and matrix products of the work take alone, run one after the other.

Nothing that gives these gradients exactly can be faster on the same kernels: one forward pass, and for each class a
backward pass down to the first layer. Everything else - rectifiers, pooling, normalization, maps - is not counted.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["forward_from_layer", "lower_bound_implementations"]


_aten = torch.ops.aten
_COUNTED = (_aten.convolution, _aten.convolution_backward, _aten.addmm, _aten.mm, _aten.bmm)

_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def lower_bound_implementations(
    model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """The convolutions alone, in both orders of memory.

    Args:
        model: gives ``(N, C)``.
        first_layer: down to whose output gradients go.
        images: ``(N, 3, H, W)``.
        classes: K of them.
    """

    @cache
    def calls() -> list[_Call]:
        return _calls(model, first_layer, images, classes)

    orders = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    return {f"floor, {name}": _replayed(calls, order, images.device) for name, order in orders.items()}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in _COUNTED:
            self.calls.append((func, *tree_map_only(Tensor, _shape, (args, kwargs))))
        return func(*args, **kwargs)


def _shape(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _calls(model: nn.Module, first_layer: str, images: Tensor, classes: Sequence[int]) -> list[_Call]:
    with _Recorder() as recorder, torch.enable_grad():
        logits, first = forward_from_layer(model, first_layer, images)
        for c in classes:
            torch.autograd.grad(logits[:, c].sum(), first, retain_graph=True)
    calls: list[_Call] = recorder.calls
    return calls


def forward_from_layer(model: nn.Module, first_layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass with a graph that begins at a layer, and without one for weights.

    Args:
        model: gives ``(N, C)``.
        first_layer: whose output is a leaf of the graph.
        images: ``(N, 3, H, W)``.

    Returns:
        The logits, and the leaf.
    """
    tapped: list[Tensor] = []

    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        tapped.append(output.detach().requires_grad_())
        return tapped[-1].clone()

    handle = model.get_submodule(first_layer).register_forward_hook(hook)
    asked = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            return model(images), tapped[0]
    finally:
        handle.remove()
        for parameter, flag in zip(model.parameters(), asked, strict=True):
            parameter.requires_grad_(flag)


def _replayed(calls: Callable[[], list[_Call]], order: torch.memory_format, device: torch.device) -> Callable[[], None]:
    filled: dict[tuple[Any, ...], Tensor] = {}

    def random(meta: Tensor) -> Tensor:
        # Tensors of one shape share their values: the floor is not to be a floor of the memory.
        key = (tuple(meta.shape), meta.dtype)
        if key not in filled:
            values = torch.randn(meta.shape, dtype=meta.dtype, device=device)
            filled[key] = values.contiguous(memory_format=order) if values.ndim == 4 else values
        return filled[key]

    # In the first run, which warms up: who asks for another implementation alone does not wait for it.
    prepared = cache(lambda: [(func, *tree_map_only(Tensor, random, (args, kw))) for func, args, kw in calls()])

    def run() -> None:
        with torch.no_grad():
            for func, args, kwargs in prepared():
                func(*args, **kwargs)

    return run

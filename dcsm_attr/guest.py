"""The user's model is a guest: whatever a call needs to change about it is changed back, also after an exception."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["evaluation_mode", "preserved_random_state", "uncompiled", "unwrapped"]

_lock = threading.Lock()
# How many running calls hold a module in evaluation mode. Without the count, two threads on one model in training mode
# would each remember the other's change as the user's setting.
_held: dict[int, int] = {}
# The same for modules that run uncompiled, with their compiled code.
_uncompiled: dict[int, tuple[int, Any]] = {}
_COMPILED_IN_PLACE = "_compiled_call_impl"

_Found = tuple[Callable[[Tensor], None], Tensor]


@dataclass(eq=False)
class _Call:
    """A running call in which random numbers may be drawn, and what its end gives back: a setter and a state each."""

    thread: int
    found: dict[torch.device, _Found]


# All of them, the first to begin first. Without knowing the others, two that overlap in time would each take what the
# other one drew for the user's.
_calls: list[_Call] = []


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold every submodule of ``model`` in evaluation mode, and restore each one's own ``training`` flag afterwards.

    A class map describes the network as it would be used: with dropout or batch statistics it would be random, would
    depend on the other images of the batch, and would change the running statistics of the model.

    Args:
        model: any module; submodules may have different flags.
    """
    with _lock:
        held = [module for module in model.modules() if module.training or id(module) in _held]
        for module in held:
            _held[id(module)] = _held.get(id(module), 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in held:
                _held[id(module)] -= 1
                if not _held[id(module)]:
                    del _held[id(module)]
                    module.training = True


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run every part of ``model`` that was compiled as the Python that it was compiled from, and give it back after.

    In compiled code there are neither hooks nor function modes: what they would change would be silently left out, or
    compiled with them into code that stays.

    Args:
        model: any module, of which parts were compiled in place (``part.compile()``) or by ``torch.compile(part)``.
    """
    held = []
    with _lock:
        for module in model.modules():
            original = module._modules.get("_orig_mod")
            name = _COMPILED_IN_PLACE if original is None else "forward"
            calls, compiled = _uncompiled.get(id(module), (0, vars(module).get(name)))
            if compiled is not None:
                _uncompiled[id(module)] = calls + 1, compiled
                vars(module)[name] = original
                held.append((module, name))
    try:
        yield
    finally:
        with _lock:
            for module, name in held:
                calls, compiled = _uncompiled.pop(id(module))
                if calls > 1:
                    _uncompiled[id(module)] = calls - 1, compiled
                else:
                    vars(module)[name] = compiled


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[None]:
    """Give PyTorch's random generators of the CPU and of ``device`` back as they were found.

    They belong to the whole process. Where calls in several threads overlap, the last one to end gives back what the
    first one found; another thread that draws from them meanwhile may get the same numbers again.

    Args:
        device: where the model runs; any accelerator of which PyTorch knows a random state.
    """
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    accelerator = module if hasattr(module, "get_rng_state") else None
    with _lock:
        found: dict[torch.device, _Found] = {torch.device("cpu"): (torch.set_rng_state, torch.get_rng_state())}
        if accelerator:
            found[device] = (partial(accelerator.set_rng_state, device=device), accelerator.get_rng_state(device))
        call = _Call(threading.get_ident(), found)
        _calls.append(call)
    try:
        yield
    finally:
        with _lock:
            place = _calls.index(call)
            del _calls[place]
            # A call around this one, in the same thread, goes on with the state that this one found.
            heir = next((other for other in _calls if other.thread != call.thread), None)
            if heir is None:
                for set_state, state in call.found.values():
                    set_state(state)
            elif heir in _calls[place:]:
                # It began later, and may have found what this one had drawn.
                heir.found |= call.found
            else:
                heir.found = call.found | heir.found


def unwrapped(model: nn.Module) -> nn.Module:
    """Find the module that a compilation or a distributed wrapper holds; the wrapper itself is left alone.

    A compiled module runs code in which hooks and function modes no longer exist, and
    :class:`~torch.nn.parallel.DistributedDataParallel` prepares a gradient reduction at each forward.

    Args:
        model: any module.

    Returns:
        The innermost module, whose parameters are those of ``model``.
    """
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner

"""Everything that a call could leave changed: of the user's model, of the inputs, and of the process."""

import gc
import random
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

_GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global") and name.endswith("hooks")]


def snapshot(model, *inputs):
    """The state as flat names and values that compare by ``==``, bit for bit."""
    state = _process()
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if "hook" in attribute:
                state[f"{name}.{attribute}"] = list(value.items()) if isinstance(value, dict) else value
            elif isinstance(value, (bool, int, float, str, tuple, type(None))):
                state[f"{name}.{attribute}"] = value
        # What is set over a method, and what is no longer there.
        state[f"{name}: attributes"] = sorted(vars(module))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        state |= _of_tensor(name, tensor)
    for number, tensor in enumerate(inputs):
        state |= _of_tensor(f"input {number}", tensor)
    return state


@contextmanager
def untouched(model, *inputs):
    """Within this context the state may change; at its end it is what it was."""
    before = snapshot(model, *inputs)
    yield
    assert changes(before, snapshot(model, *inputs)) == []


@contextmanager
def no_graph_left():
    """Within this context tensors with a graph may come into being; at its end none of them is alive."""
    # What is there already is set aside: to look through it takes most of a second.
    gc.freeze()
    try:
        yield
        gc.collect()
        assert [o for o in gc.get_objects() if issubclass(type(o), Tensor) and o.grad_fn is not None] == []
    finally:
        gc.unfreeze()


def changes(before, after):
    """The names of what differs between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _of_tensor(name, tensor):
    return {
        f"{name}: itself": (id(tensor), tensor.data_ptr(), tensor.stride(), tensor._version),
        f"{name}: values": _bits(tensor),
        f"{name}: requires_grad": (tensor.requires_grad, tensor.grad_fn, tensor.is_leaf, tensor.retains_grad),
        f"{name}: grad": None if tensor.grad is None else (id(tensor.grad), tensor.grad._version, _bits(tensor.grad)),
        f"{name}: hooks": [list(hooks.items()) for hooks in _tensor_hooks(tensor)],
    }


def _tensor_hooks(tensor):
    return [h for h in (tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)) if h is not None]


def _bits(tensor: Tensor):
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def _process():
    kind, keys, *rest = np.random.get_state()
    return {
        "random": (_bits(torch.get_rng_state()), random.getstate(), (kind, keys.tobytes(), *rest)),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "defaults": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "global hooks": [list(getattr(torch_module, name).items()) for name in _GLOBAL_HOOKS],
        "warnings": list(warnings.filters),
    }

"""The surroundings in which every method runs the user's model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dcsm_attr.attribution.guided import plain_rectifiers
from dcsm_attr.guest import evaluation_mode, preserved_random_state, uncompiled

__all__ = ["as_guest"]


@contextmanager
def as_guest(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """The model in evaluation mode, uncompiled, without gradients; it and the random state as before afterwards.

    Args:
        forward_func: the model, or a function that calls it, whose modules are not known.
        device: where it runs.
    """
    with ExitStack() as stack:
        if isinstance(forward_func, nn.Module):
            stack.enter_context(evaluation_mode(forward_func))
            stack.enter_context(uncompiled(forward_func))
        stack.enter_context(preserved_random_state(device))
        stack.enter_context(torch.no_grad())
        # The call may stand in a hook or a forward pass that somebody else explains.
        stack.enter_context(plain_rectifiers())
        yield

"""Dropout that a model keeps in evaluation mode, so that any method gives other maps of the same picture each time."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["ActiveDropout"]


class ActiveDropout(TorchFunctionMode):
    """Within this context, dropout drops, whatever mode the model is in, with random numbers of its own.

    The methods of this package hold the model in evaluation mode, and give PyTorch's random state back as they found
    it; here dropout drops all the same, and each call draws on. Reached are ``nn.Dropout``, ``nn.Dropout2d`` and their
    functions, as :class:`~dcsm_attr.attribution.guided.GuidedRectifiers` reaches rectifiers.

    Examples::

        >>> dcs = DistinctClassSaliency(model)
        >>> with ActiveDropout(seed=0):
        ...     first, second = dcs.attribute(x), dcs.attribute(x)
    """

    def __init__(self, seed: int = 0) -> None:
        """Begin the random numbers.

        Args:
            seed: of what is dropped, on the CPU, so that it is the same on every device.
        """
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; in place of dropout, drop."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropped(*args, **kwargs, whole_channels=False)
        if func is F.dropout2d:
            return self._dropped(*args, **kwargs, whole_channels=True)
        return func(*args, **kwargs)

    def _dropped(
        self,
        input: Tensor,  # noqa: A002 - the name that dropout gives it.
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        *,
        whole_channels: bool,
    ) -> Tensor:
        shape = (*input.shape[:-2], 1, 1) if whole_channels else input.shape
        kept = torch.rand(shape, generator=self._generator).to(input.device) >= p
        scaled = kept.to(input.dtype) / (1 - p) if p < 1 else kept.to(input.dtype).zero_()
        return input.mul_(scaled) if inplace else input * scaled

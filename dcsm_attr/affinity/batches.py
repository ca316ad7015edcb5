"""How many images of a batch are computed together."""

from collections.abc import Iterator

from torch import Tensor

__all__ = ["together"]


def together(batch: Tensor) -> Iterator[slice]:
    """One image after the other on the CPU, whose caches hold one; all of them on an accelerator.

    Args:
        batch: ``(N, ...)``, not empty.
    """
    at_once = 1 if batch.device.type == "cpu" else len(batch)
    return (slice(start, start + at_once) for start in range(0, len(batch), at_once))

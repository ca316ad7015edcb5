"""How many rectifiers a result came through, counted in its graph: without hooks, modes, or a look at the modules."""

from collections import Counter
from typing import Any

from torch import Tensor

__all__ = ["count_rectifiers"]


# Names of autograd's nodes, less the number at the end: "ReluBackward0".
_NODES = {
    *("ReluBackward", "HardtanhBackward", "LeakyReluBackward", "PreluKernelBackward", "EluBackward", "CeluBackward"),
    *("SiluBackward", "GeluBackward", "MishBackward", "HardswishBackward", "SoftplusBackward"),
}


def count_rectifiers(output: Tensor) -> Counter[str]:
    """Count the rectifiers between a result and whatever required a gradient.

    Args:
        output: with a graph, recorded by PyTorch's own functions.

    Returns:
        The number of nodes of each kind, by the name of autograd's node without its number.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(after for after, _ in node.next_functions)
    return Counter(name for node in seen if (name := node.name().rstrip("0123456789")) in _NODES)

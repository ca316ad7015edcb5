"""Whether ``torch.compile`` pays: for the maps of one layer (upsampling, Eq. 4, tanh), and for one step of mean field.

python benchmarks/compilation.py
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.comparison import time_interleaved
from dcsm_attr.attribution.maps import VARIANTS


def main() -> None:
    """Time each as it is and compiled, on maps of 500 x 500 pixels, and 187,500 points."""
    for classes in (3, 10, 20):
        layer = torch.rand(1, classes, 63, 63)
        _compare(
            f"maps of a layer, {classes} classes",
            lambda maps: VARIANTS["paper"].distinct_map(maps, (500, 500), 3.0, None, True),
            layer,
        )
    for labels in (4, 21):
        _compare(
            f"softmax of messages, {labels} labels",
            lambda heard, unary: torch.softmax(heard - unary, dim=1),
            *torch.rand(2, 187_500, labels),
        )


def _compare(title: str, function: Callable[..., Any], *arguments: torch.Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, dynamic=False)
    began = time.perf_counter()
    torch.testing.assert_close(compiled(*arguments), function(*arguments))
    compiling = time.perf_counter() - began
    timings = time_interleaved(
        {"as it is": lambda: function(*arguments), "compiled": lambda: compiled(*arguments)}, rounds=15, progress=False
    )
    figures = ", ".join(f"{way} {1000 * timing.median:.1f} ms" for way, timing in timings.items())
    print(f"{title}: {figures}; compiling took {compiling:.0f} s")


if __name__ == "__main__":
    main()

"""The two forms of Eq. 4 by number of classes: all pairs, or sorted.

Usage: ``python benchmarks/subtraction.py``. Where the sorted form starts to win is ``maps._SORT_FROM``. Writes
results/subtraction.json.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dcsm_attr.attribution.maps import _contrast_pairs, _contrast_sorted
from dcsm_attr.evaluation.result import measured_on
from dcsm_attr.io import write_json


def median_seconds(function: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> float:
    """Median of five runs after one to warm up."""
    function(maps)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        function(maps)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Measure, print a table, write the result."""
    rows = {}
    print(f"{'classes':>8}{'pairs/ms':>10}{'sorted/ms':>11}{'sorted / pairs':>16}")
    for classes in (2, 3, 4, 10, 20, 48, 64, 80, 96, 128):
        maps = torch.rand(1, classes, 500, 500, generator=torch.Generator().manual_seed(classes))
        pairs, ordered = (median_seconds(form, maps) for form in (_contrast_pairs, _contrast_sorted))
        rows[classes] = {"pairs": pairs, "sorted": ordered}
        print(f"{classes:>8}{1e3 * pairs:>10.1f}{1e3 * ordered:>11.1f}{ordered / pairs:>16.2f}")
    content = {"measured": measured_on("python benchmarks/subtraction.py"), "seconds by number of classes": rows}
    write_json(Path(__file__).parent / "results" / "subtraction.json", content)


if __name__ == "__main__":
    main()

"""Time the alternatives behind choices in the code.

    python -m benchmarks.design_choices contrast      # Eq. 4: all pairs or sorted; results/subtraction.json
    python -m benchmarks.design_choices compilation   # torch.compile or not
    python -m benchmarks.design_choices scales        # scales in turn on all cores, or one thread per scale

Alternatives run in turn; medians are printed.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.speed.comparison import time_interleaved
from dcsm_attr import DistinctClassSaliency
from dcsm_attr.attribution.maps import VARIANTS, _contrast_pairs, _contrast_sorted
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import write_json

_RESULTS = Path(__file__).parent / "results"
_ROUNDS = 5


def main() -> None:
    """Run the measurement that is named."""
    measurements = {
        "contrast": time_contrast,
        "compilation": time_compilation,
        "scales": time_scales,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choice", choices=measurements)
    measurements[parser.parse_args().choice]()


def time_contrast() -> None:
    """Time both forms of Eq. 4 by number of classes. The sorted one is used from ``maps._SORT_FROM`` classes on."""
    rows = {}
    print(f"{'classes':>8}{'pairs/ms':>10}{'sorted/ms':>11}{'sorted / pairs':>16}")
    for classes in (2, 3, 4, 10, 20, 48, 64, 80, 96, 128):
        maps = torch.rand(1, classes, 500, 500, generator=torch.Generator().manual_seed(classes))
        seconds = _medians({"pairs": lambda m=maps: _contrast_pairs(m), "sorted": lambda m=maps: _contrast_sorted(m)})
        rows[classes] = seconds
        ratio = seconds["sorted"] / seconds["pairs"]
        print(f"{classes:>8}{1e3 * seconds['pairs']:>10.1f}{1e3 * seconds['sorted']:>11.1f}{ratio:>16.2f}")
    content = {"measured": run_environment("python -m benchmarks.design_choices contrast")}
    write_json(_RESULTS / "subtraction.json", {**content, "seconds by number of classes": rows})


def time_compilation() -> None:
    """Time the maps of a layer (upsampling, Eq. 4, tanh) and a step of mean field, with and without compilation."""
    for classes in (3, 10, 20):
        _compare_with_compiled(
            f"maps of a layer, {classes} classes",
            lambda maps: VARIANTS["paper"].distinct_map(maps, (500, 500), 3.0, None, True),
            torch.rand(1, classes, 63, 63),
        )
    for labels in (4, 21):
        _compare_with_compiled(
            f"softmax of messages, {labels} labels",
            lambda messages, unary: torch.softmax(messages - unary, dim=1),
            *torch.rand(2, 187_500, labels),
        )


def _compare_with_compiled(title: str, function: Callable[..., Any], *arguments: Tensor) -> None:
    torch.compiler.reset()
    compiled = torch.compile(function, dynamic=False)
    start = time.perf_counter()
    torch.testing.assert_close(compiled(*arguments), function(*arguments))
    seconds = time.perf_counter() - start
    _print_medians(title, {"not compiled": lambda: function(*arguments), "compiled": lambda: compiled(*arguments)}, 15)
    print(f"  compilation took {seconds:.0f} s")


def time_scales() -> None:
    """Time three scales of an image of 500 x 500 with three classes: in turn, or one thread per scale."""
    cores = torch.get_num_threads()
    images = torch.randn(1, 3, 500, 500)
    for name in ("vgg16", "resnet50", "squeezenet1_1"):
        model = torchvision.models.get_model(name, weights=None).eval()
        methods = [DistinctClassSaliency(model, scales=(scale,)) for scale in (1.2, 1.0, 0.8)]

        def run(method: DistinctClassSaliency) -> object:
            return method.class_maps(images, candidates=[0, 1, 2])

        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            implementations = {
                "in turn": lambda methods=methods: [run(method) for method in methods],
                "in threads": lambda methods=methods: list(threads.map(run, methods)),
            }
            _print_medians(f"{name}, {cores} cores", implementations)


def _medians(implementations: dict[str, Callable[[], Any]], rounds: int = _ROUNDS) -> dict[str, float]:
    timings = time_interleaved(implementations, rounds, progress=False)
    return {name: timing.median for name, timing in timings.items()}


def _print_medians(title: str, implementations: dict[str, Callable[[], Any]], rounds: int = _ROUNDS) -> None:
    medians = _medians(implementations, rounds)
    print(f"{title}: " + ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in medians.items()), flush=True)


if __name__ == "__main__":
    main()

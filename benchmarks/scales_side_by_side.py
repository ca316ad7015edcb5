"""Whether an image's scales are better run side by side: in turn on all cores, or each in a thread of one core.

python benchmarks/scales_side_by_side.py [MODEL ...]
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import torch
import torchvision

from benchmarks.speed.comparison import time_interleaved
from dcsm_attr import DistinctClassSaliency

SCALES = (1.2, 1.0, 0.8)


def main(names: list[str]) -> None:
    """Time both ways, on an image of 500 x 500 pixels with three classes."""
    cores = torch.get_num_threads()
    images = torch.randn(1, 3, 500, 500)
    for name in names:
        model = torchvision.models.get_model(name, weights=None).eval()
        methods = [DistinctClassSaliency(model, scales=(scale,)) for scale in SCALES]
        for method in methods:
            method.class_maps(images, candidates=[0, 1, 2])

        def in_turn(methods: list[DistinctClassSaliency] = methods) -> None:
            for method in methods:
                method.class_maps(images, candidates=[0, 1, 2])

        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:

            def side_by_side(methods: list[DistinctClassSaliency] = methods) -> None:
                list(threads.map(lambda method: method.class_maps(images, candidates=[0, 1, 2]), methods))  # noqa: B023

            timings = time_interleaved({"in turn": in_turn, "side by side": side_by_side}, rounds=5)
        print(f"{name}, {cores} cores:", {way: f"{1000 * timing.median:.0f} ms" for way, timing in timings.items()})


if __name__ == "__main__":
    main(sys.argv[1:] or ["vgg16", "resnet50", "squeezenet1_1"])

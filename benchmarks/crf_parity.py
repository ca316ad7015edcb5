"""Compare the dense CRF with pydensecrf on images: largest difference of a probability, equal labels, and time.

    python -m benchmarks.crf_parity VOC [COUNT]

VOC contains JPEGImages/ and ImageSets/Segmentation/val.txt; COUNT images of the list are used, evenly spaced (default
20). The unaries are smooth random fields, which put borders everywhere. Both backends run in turn in one process, with
the same threads. Requires pydensecrf. Writes results/crf_parity.json.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from dcsm_attr import DenseCRF
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import write_json

SETTINGS: dict[str, dict[str, float]] = {
    "paper (30/10, 3)": {},
    "deeplab (80/13, 3)": {
        "bilateral_weight": 10,
        "bilateral_xy": 80,
        "bilateral_rgb": 13,
        "gaussian_weight": 3,
        "gaussian_xy": 3,
    },
}


def timed(function: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Return the result of a function, and how many seconds it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def read_images(voc: Path, count: int) -> list[torch.Tensor]:
    """Return images ``(1, 3, H, W)`` uint8, evenly spaced over the list."""
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    chosen = [names[i * len(names) // count] for i in range(count)]
    arrays = [np.array(Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB")) for name in chosen]
    return [torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() for array in arrays]


def compare(images: list[torch.Tensor], labels: int, settings: dict[str, Any]) -> dict[str, float]:
    """Run both backends in turn on the same images and unaries."""
    generator = torch.Generator().manual_seed(labels)
    differences, equal, pixels, seconds = [], 0, 0, {"torch": [], "pydensecrf": []}
    for image in tqdm(images, desc=f"{labels} labels", leave=False):
        coarse = torch.randn(1, labels, 12, 12, generator=generator) * 3
        probabilities = F.interpolate(coarse, image.shape[2:], mode="bilinear").softmax(1)
        results = {}
        for backend in seconds:
            crf = DenseCRF(**settings, backend=backend)
            results[backend], elapsed = timed(lambda crf=crf, p=probabilities, image=image: crf(p, image))
            seconds[backend].append(elapsed)
        differences.append(float((results["torch"] - results["pydensecrf"]).abs().max()))
        equal += int((results["torch"].argmax(1) == results["pydensecrf"].argmax(1)).sum())
        pixels += image[0, 0].numel()
    ours, reference = (statistics.median(seconds[backend]) for backend in seconds)
    return {
        "largest difference": max(differences),
        "labels equal": equal / pixels,
        "seconds": ours,
        "seconds of pydensecrf": reference,
        "ratio": ours / reference,
    }


def main() -> None:
    """Compare, print a table, write the result."""
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    images = read_images(Path(sys.argv[1]), count)
    rows: dict[str, dict[str, float]] = {}
    print(f"{'kernels':<20}{'labels':>7}{'max |dQ|':>11}{'equal':>10}{'ours/s':>9}{'ref/s':>8}{'ratio':>7}")
    compare(images[:1], 2, {})  # warm up
    for name, settings in SETTINGS.items():
        for labels in (2, 4, 21):
            row = rows[f"{name}, {labels} labels"] = compare(images, labels, settings)
            print(
                f"{name:<20}{labels:>7}{row['largest difference']:>11.1e}{row['labels equal']:>10.6f}"
                f"{row['seconds']:>9.3f}{row['seconds of pydensecrf']:>8.3f}{row['ratio']:>7.2f}"
            )
    measured = run_environment("python -m benchmarks.crf_parity VOC [COUNT]")
    content = {
        "measured": measured,
        "threads": torch.get_num_threads(),
        "images": count,
        "iterations": 10,
        "rows": rows,
    }
    write_json(Path(__file__).parent / "results" / "crf_parity.json", content)


if __name__ == "__main__":
    main()

"""Region growing beside SciPy's connected components, on one thread.

    python benchmarks/region_growing.py [ROUNDS]

Fifteen pictures (SEC's batch) of 21 labels, of which three classes are present, on grids of 41 x 41 and of 321 x 321;
the regions are smooth random fields. Both run in turn. Needs SciPy. Writes results/region_growing.json.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from benchmarks.speed.comparison import time_interleaved
from dcsm_attr.evaluation.result import measured_on
from dcsm_attr.io import write_json
from dcsm_attr.wsss.region_growing import connected_components, grow_seeds

NUM_IMAGES, LABELS, PRESENT = 15, 21, 3


def by_scipy(masks: Tensor) -> None:
    """Each mask in turn."""
    for mask in masks.numpy():
        ndimage.label(mask, np.ones((3, 3)))


def problem(side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seeds, probabilities, present classes, and the regions of present labels."""
    generator = torch.Generator().manual_seed(0)
    coarse = 8 * torch.randn(NUM_IMAGES, LABELS, 8, 8, generator=generator)
    probabilities = F.interpolate(coarse, (side, side), mode="bilinear").softmax(dim=1)
    seeds = torch.rand(NUM_IMAGES, LABELS, side, side, generator=generator) < 0.01
    present = torch.zeros(NUM_IMAGES, LABELS - 1, dtype=torch.bool)
    present[:, :PRESENT] = True
    regions = (probabilities[:, : PRESENT + 1] > 0.2).flatten(0, 1)
    return seeds, probabilities, present, regions


def main() -> None:
    """Measure, print, write the result."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    content: dict[str, Any] = {"measured": measured_on("python benchmarks/region_growing.py [ROUNDS]")}
    for side in (41, 321):
        seeds, probabilities, present, regions = problem(side)
        timings = time_interleaved(
            {
                "growing": lambda s=seeds, p=probabilities, c=present: grow_seeds(s, p, c),
                "components": lambda r=regions: connected_components(r),
                "components, SciPy": lambda r=regions: by_scipy(r),
            },
            rounds,
        )
        content[f"{side} x {side}, seconds"] = {name: round(timing.median, 5) for name, timing in timings.items()}
        print(side, content[f"{side} x {side}, seconds"], flush=True)
    write_json(Path(__file__).parent / "results" / "region_growing.json", content)


if __name__ == "__main__":
    main()

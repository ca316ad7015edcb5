"""Measure the share of each class map that lies on its own animal, before and after contrast.

    python -m benchmarks.animal_share IMAGES WEIGHTS

IMAGES is a folder with dog-and-cat.png and puppy-and-kitten.jpg, WEIGHTS an ImageNet weights file of squeezenet1_1.
Boxes of the animals, drawn by hand, are in animal_boxes.json. Writes results/animal_share.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dcsm_attr import Segmenter
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import write_json
from dcsm_attr.models.weights import load_class_names, load_model

HERE = Path(__file__).parent
BOXES: dict[str, Any] = json.loads((HERE / "animal_boxes.json").read_text())


def animal_mask(boxes: list[list[int]], size: tuple[int, int]) -> torch.Tensor:
    """Return the union of boxes as ``(H, W)`` bool."""
    mask = torch.zeros(size, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def shares(segmenter: Segmenter, image: Path) -> dict[str, dict[str, float]]:
    """Return, per class of an image, the area of its boxes and the shares of its raw and distinct map in them."""
    animals = BOXES[image.name]
    result = segmenter.segment(image, list(animals), raw=True)
    found = {}
    for name, boxes in animals.items():
        slot = result.candidates.index(segmenter.class_names.index(name))
        mask = animal_mask(boxes, result.image.shape[:2])
        maps = {"raw": result.class_maps.raw[0, slot], "distinct": result.class_maps.maps[0, slot]}
        found[name] = {"area": float(mask.float().mean())}
        found[name] |= {kind: float(values[mask].sum() / values.sum()) for kind, values in maps.items()}
    return found


def main() -> None:
    """Measure, print a table, write the result."""
    folder, weights = Path(sys.argv[1]), Path(sys.argv[2])
    names = load_class_names("imagenet")
    segmenter = Segmenter(load_model("squeezenet1_1", weights), class_names=names, crf=None)
    results = {name: shares(segmenter, folder / name) for name in BOXES if name != "about"}
    print(f"{'image':<22}{'class':<18}{'area':>7}{'raw':>7}{'distinct':>10}")
    for image, animals in results.items():
        for name, share in animals.items():
            print(f"{image:<22}{name:<18}{share['area']:>7.3f}{share['raw']:>7.3f}{share['distinct']:>10.3f}")
    content = {
        "measured": run_environment("python -m benchmarks.animal_share IMAGES WEIGHTS"),
        "share of each map on its own animal": results,
    }
    write_json(HERE / "results" / "animal_share.json", content)


if __name__ == "__main__":
    main()

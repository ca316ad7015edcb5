"""Measure SEC's seeds by their thresholds for foreground and background, for the maps of each method.

    python -m benchmarks.seed_shares VOC CLASSIFIER [--count N]

Thresholds are shares of the maximum of a map. On evenly spaced images of split train: mean IoU of the seeds, share of
pixels without a seed, and precision of foreground and background seeds. Writes results/seed_shares.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from dcsm_attr.attribution.class_maps import ClassMaps, Saliency
from dcsm_attr.cli.build import build_saliency
from dcsm_attr.cli.options import MethodName, MethodOptions, PresetName
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.masks import VOID, read_mask
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, run_environment
from dcsm_attr.io import write_json
from dcsm_attr.models.checkpoint import load_classifier
from dcsm_attr.pipelines.label_files import BackgroundSeedSettings, image_seeds, middle_layer
from dcsm_attr.wsss.seeds import MapLocalizer

RESULT = Path(__file__).parent / "results" / "seed_shares.json"
METHODS: dict[MethodName, PresetName] = {"cam": "paper", "dcsm": "tuned", "fusion": "tuned"}
SHARES = (0.2, 0.4, 0.6, 0.8)
BACKGROUNDS = (0.1, 0.3)


class CachedSaliency:
    """A method whose maps are computed once per image; set ``cached`` to None for the next image."""

    def __init__(self, saliency: Saliency) -> None:
        self.saliency, self.cached = saliency, None

    def class_maps(self, inputs: torch.Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Return the cached maps, which are computed if there are none."""
        if self.cached is None:
            self.cached = self.saliency.class_maps(inputs, classes, raw=raw)
        return self.cached


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--count", type=int, default=64, help="number of images, evenly spaced; 0: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    classifier = load_classifier(given.classifier)
    network, labels = classifier.network, 1 + len(classifier.class_names)
    collection = voc_collection(given.voc, "train").evenly_spaced(given.count)
    layer = middle_layer(network)
    results = {}
    for method, preset in METHODS.items():
        options = MethodOptions(method, preset)
        saliency = CachedSaliency(build_saliency(network, options, activation="auto", pooling=classifier.pooling))
        counts = {(s, b): [torch.zeros(labels, labels, dtype=torch.int64), 0, 0] for s in SHARES for b in BACKGROUNDS}
        for number, item in enumerate(collection):
            prepared = classifier.preprocess(read_image(item.path))
            mask = read_mask(item.mask, prepared.size, labels - 1)
            saliency.cached = None
            for (share, background), total in counts.items():
                localizer = MapLocalizer(saliency, share)
                seen = BackgroundSeedSettings(layer, background)
                found = image_seeds(network, localizer, prepared, item.classes, seen)
                total[1] += int((found == VOID).sum())
                total[2] += found.numel()
                known = mask.where(found != VOID, VOID)
                total[0] += confusion_matrix(found.where(found != VOID, 0), known, labels, VOID)
            print(f"\r{method}: {number + 1} of {len(collection)}", end="", file=sys.stderr, flush=True)
        for (share, background), (matrix, unknown, pixels) in counts.items():
            correct = matrix.diagonal()
            predicted = matrix.sum(dim=0)
            row = {
                "mean IoU": 100 * Confusion(matrix).mean_iou,
                "unknown": 100 * unknown / pixels,
                "foreground right": 100 * float(correct[1:].sum() / predicted[1:].sum()),
                "background right": 100 * float(correct[0] / predicted[0]),
            }
            name = f"{method}, share {share:g}, background {background:g}"
            results[name] = {figure: round(value, 1) for figure, value in row.items()}
            print(name, results[name], flush=True)
    command = f"python -m benchmarks.seed_shares VOC CLASSIFIER --count {given.count}"
    write_json(given.result, {"measured": run_environment(command), "images": len(collection), "in %": results})


if __name__ == "__main__":
    main()

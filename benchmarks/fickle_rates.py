"""Measure FickleNet's seeds over the dropout rate (general, center-preserving) and the number of samples.

    python -m benchmarks.fickle_rates VOC FOLDER [--count N] [--model NAME] [--output-stride S] [--size PIXELS] ...

Per rate, a classifier with the head "fickle" is trained into FOLDER. Then the seeds of images of split train are
compared with their masks; a pixel without a seed counts as background. Finished parts are not repeated. Prints a table
and writes results/fickle_rates.json and .png. The paper's Table 5 has the same rows, but shows the mean IoU of
segmentation networks trained from the seeds.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.masks import VOID, read_mask, resize_labels
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, run_environment
from dcsm_attr.io import atomic_buffer, make_writable_folder, write_json
from dcsm_attr.models.checkpoint import Architecture, Classifier, build_classifier, load_classifier
from dcsm_attr.models.stochastic import FickleSettings
from dcsm_attr.training.classifier import SCHEDULES, train_classifier
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.wsss.ficklenet import aggregate_prefixes, fickle_maps

RATES = (0.0, 0.3, 0.5, 0.7, 0.9)
KINDS = ("center-preserving", "general")
NUM_SAMPLES = (1, 5, 10, 25, 50, 100, 200)
RESULT = Path(__file__).parent / "results" / "fickle_rates.json"


def train_rate(given: argparse.Namespace, folder: Path, rate: float, kind: str) -> Classifier:
    """Train the classifier of a rate, or resume its training."""
    training, validation = (voc_collection(given.voc, split, masks=False) for split in ("train", "val"))
    names = training.class_names
    torch.manual_seed(0)
    fickle = FickleSettings(rate=rate, keep_center=kind != "general")
    architecture = Architecture(given.model, len(names), None, "fickle", given.output_stride, fickle)
    classifier = build_classifier(architecture, given.weights, names, Preprocess(size=given.size))
    settings = TrainingSettings(SCHEDULES["modern"].with_changes(steps=given.steps))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_classifier(classifier, training, validation, folder, settings, device=device)
    return load_classifier(folder / "best.safetensors")


def count_pixels(classifier: Classifier, item: LabeledImage, device: str) -> dict[int, torch.Tensor]:
    """Return the confusion matrix per number of samples, from one pass."""
    prepared = classifier.preprocess(read_image(item.path))
    assert item.mask is not None
    mask = read_mask(item.mask, prepared.size, len(classifier.class_names))
    canvas = prepared.tensor[None].to(device)
    size = (canvas.shape[2], canvas.shape[3])
    maps = fickle_maps(classifier.network, canvas, item.classes, max(NUM_SAMPLES), size=size)
    found = {}
    for aggregate in aggregate_prefixes(prepared.crop(one) for one in maps):
        if aggregate.count in NUM_SAMPLES:
            labels = resize_labels(aggregate.labels(item.classes), prepared.size).cpu()
            labels = labels.where(labels != VOID, 0)
            found[aggregate.count] = confusion_matrix(labels, mask, 1 + len(classifier.class_names), VOID)
    return found


def measure_seeds(classifier: Classifier, collection: Collection) -> dict[str, dict[str, float]]:
    """Return mean IoU, coverage and spilled share per number of samples."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    classifier.network.to(device)
    labels = 1 + len(classifier.class_names)
    totals = {count: torch.zeros(labels, labels, dtype=torch.int64) for count in NUM_SAMPLES}
    for number, item in enumerate(collection):
        for count, counts in count_pixels(classifier, item, device).items():
            totals[count] += counts
        print(f"\r{number + 1} of {len(collection)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {str(count): _figures(Confusion(counts)) for count, counts in totals.items()}


def _figures(confusion: Confusion) -> dict[str, float]:
    shares = {"mean IoU": confusion.mean_iou, "covered": confusion.coverage, "spilled": confusion.spilled}
    return {name: round(100 * value, 2) for name, value in shares.items()}


def main() -> None:
    """Train, measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=128, help="number of images, evenly spaced; 0: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--model", default="vgg16")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--output-stride", type=int)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    folder = make_writable_folder(given.folder)
    collection = voc_collection(given.voc, "train").evenly_spaced(given.count)
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'mean IoU in %':>24}" + "".join(f"{f'N = {count}':>10}" for count in NUM_SAMPLES))
    for kind in KINDS:
        for rate in RATES:
            if not rate and kind == "general":
                continue  # The same as the other kind.
            name = f"{kind}, {rate:g}"
            kept = folder / f"{kind}-{rate:g}" / f"seeds-{len(collection)}.json"
            if not kept.exists():
                classifier = train_rate(given, kept.parent, rate, kind)
                write_json(kept, measure_seeds(classifier, collection))
            results[name] = json.loads(kept.read_text())
            row = "".join(f"{results[name][str(count)]['mean IoU']:>10.1f}" for count in NUM_SAMPLES)
            print(f"{name:>24}{row}", flush=True)
    options = {"count": given.count, "model": given.model, "weights": Path(given.weights).name}
    options |= {"output-stride": given.output_stride, "size": given.size, "steps": given.steps}
    arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = shlex.join(["python", "-m", "benchmarks.fickle_rates", "VOC", "FOLDER", *arguments])
    content = {"measured": run_environment(command), "images": len(collection), "by rate, then by samples": results}
    write_json(given.result, content)
    draw(results, given.result.with_suffix(".png"))


def draw(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw mean IoU over the number of samples, one line per rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        for name, by_samples in results.items():
            rate = name.rsplit(", ", 1)[1]
            if name.startswith(kind) or rate == "0":
                shown = [by_samples[str(count)]["mean IoU"] for count in NUM_SAMPLES]
                axes.plot(NUM_SAMPLES, shown, marker=".", label=rate)
        axes.set(title=f"{kind} dropout", xlabel="N, maps of each image", xscale="log")
        axes.legend(title="rate")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean IoU of the seeds, %")
    with atomic_buffer(path) as file:
        figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()

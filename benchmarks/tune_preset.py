"""Search the settings of the preset 'tuned' on training images that the classifier has not seen.

    python -m benchmarks.tune_preset labels VOC held_out.csv
    dcsm-attr train VOC --image-labels held_out.csv --model squeezenet1_1 --weights FILE --head extended --size 320 \
        --output held_out
    python -m benchmarks.tune_preset search VOC held_out/best.safetensors FOLDER

The first command holds out HELD_OUT images of VOC's split train as validation images; the second trains on the others,
from image-level labels. The third evaluates every combination of layers, CRF and background on MEASURED of the held-out
images, with known classes, on the canvas. No image of split val is used. FOLDER stores gradients and counts, from which
an interrupted search resumes. Writes results/tune_preset.json and .md.
"""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.ablation.gradients import GradientStore
from benchmarks.ablation.measure import EXPONENTS, FURTHER_EXPONENTS, LabelSettings, Sweep
from benchmarks.ablation.methods import dcsm
from dcsm_attr.attribution.layers import default_layers
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.labels import ImageLabels, LabelRow, write_image_labels
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.evaluation.report import markdown_table
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import atomic_path, make_writable_folder, write_json
from dcsm_attr.models.checkpoint import load_classifier

HELD_OUT = 128
MEASURED = 96

EXPONENTS_TRIED = sorted({*EXPONENTS, *FURTHER_EXPONENTS[EXPONENTS[0]]} - {EXPONENTS[-1]})
# Number of deepest layers by the name in the tables; None: all default layers.
DEEPEST = {"all layers": None, "2 deepest": 2, "deepest": 1}
# The CRF of the paper, and ones with more weight on color and with wider or flatter kernels.
CRFS = (
    DenseCRF(),
    DenseCRF(bilateral_weight=3),
    DenseCRF(bilateral_weight=7, bilateral_xy=40, bilateral_rgb=7, gaussian_weight=3),
    DenseCRF(bilateral_weight=3, bilateral_xy=60, gaussian_weight=3),
    DenseCRF(bilateral_weight=5, bilateral_xy=60, gaussian_weight=3),
    DenseCRF(bilateral_weight=4, bilateral_xy=80, bilateral_rgb=13, gaussian_weight=3),
)


def write_labels(voc: Path, target: Path) -> None:
    """Write the split train, with a part held out as val."""
    whole = voc_collection(voc, "train", masks=False)
    held_out = {item.name for item in whole.evenly_spaced(HELD_OUT)}
    rows = {p.name: LabelRow("val" if p.name in held_out else "train", p.classes) for p in whole}
    write_image_labels(target, ImageLabels(whole.class_names, rows))
    print(f"{target}: {len(whole) - len(held_out)} images to train on, {len(held_out)} held out")


def crf_name(crf: DenseCRF) -> str:
    """Return the parameters as in the report: w1, gamma alpha, gamma beta, w2, gamma gamma."""
    widths = (crf.bilateral_weight, crf.bilateral_xy, crf.bilateral_rgb, crf.gaussian_weight, crf.gaussian_xy)
    return " / ".join(f"{value:g}" for value in widths)


def search(voc: Path, weights: Path, folder: Path) -> None:
    """Evaluate all combinations, print and write the table."""
    classifier = load_classifier(weights)
    collection = voc_collection(voc, "train").evenly_spaced(HELD_OUT).evenly_spaced(MEASURED)
    layers = default_layers(classifier.network)
    folder = make_writable_folder(folder)
    sweep = Sweep(
        classifier,
        collection,
        "known",
        GradientStore(folder / "gradients", classifier),
        folder / "counts",
        DenseCRF(),
        on_canvas=True,
    )
    methods = {}
    for depth, deepest in DEEPEST.items():
        chosen = layers if deepest is None else layers[-deepest:]
        for crf in CRFS:
            method = dcsm(classifier, f"{depth}, {crf_name(crf)}", layer=chosen, min_candidates=1)
            methods[replace(method, crf=crf)] = (depth, crf)
    settings = {method: [LabelSettings(exponent, refined=True) for exponent in EXPONENTS_TRIED] for method in methods}
    counted = sweep.run(settings, f"{len(methods) * len(EXPONENTS_TRIED)} choices")
    table = [["layers", "CRF", *(f"{exponent:g}" for exponent in EXPONENTS_TRIED)]]
    results = []
    for method, (depth, crf) in methods.items():
        ious = {
            one.exponent: round(100 * found.mean_iou, 2)
            for one, found in sorted(counted.confusions[method.name].items())
        }
        table.append([depth, crf_name(crf), *(f"{iou:.1f}" for iou in ious.values())])
        results.append({"layers": depth, "crf": asdict(crf), "mean IoU in %, by exponent": ious})
    command = shlex.join(["python", "-m", "benchmarks.tune_preset", "search", "VOC", weights.name, "FOLDER"])
    measured = run_environment(command)
    content = {"measured": measured, "images": counted.num_images, "results": results}
    target = Path(__file__).parent / "results" / "tune_preset.json"
    write_json(target, content)
    title = (
        f"Mean IoU in % after the CRF on {counted.num_images} images that the classifier had not seen, by the "
        "background's exponent. Known classes, contrasted with each other only. CRF: w1, gamma alpha, gamma beta, "
        "w2, gamma gamma of Eq. 8."
    )
    origin = "`{command}`, {processor}, {cores} cores, commit {commit}.".format(**measured)
    with atomic_path(target.with_suffix(".md")) as path:
        path.write_text(f"{title}\n\n{markdown_table(table)}\n\n{origin}\n", encoding="utf-8")
    print(markdown_table(table))


def main() -> None:
    """Run the step that is named."""
    step, *paths = sys.argv[1:]
    steps = {"labels": write_labels, "search": search}
    steps[step](*map(Path, paths))


if __name__ == "__main__":
    main()

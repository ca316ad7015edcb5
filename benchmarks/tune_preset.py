"""How the preset 'tuned' was found: on images of the training set that the classifier had not seen, none of val.

    python -m benchmarks.tune_preset labels VOC held_out.csv
    dcsm-attr train VOC --labels held_out.csv --model squeezenet1_1 --weights FILE --head extended --size 320 \
        --output held_out
    python -m benchmarks.tune_preset search VOC held_out/best.safetensors FOLDER

The first line lists three of four photographs of VOC's split train for training and the fourth, HELD_OUT in all, as its
val; the second trains on that list (labels alone). The third reads the masks of MEASURED of those held out and counts
how well each choice of layers, CRF and background labels them, image-level labels known, on the canvas. FOLDER keeps
gradients and counts, from which an interrupted search goes on. Writes results/tune_preset.json and .md.
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
# How deep, by its name in the tables; None: all of the default layers.
DEEPEST = {"all layers": None, "2 deepest": 2, "deepest": 1}
# The paper's, more weight on color, and wider or flatter kernels.
CRFS = (
    DenseCRF(),
    DenseCRF(bilateral_weight=3),
    DenseCRF(bilateral_weight=7, bilateral_xy=40, bilateral_rgb=7, gaussian_weight=3),
    DenseCRF(bilateral_weight=3, bilateral_xy=60, gaussian_weight=3),
    DenseCRF(bilateral_weight=5, bilateral_xy=60, gaussian_weight=3),
    DenseCRF(bilateral_weight=4, bilateral_xy=80, bilateral_rgb=13, gaussian_weight=3),
)


def write_labels(voc: Path, target: Path) -> None:
    """The split train, a part of it held out as val."""
    whole = voc_collection(voc, "train", masks=False)
    held_out = {photograph.name for photograph in whole.evenly_spaced(HELD_OUT)}
    rows = {p.name: LabelRow("val" if p.name in held_out else "train", p.classes) for p in whole}
    write_image_labels(target, ImageLabels(whole.class_names, rows))
    print(f"{target}: {len(whole) - len(held_out)} photographs to train on, {len(held_out)} held out")


def crf_name(crf: DenseCRF) -> str:
    """As in the report: w1, gamma alpha, gamma beta, w2, gamma gamma."""
    widths = (crf.bilateral_weight, crf.bilateral_xy, crf.bilateral_rgb, crf.gaussian_weight, crf.gaussian_xy)
    return " / ".join(f"{value:g}" for value in widths)


def search(voc: Path, weights: Path, folder: Path) -> None:
    """Measure every choice, print the best of each, write all."""
    classifier = load_classifier(weights)
    photographs = voc_collection(voc, "train").evenly_spaced(HELD_OUT).evenly_spaced(MEASURED)
    layers = default_layers(classifier.network)
    folder = make_writable_folder(folder)
    sweep = Sweep(
        classifier,
        photographs,
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
    wanted = {method: [LabelSettings(exponent, refined=True) for exponent in EXPONENTS_TRIED] for method in methods}
    counted = sweep.run(wanted, f"{len(methods) * len(EXPONENTS_TRIED)} choices")
    table = [["layers", "CRF", *(f"{exponent:g}" for exponent in EXPONENTS_TRIED)]]
    results = []
    for method, (depth, crf) in methods.items():
        ious = {
            settings.exponent: round(100 * found.mean_iou, 2)
            for settings, found in sorted(counted.confusions[method.name].items())
        }
        table.append([depth, crf_name(crf), *(f"{iou:.1f}" for iou in ious.values())])
        results.append({"layers": depth, "crf": asdict(crf), "mean IoU in %, by exponent": ious})
    command = shlex.join(["python", "-m", "benchmarks.tune_preset", "search", "VOC", weights.name, "FOLDER"])
    measured = run_environment(command)
    content = {"measured": measured, "photographs": counted.num_images, "results": results}
    target = Path(__file__).parent / "results" / "tune_preset.json"
    write_json(target, content)
    title = (
        f"Mean IoU in % after the CRF on {counted.num_images} photographs that the classifier had not seen, by the "
        "background's exponent. Classes known and subtracted from each other alone. CRF: w1, gamma alpha, gamma beta, "
        "w2, gamma gamma of Eq. 8."
    )
    origin = "`{command}`, {processor}, {cores} cores, commit {commit}.".format(**measured)
    with atomic_path(target.with_suffix(".md")) as path:
        path.write_text(f"{title}\n\n{markdown_table(table)}\n\n{origin}\n", encoding="utf-8")
    print(markdown_table(table))


def main() -> None:
    """The step that is named."""
    step, *paths = sys.argv[1:]
    steps = {"labels": write_labels, "search": search}
    steps[step](*map(Path, paths))


if __name__ == "__main__":
    main()

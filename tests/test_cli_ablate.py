"""``python -m benchmarks.ablation`` on a generated VOC folder: end to end, resumed, and its errors."""

import json
import re
import sys
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_ablation import probed_once  # noqa: F401 - used by every test
from typer.testing import CliRunner

import benchmarks.ablation.measure as measure_module
from benchmarks.ablation.__main__ import TableName, app
from benchmarks.ablation.tables import AFFINITY_TABLES, TABLES
from dcsm_attr.attribution import ClassActivationMaps
from dcsm_attr.cli import run_command
from dcsm_attr.datasets.masks import VOC_CLASSES, label_image
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.evaluation.evaluate import evaluate
from dcsm_attr.evaluation.metrics import mean_iou
from dcsm_attr.models.affinity_net import AffinityNet
from dcsm_attr.models.checkpoint import (
    Architecture,
    TrainedAffinityNet,
    build_classifier,
    load_classifier,
    save_network,
)
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.wsss.random_walk import SemanticWalk

LISTS = {"train": ["t0", "t1"], "val": ["v0", "v1", "v2"]}
SHOWN = {"t0": (2, 14), "t1": (7,), "v0": (14, 7), "v1": (2,), "v2": (7, 2)}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Colored bars on gray, a class each."""
    root = tmp_path_factory.mktemp("voc") / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lines = ["id,split,labels"]
    for split, names in LISTS.items():
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            pixels = np.full((36, 48, 3), 120, dtype=np.uint8)
            mask = np.zeros((36, 48), dtype=np.uint8)
            for i, c in enumerate(SHOWN[name]):
                bar = np.s_[4:30, 4 + 24 * i : 18 + 24 * i]
                pixels[bar] = (40 * (c % 6), 250 - 15 * c, 12 * c)
                mask[bar] = 1 + c
            mask[0] = 255
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
            label_image(mask).save(root / "SegmentationClass" / f"{name}.png")
            lines.append(f"{name},{split},{' '.join(VOC_CLASSES[c] for c in SHOWN[name])}")
    (root / "image_labels.csv").write_text("\n".join(lines) + "\n")
    torch.manual_seed(0)
    architecture = Architecture("squeezenet1_1", len(VOC_CLASSES), "features.6", "normalized")
    save_network(
        build_classifier(architecture, None, VOC_CLASSES, Preprocess(size=48)), root.parent / "best.safetensors"
    )
    return root


def run(voc, table, *options, output):
    weights = [] if "--weights" in options else ["--weights", voc.parent / "best.safetensors"]
    arguments = [table, voc, *weights, "--device", "cpu", "--output", output, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_table_names_are_complete():
    assert [*get_args(TableName)] == [*TABLES, *AFFINITY_TABLES]


def test_end_to_end_and_again(voc, tmp_path, monkeypatch):
    output = tmp_path / "out"
    result = run(voc, "candidates", output=output)
    assert result.exit_code == 0, result.output
    files = {path.name for path in output.iterdir()}
    assert files == {*(f"candidates-known.{ending}" for ending in ("md", "json", "png")), "gradients", "counts"}
    text = (output / "candidates-known.md").read_text()
    assert "Split 'val' of a VOC folder: 3 of its 3 images; backgrounds chosen on 2 of the 2 of split" in text
    assert "benchmarks.ablation candidates VOC_ROOT --weights=best.safetensors --protocol=known" in text
    assert str(tmp_path) not in text
    content = json.loads((output / "candidates-known.json").read_text())
    assert content["about"]["network"] == "squeezenet1_1"
    assert content["about"]["canvas"] == 48
    assert content["images"] == 3
    lines = [line.strip() for line in result.output.splitlines() if line.startswith("  DCSM, N ")]
    assert [line.split(":")[0] for line in lines] == [f"DCSM, N {n}" for n in (0, 1, 2, 3, 4, 5, 10, 15)]
    for line, row in zip(lines, content["rows"], strict=True):
        before, after = (row["mean IoU"][f"own background, {when} CRF"] for when in ("before", "after"))
        assert line.endswith(f": {100 * before:.1f} -> {100 * after:.1f}")
    # The counts of a row, added up by hand.
    (path,) = (output / "counts" / "figures-known").glob("dcsm-n-5-*/rows.jsonl")
    confusion = np.zeros((21, 21), dtype=np.int64)
    for line in path.read_text().splitlines():
        for true, shown, pixels in json.loads(line)["counts"]["1.0"]:
            confusion[true, shown] += pixels
    assert confusion.sum() == 3 * 35 * 48
    (row,) = (row for row in content["rows"] if row["label"] == "5")
    assert row["mean IoU"]["Eq. 7, before CRF"] == pytest.approx(mean_iou(torch.from_numpy(confusion)), abs=1e-5)

    # Again, nothing is opened; another protocol shares gradients, not counts.
    with monkeypatch.context() as context:
        context.setattr(measure_module, "load_case", None)
        again = run(voc, "candidates", output=output)
    assert again.exit_code == 0
    assert again.output.endswith(result.output[result.output.index("The number of candidates") :])
    assert json.loads((output / "candidates-known.json").read_text()) == content
    assert run(voc, "candidates", "--protocol", "detected", output=output).exit_code == 0
    assert (output / "candidates-detected.md").is_file()


def test_some_of_the_images(voc, tmp_path):
    options = ["--count", 2, "--background-count", 1, "--background-split", "val", "--split", "train"]
    result = run(voc, "crf", *options, output=tmp_path)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "crf-known.json").read_text())
    assert content["data"] == (
        "Split 'train' of a VOC folder: 2 of its 2 images; backgrounds chosen on 1 of the 3 of split 'val'."
    )
    assert "## Each class" in (tmp_path / "crf-known.md").read_text()
    shared = json.loads((tmp_path / "crf-known.json").read_text())["rows"][0]["IoU"]["Eq. 7, before CRF"]
    assert len(shared) == 21


def test_an_error_is_one_line(voc, tmp_path, monkeypatch, capsys):
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    options = ["--weights", tmp_path / "plain.safetensors", "--output", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["ablation", "crf", *map(str, [voc, *options])])
    with pytest.raises(SystemExit) as ended:
        run_command(app, "ablation")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"ablation: .*plain\.safetensors: .* expected a classifier that `dcsm-attr train` wrote", line)
    assert not any((tmp_path / "out").iterdir())


def test_what_cannot_be_measured(voc, tmp_path):
    def message(*options):
        result = run(voc, "crf", *options, output=tmp_path / "out")
        assert result.exit_code == 1
        assert isinstance(result.exception, ValueError)
        return str(result.exception)

    assert "there is no list of the split 'test'. Existing lists: train, val" in message("--split", "test")
    assert "none.safetensors: there is no such file" in message("--weights", tmp_path / "none.safetensors")
    two = build_classifier(
        Architecture("squeezenet1_1", 2, "features.3", "linear"), None, ("ant", "bee"), Preprocess(size=48)
    )
    save_network(two, tmp_path / "two.safetensors")
    assert "class names must be those of the collection" in message("--weights", tmp_path / "two.safetensors")
    hidden = voc / "SegmentationClass" / "v1.png"
    moved = hidden.rename(tmp_path / "v1.png")
    try:
        assert "1 of 3 masks are missing: v1.png" in message()
    finally:
        moved.rename(hidden)


def test_an_unknown_table_is_rejected_with_the_known_ones(voc, tmp_path):
    result = run(voc, "colors", output=tmp_path / "out")
    assert result.exit_code == 2
    assert "'colors' is not one of" in result.output
    assert not (tmp_path / "out").exists()


def test_a_bad_image_is_reported(voc, tmp_path):
    image = voc / "JPEGImages" / "v1.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    try:
        result = run(voc, "crf", output=tmp_path)
    finally:
        image.write_bytes(whole)
    content = json.loads((tmp_path / "crf-known.json").read_text())
    assert content["images"] == 2, "the table is written all the same"
    assert "v1.jpg" in content["skipped"]["v1"]
    assert result.exit_code == 1, "as dcsm-attr evaluate does"
    assert "1 images were skipped" in result.output


def test_help_has_examples(voc, tmp_path):
    output = " ".join(run(voc, "crf", "--help", output=tmp_path).output.split())
    assert "python -m benchmarks.ablation candidates VOCdevkit/VOC2012" in output


@pytest.fixture(scope="module")
def affinity_net(voc):
    classifier = load_classifier(voc.parent / "best.safetensors")
    torch.manual_seed(1)
    net = TrainedAffinityNet(
        AffinityNet(classifier.network.backbone), classifier.architecture, classifier.preprocess, seed="cam"
    )
    save_network(net, voc.parent / "affinity_net.safetensors")
    return net


def test_affinity_table_equals_the_segmenter(tmp_path, voc, affinity_net):
    result = run(voc, "affinity", "--affinity-net", voc.parent / "affinity_net.safetensors", output=tmp_path)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "affinity-known.json").read_text())
    rows = {(row["series"], row["label"]): row for row in content["rows"]}
    labels = ("no walk", "AffinityNet of cam", "beta and t as published")
    assert list(rows) == [(series, label) for series in ("CAM", "DCSM", "CAM x DCSM") for label in labels]
    assert (tmp_path / "affinity-known-exponents.png").stat().st_size > 1000
    assert "## The exponent of the background" in (tmp_path / "affinity-known.md").read_text()
    # The same by the segmenter: labels at the size of the image, known classes, no CRF.
    classifier = load_classifier(voc.parent / "best.safetensors")
    published = SemanticWalk(affinity_net, beta=8, steps=256)
    for label, walk in zip(labels, (None, SemanticWalk(affinity_net), published), strict=True):
        segmenter = Segmenter(
            classifier.network,
            saliency=ClassActivationMaps(classifier.network, pooling=classifier.pooling),
            crf=None,
            class_names=VOC_CLASSES,
            preprocess=classifier.preprocess,
            background_exponent=rows["CAM", label]["exponent"],
            walk=walk,
        )
        measured = evaluate(segmenter, voc_collection(voc, "val"), "known", progress=False)
        reported = rows["CAM", label]["mean IoU"]["own background, before CRF"]
        assert measured.unrefined.mean_iou == pytest.approx(reported, abs=2e-3)


def test_walk_steps_table(tmp_path, voc, affinity_net):
    net = voc.parent / "affinity_net.safetensors"
    result = run(voc, "walk-steps", "--affinity-net", net, "--count", 1, "--background-count", 1, output=tmp_path)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "walk-steps-known.json").read_text())["rows"]
    assert [row["label"] for row in rows if row["series"] == "CAM"] == ["4", "8", "16", "32", "64", "128", "256"]


def test_a_table_of_the_walk_needs_a_network(tmp_path, voc):
    result = run(voc, "walk-beta", output=tmp_path)
    assert isinstance(result.exception, ValueError)
    assert "pass --affinity-net FILE" in str(result.exception)

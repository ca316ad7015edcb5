"""From a folder of labeled pictures to a classifier and its label maps, on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app
from dcsm_attr.models.checkpoint import load_classifier


@pytest.fixture
def data(tmp_path):
    """Six pictures of two classes, with labels for training and validation."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = ["id,split,labels"]
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i},{'train' if i < 4 else 'val'},{('ant', 'bee', 'ant bee')[i % 3]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(data, *options, output):
    return run(
        "train",
        data,
        *("--image-labels", data.parent / "labels.csv", "--model", "squeezenet1_1", "--weights", "none", "--size", 48),
        *("--steps", 3, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--output", output),
        *options,
    )


def test_training_then_segmenting(data, tmp_path):
    result = train(data, "--head", "rectified", "--cut", "features.6", output=tmp_path / "net")
    assert result.exit_code == 0, result.output
    best = tmp_path / "net" / "best.safetensors"
    classifier = load_classifier(best)
    assert classifier.class_names == ("ant", "bee")
    assert (classifier.architecture.cut, classifier.architecture.head) == ("features.6", "rectified")
    settings = json.loads((tmp_path / "net" / "settings.json").read_text())
    assert (settings["schedule"]["steps"], settings["schedule"]["head_only_steps"]) == (3, 0)

    out = tmp_path / "out"
    result = run("segment", data / "0.png", "--weights", best, "--classes", "ant", "--device", "cpu", "--output", out)
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "0" / "manifest.json").read_text())
    assert manifest["label_values"]["1"]["name"] == "ant"


def test_the_same_seed_trains_the_same_network(data, tmp_path):
    for name in ("first", "second"):
        torch.rand(3)
        assert train(data, "--seed", 4, output=tmp_path / name).exit_code == 0
    first, second = (load_classifier(tmp_path / name / "best.safetensors").network for name in ("first", "second"))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cut", "features.6"), "pass head='linear', head='rectified', head='normalized' or head='fickle'"),
        (("--model", "vgg61"), "has no classification model 'vgg61'"),
        (("--weights", "nowhere.safetensors"), "there is no such file"),
        (("--image-labels", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_what_the_user_can_mend_is_said(data, tmp_path, options, message):
    result = train(data, *options, output=tmp_path / "net")
    assert result.exit_code == 1
    assert message in str(result.exception)
    assert not (tmp_path / "net").exists()


def test_a_folder_without_labels(data, tmp_path):
    result = run("train", data, "--output", tmp_path / "net")
    assert "pass --image-labels FILE.csv" in str(result.exception)

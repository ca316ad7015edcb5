"""Every example runs by itself and writes what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "MPLBACKEND": "agg"}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_attribute_like_captum(tmp_path):
    printed = run("attribute_like_captum.py", tmp_path, cwd=tmp_path)
    assert "there to be subtracted" in printed or printed.count("detected") >= 3
    assert "sensitivity_max" in printed
    with Image.open(tmp_path / "captum.png") as picture:
        assert picture.width > 100


def test_guided_by_hand(tmp_path):
    assert "the classes of the package give the same maps" in run("guided_by_hand.py", cwd=tmp_path)


def test_segment_photograph(tmp_path, shared):
    weights = shared / "models" / "squeezenet1_1-imagenet1k.safetensors"
    photograph = shared / "images" / "dog-and-cat.png"
    options = ["--model", "squeezenet1_1", "--weights", weights, "--output", tmp_path / "out"]
    printed = run("segment_photograph.py", photograph, *options, cwd=tmp_path)
    assert "bull mastiff" in printed
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_draw_pictures(tmp_path):
    run("draw_pictures.py", tmp_path, cwd=tmp_path)
    names = {"demo.png", "scene-sheet.png", "subtraction.png", "layers.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 400


def test_affinity_columns(tmp_path):
    scenes = str(tmp_path / "scenes")
    training = ["--steps", "1", "--batch-size", "2", "--workers", "0", "--walk-steps", "4"]
    for command in (
        ["scenes", scenes, "--count", "5", "--size", "64"],
        ["affinity", scenes, "--weights", "demo", "--output", str(tmp_path / "affinity"), *training],
    ):
        assert CliRunner().invoke(app, command).exit_code == 0
    net = "affinity/network/affinity_net.safetensors"
    run("affinity_columns.py", "scenes", "demo", net, "--count", 1, cwd=tmp_path)
    with Image.open(tmp_path / "affinity-columns.png") as picture:
        assert picture.width > 5 * picture.height


@pytest.mark.slow
def test_pseudo_label_on_ray(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'dcsm_attr[ray]'")
    printed = run("pseudo_label_on_ray.py", "--count", 5, "--actors", 1, cwd=tmp_path)
    assert "labelled, report.html" in printed
    assert (tmp_path / "out/ray/labels/report.html").is_file()


def test_every_example_is_tested():
    text = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in text

"""Every example runs and writes the files and lines that it promises."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from dcsm_attr import Segmenter
from dcsm_attr.attribution.maps import upsample
from dcsm_attr.cli import app
from dcsm_attr.datasets.labels import ImageLabels, LabelRow, write_image_labels
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene, write_scene_folder
from dcsm_attr.demo import scene_classifier
from dcsm_attr.models.checkpoint import load_classifier

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs an example as from a shell in an empty folder, and returns what it prints."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def saved_scenes(folder, count, size=64):
    folder.mkdir()
    scenes = [generate_scene(i, seed=1, size=size) for i in range(count)]
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    return scenes


def test_attribute_like_captum(tmp_path, run):
    printed = run("attribute_like_captum.py", tmp_path)
    assert printed.count("detected") >= 2
    assert "sensitivity_max" in printed
    with Image.open(tmp_path / "captum.png") as image:
        assert image.width > 100


def test_guided_by_hand(run):
    assert "DistinctClassSaliency gives the same maps" in run("guided_by_hand.py")


def test_own_cnn(run):
    printed = run("own_cnn.py")
    assert "chosen: wide, shared, end" in printed
    assert "the same maps (2, 3, 64, 64)" in printed


def test_refine_probabilities(tmp_path, run):
    (scene,) = saved_scenes(tmp_path / "scenes", 1, size=128)
    present = torch.nn.functional.one_hot(scene.labels, 1 + len(CLASS_NAMES)).permute(2, 0, 1)[None].float()
    coarse = upsample(torch.nn.functional.avg_pool2d(present, 16), (128, 128))[0]
    np.save(tmp_path / "probabilities.npy", coarse.numpy())
    printed = run("refine_probabilities.py", "scenes/0.png", "probabilities.npy", "--color", 4)
    assert "labels.png" in printed
    with Image.open(tmp_path / "labels.png") as image:
        refined = torch.from_numpy(np.array(image)).long()
    wrong_before, wrong_after = ((labels != scene.labels).float().mean() for labels in (coarse.argmax(0), refined))
    assert wrong_after < 0.6 * wrong_before


def test_fuse_two_methods(run):
    values = dict(line.split() for line in run("fuse_two_methods.py", "--scenes", 8).splitlines())
    cam, dcsm, product = (float(values[name].rstrip("%")) for name in ("CAM", "DCSM", "product"))
    assert cam < dcsm
    assert product < dcsm, "the docstring says that the product is worse on this network"


def test_segment_stream(tmp_path, run):
    saved_scenes(tmp_path / "scenes", 3, size=128)
    (tmp_path / "scenes" / "1.png").write_bytes(b"broken")
    lines = run("segment_stream.py", "scenes", "--output", "labels").splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.png", "skipped", "2.png"]
    assert "1.png" in lines[1]
    shipped = scene_classifier()
    segmenter = Segmenter(shipped.network, class_names=shipped.class_names, preprocess=shipped.preprocess)
    for i, line in ((0, lines[0]), (2, lines[2])):
        alone = segmenter.segment(tmp_path / "scenes" / f"{i}.png")
        assert line == f"{i}.png: {', '.join(alone.names)}"
        with Image.open(tmp_path / "labels" / f"{i}.png") as image:
            assert (np.array(image) == alone.labels.numpy()).mean() > 0.999
    assert not (tmp_path / "labels" / "1.png").exists()


def test_train_and_segment(tmp_path, run):
    saved_scenes(tmp_path / "images", 8)
    rows = {str(i): LabelRow("train" if i < 6 else "val", (i % 2,)) for i in range(8)}
    write_image_labels(tmp_path / "labels.csv", ImageLabels(("even", "odd"), rows))
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "backbone.pth")
    options = ["--weights", "backbone.pth", "--steps", 2, "--size", 64]
    assert run("train_and_segment.py", "images", "labels.csv", *options).startswith("6 shows")
    trained = load_classifier(tmp_path / "out" / "classifier" / "best.safetensors")
    assert trained.class_names == ("even", "odd")
    with Image.open(tmp_path / "out" / "first" / "labels.png") as image:
        assert image.size == (64, 64)


def test_segment_image(tmp_path, run, shared):
    weights = shared / "models" / "squeezenet1_1-imagenet1k.safetensors"
    image = shared / "images" / "dog-and-cat.png"
    options = ["--model", "squeezenet1_1", "--weights", weights, "--output", tmp_path / "out"]
    printed = run("segment_image.py", image, *options)
    assert "bull mastiff" in printed
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_draw_images(tmp_path, run):
    run("draw_figures.py", tmp_path, "--scenes", 8)
    names = {"demo.png", "scene-overview.png", "subtraction.png", "layers.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        with Image.open(tmp_path / name) as image:
            assert image.width > 400


def test_stochastic_maps(run):
    one, many = run("stochastic_maps.py", "--samples", 8).splitlines()
    assert one.startswith("1 maps: ")
    assert many.startswith("8 maps: ")
    shares = [float(line.split()[2]) for line in (one, many)]
    assert 0 < shares[0] < shares[1]


def test_measure_segmenter(tmp_path, run):
    write_scene_folder(tmp_path / "scenes", 10, size=128, progress=False)
    lines = run("measure_segmenter.py", "scenes", "--protocol", "known").splitlines()
    values = {line.split()[0]: [float(value) for value in line.split()[1:]] for line in lines[1:]}
    assert set(values) == {"background", "mean", *CLASS_NAMES}
    occurring = [value for name, value in values.items() if name != "mean" and not np.isnan(value[0])]
    assert np.allclose(values["mean"], np.mean(occurring, axis=0), atol=0.1)
    assert 40 < values["mean"][0] < values["mean"][1]


def test_affinity_columns(tmp_path, run):
    scenes = str(tmp_path / "scenes")
    training = ["--steps", "1", "--batch-size", "2", "--workers", "0"]
    for command in (
        ["scenes", scenes, "--count", "5", "--size", "64"],
        ["affinity", scenes, "--weights", "demo", "--output", str(tmp_path / "affinity"), *training],
    ):
        assert CliRunner().invoke(app, command).exit_code == 0
    net = "affinity/network/affinity_net.safetensors"
    run("affinity_columns.py", "scenes", "demo", net, "--count", 1)
    with Image.open(tmp_path / "affinity-columns.png") as image:
        assert image.width > 5 * image.height


def test_boundaries_of_affinities_by_hand():
    boundaries = runpy.run_path(str(EXAMPLES / "affinity_columns.py"))["boundaries"]
    offsets = ((0, 1), (1, 0))
    seen = torch.zeros(1, 2, 2, 2)
    seen[0, 0, :, 0] = torch.tensor([0.9, 0.5])
    seen[0, 1, 0] = torch.tensor([0.3, 0.1])
    # Every position has two neighbors: to the side, and above or below.
    expected = [[1 - (0.9 + 0.3) / 2, 1 - (0.9 + 0.1) / 2], [1 - (0.5 + 0.3) / 2, 1 - (0.5 + 0.1) / 2]]
    assert torch.allclose(boundaries(seen, offsets)[0, 0], torch.tensor(expected))
    assert boundaries(torch.zeros(1, 2, 1, 1), offsets).item() == 0


def test_pseudo_label_slurm(tmp_path, monkeypatch):
    recorder = tmp_path / "dcsm-attr"
    recorder.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    recorder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    given = {"IMAGES": "a list.txt", "WEIGHTS": "best.safetensors", "OUTPUT": str(tmp_path / "run")}
    for name, value in {**given, "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16"}.items():
        monkeypatch.setenv(name, value)
    for labels in (None, "labels.csv"):
        if labels is not None:
            monkeypatch.setenv("LABELS", labels)
        script = ["bash", str(EXAMPLES / "pseudo_label_slurm.sh")]
        name, *arguments = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
        parsed = get_command(app).commands[name].make_context(name, arguments).params
        assert str(parsed["images"]) == "a list.txt"
        assert parsed["shard"] == "3/16"
        assert (None if parsed["image_labels"] is None else str(parsed["image_labels"])) == labels


@pytest.mark.slow
def test_pseudo_label_on_ray(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'dcsm_attr[ray]'")
    # A process of its own: the actors find what to build by the name of this script.
    command = [sys.executable, str(EXAMPLES / "pseudo_label_on_ray.py"), "--count", "5", "--actors", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "labeled, report.html" in result.stdout, result.stderr
    assert (tmp_path / "out/ray/labels/report.html").is_file()


def test_every_example_is_tested_and_listed():
    tests, table = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    for example in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.sh")):
        assert f"[`{example.name}`]({example.name})" in table
        assert f'"{example.name}"' in tests


@pytest.mark.parametrize("name", ["affinity_columns.py", "segment_stream.py"])
def test_help_shows_the_command_and_runs_nothing(name, tmp_path, run, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(name, "--help")
    assert exit_.value.code == 0
    assert f"    python examples/{name}" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())

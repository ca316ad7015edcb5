"""The command line as a user meets it: files written, lines printed, errors that say what to do."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from dcsm_attr.cli import app, main

NAMES = ["ant", "bee", "cat", "dog"]

pytestmark = pytest.mark.usefixtures("small_canvas")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network with random weights, the names of its classes, and two images in folders of their own."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(1)
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=len(NAMES))
    save_file(network.state_dict(), folder / "net.safetensors")
    (folder / "names.txt").write_text("\n".join(NAMES))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    for name, picture in zip("ab", pixels, strict=True):
        (folder / name).mkdir()
        Image.fromarray(picture).save(folder / name / "photo.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def with_network(files, *arguments, output):
    options = ["--model", "squeezenet1_1", "--weights", files / "net.safetensors", "--labels", files / "names.txt"]
    return run(*arguments, *options, "--device", "cpu", "--output", output)


def in_a_process(*arguments):
    command = [sys.executable, "-m", "dcsm_attr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text))


def test_help_names_every_command_and_teaches_by_example():
    for command in ("segment", "attribute", "demo"):
        assert command in run("--help").output
        assert f"dcsm-attr {command}" in plain(run(command, "--help").output)
    assert "sky" not in run("--help").output
    assert "never executed" in plain(run("segment", "--help").output)


def test_segment_writes_everything(files, tmp_path):
    result = with_network(files, "segment", files / "a" / "photo.png", "--classes", "bee,3", output=tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "photo"
    written = {path.name for path in folder.iterdir()}
    assert written == {"labels.png", "maps.npz", "overlay.png", "overview.png", "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {entry["name"] for entry in manifest["label_values"].values()} == {"bee", "dog"}
    assert manifest["settings"]["weights"] == str(files / "net.safetensors")
    labels = np.asarray(Image.open(folder / "labels.png"))
    assert labels.shape == (40, 60)
    assert set(np.unique(labels)) <= {0, 2, 4}
    maps = np.load(folder / "maps.npz")
    assert sorted(maps["classes"][:2].tolist()) == [1, 3]
    assert np.allclose(maps["probabilities"].sum(axis=0), 1, atol=1e-5)
    for name in ("bee", "dog"):
        value = {entry["name"]: int(key) for key, entry in manifest["label_values"].items()}[name]
        assert f"{name} {(labels == value).mean():.1%}" in result.output


def test_attribute_writes_the_maps(files, tmp_path):
    result = with_network(files, "attribute", files / "a" / "photo.png", output=tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "photo"
    assert {path.name for path in folder.iterdir()} == {"attribution.png", "attribution.npz", "attribution.json"}
    with np.load(folder / "attribution.npz") as arrays:
        assert arrays["maps"].shape == arrays["raw"].shape == (3, 40, 60)
        assert (arrays["maps"] >= 0).all()
        assert arrays["maps"].max() > 0
    assert json.loads((folder / "attribution.json").read_text())["settings"]["crf"] is None


def test_images_of_one_name_do_not_overwrite_each_other(files, tmp_path):
    result = with_network(files, "attribute", files / "a", files / "b", output=tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"photo", "photo-2", "run.json"}
    first, second = (np.load(tmp_path / name / "attribution.npz")["maps"] for name in ("photo", "photo-2"))
    assert not np.array_equal(first, second)


def test_one_bad_image_does_not_end_the_run(files, tmp_path):
    good = files / "a" / "photo.png"
    bad = tmp_path / "half.png"
    bad.write_bytes(good.read_bytes()[:500])
    result = with_network(files, "attribute", bad, tmp_path / "none.jpg", good, output=tmp_path / "out")
    assert result.exit_code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo", "run.json"}
    run_manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_manifest["photographs"] == 3
    assert run_manifest["results"] == [{"photograph": str(good), "folder": "photo"}]
    assert [failure["photograph"] for failure in run_manifest["failures"]] == [str(bad), str(tmp_path / "none.jpg")]
    assert "cannot be read (OSError: " in run_manifest["failures"][0]["reason"]
    assert "there is no such file" in run_manifest["failures"][1]["reason"]
    assert "2 of 3 photographs could not be read" in result.output
    assert str(bad) in result.output
    assert "none.jpg" in result.output


def test_an_interrupted_run_goes_on(files, tmp_path):
    photographs = [files / "a" / "photo.png", files / "b" / "photo.png"]
    with_network(files, "segment", *photographs, output=tmp_path)
    second = tmp_path / "photo-2"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "photo").iterdir()}
    expected = (second / "labels.png").read_bytes()
    (second / "manifest.json").unlink()
    (second / "labels.png").write_bytes(b"half")
    result = with_network(files, "segment", *photographs, "--resume", output=tmp_path)
    assert result.exit_code == 0, result.output
    assert "1 of 2 photographs are finished already" in result.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "photo").iterdir()} == before
    assert (second / "labels.png").read_bytes() == expected
    assert (second / "manifest.json").is_file()


def test_demo_measures_and_draws(tmp_path):
    result = run("demo", "--scenes", 4, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    values = [float(value) for value in re.findall(r"^  [a-zA-Z ]+?\s+(\d+\.\d)", result.output, re.MULTILINE)]
    assert len(values) == 3
    assert all(0 < value < 100 for value in values)
    with Image.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 600
        assert np.asarray(picture.convert("L")).std() > 20


def test_demo_trains_again_where_asked(tmp_path, monkeypatch):
    from dcsm_attr.training import scenes

    steps = dict(scenes.train_scene_net.__kwdefaults__, steps=3, size=64, workers=0)
    monkeypatch.setattr(scenes.train_scene_net, "__kwdefaults__", steps)
    result = run("demo", "--retrain", "--scenes", 2, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"scene_net.safetensors", "demo.png"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg61"], "has no classification model 'vgg61'. Similar names: vgg"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--weights", "WRONG"], "neither a file nor among torchvision's weights"),
        (["--labels", "no-such-names.txt"], "no-such-names.txt"),
        (["--classes", "unicorn"], "there is no class 'unicorn'"),
        (["--classes", " , "], "--classes names nothing"),
        (["--classes", "99"], "99"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(files, tmp_path, monkeypatch, capsys, arguments, message):
    options = {"--model": "squeezenet1_1", "--weights": files / "net.safetensors", "--labels": files / "names.txt"}
    options |= {"--device": "cpu", "--output": tmp_path / "out", **dict([arguments])}
    flat = [item for pair in options.items() for item in pair]
    monkeypatch.setattr(sys, "argv", ["dcsm-attr", "segment", str(files / "a" / "photo.png"), *map(str, flat)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("dcsm-attr: ")
    assert message in said
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(files, tmp_path):
    result = in_a_process("segment", files / "a" / "photo.png", "--device", "cuda", "--output", tmp_path / "out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("dcsm-attr: ")
    assert "PyTorch sees no GPU here; --device auto" in result.stderr


def test_an_output_that_is_a_file(files, tmp_path):
    (tmp_path / "out").write_text("in the way")
    result = with_network(files, "segment", files / "a" / "photo.png", output=tmp_path / "out")
    assert isinstance(result.exception, OSError)
    assert "out" in str(result.exception)
    assert (tmp_path / "out").read_text() == "in the way"


def test_a_folder_without_images(files, tmp_path):
    result = with_network(files, "segment", tmp_path, output=tmp_path / "out")
    assert "the folder contains no images" in str(result.exception)


@pytest.mark.parametrize("command", ["segment", "attribute"])
def test_a_folder_without_images_costs_no_download(command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("weights were loaded"))
    result = CliRunner().invoke(app, [command, str(tmp_path), "--model", "squeezenet1_1", "--weights", "DEFAULT"])
    assert "the folder contains no images" in str(result.exception)

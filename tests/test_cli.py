"""The command line: help, files written, lines printed, resuming, and errors."""

import inspect
import json
import re
import subprocess
import sys
from typing import Literal, get_args, get_origin

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner

from dcsm_attr.cli import app, main

NAMES = ["ant", "bee", "cat", "dog"]
GROUPS = {
    "Explain and segment": ("segment", "attribute", "demo"),
    "Train": ("labels", "train", "train-seg", "scenes"),
    "Pseudo-labels": ("seeds", "affinity", "ficklenet", "pseudo-label", "report"),
    "Evaluate": ("evaluate", "miou"),
}

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
    options = ["--model", "squeezenet1_1", "--weights", files / "net.safetensors", "--class-names", files / "names.txt"]
    return run(*arguments, *options, "--device", "cpu", "--output", output)


def in_a_process(*arguments):
    command = [sys.executable, "-m", "dcsm_attr", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text))


def test_help_groups_the_commands():
    text = run("--help").output
    for group, commands in GROUPS.items():
        panel = plain(text.split(f"─ {group} ─")[1].split("╰")[0])
        assert all(f" {command} " in panel for command in commands), group


@pytest.mark.parametrize("command", [command for commands in GROUPS.values() for command in commands])
def test_help_of_a_command_has_examples_and_options_in_panels(command):
    text = run(command, "--help").output
    assert f"dcsm-attr {command}" in plain(text.split("Examples:")[1])
    assert "│ --no-" not in text.replace("--no-crf", ""), "flags have no negative"
    if command not in ("demo", "report", "scenes"):
        panel = plain(text.split("─ Options ─")[1].split("╰")[0])
        assert set(re.findall(r"--[a-z-]+", panel)) == {"--help"}


def test_help_does_not_import_torch():
    code = "import sys; from dcsm_attr.cli import main; sys.argv[1:] = ['segment', '--help']\ntry: main()\n"
    code += "finally: print([name for name in ('torch', 'matplotlib', 'PIL') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_choices_are_those_of_the_library():
    from dcsm_attr.attribution.model import PoolingName
    from dcsm_attr.cli import options
    from dcsm_attr.models.fully_convolutional import HeadName
    from dcsm_attr.models.segmentation_net import SegmentationHead
    from dcsm_attr.segmentation import presets
    from dcsm_attr.segmentation.segmenter import Precision
    from dcsm_attr.training import optimizer
    from dcsm_attr.wsss.affinity import EXPONENTS
    from dcsm_attr.wsss.losses import ObjectiveName

    assert get_args(options.PresetName) == get_args(presets.PresetName)
    assert get_args(options.ScheduleName) == get_args(optimizer.ScheduleName)
    assert get_args(options.PrecisionName) == get_args(Precision)
    assert choices("train", "pooling") == get_args(PoolingName)
    assert choices("train", "head") == get_args(HeadName)
    assert choices("train-seg", "head") == get_args(SegmentationHead)
    assert choices("train-seg", "loss") == get_args(ObjectiveName)
    assert choices("affinity", "method") == tuple(EXPONENTS)


def choices(command, name):
    """The choices of an option, from the annotation of the command's function."""
    signature = inspect.signature(get_command(app).commands[command].callback, eval_str=True)
    hint = signature.parameters[name].annotation
    while get_origin(hint) is not Literal:
        hint = get_args(hint)[0]
    return get_args(hint)


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
    assert {path.name for path in tmp_path.iterdir()} == {"photo", "photo-2", "run.json", "settings.json"}
    first, second = (np.load(tmp_path / name / "attribution.npz")["maps"] for name in ("photo", "photo-2"))
    assert not np.array_equal(first, second)


def test_one_bad_image_does_not_end_the_run(files, tmp_path):
    good = files / "a" / "photo.png"
    bad = tmp_path / "half.png"
    bad.write_bytes(good.read_bytes()[:500])
    result = with_network(files, "attribute", bad, tmp_path / "none.jpg", good, output=tmp_path / "out")
    assert result.exit_code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo", "run.json", "settings.json"}
    run_manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run_manifest["images"] == 3
    assert run_manifest["results"] == [{"image": str(good), "folder": "photo"}]
    assert [failure["image"] for failure in run_manifest["failures"]] == [str(bad), str(tmp_path / "none.jpg")]
    assert "cannot be read (OSError: " in run_manifest["failures"][0]["reason"]
    assert "there is no such file" in run_manifest["failures"][1]["reason"]
    assert "2 of 3 images could not be read" in result.output
    assert str(bad) in result.output
    assert "none.jpg" in result.output


def test_an_interrupted_run_resumes(files, tmp_path):
    images = [files / "a" / "photo.png", files / "b" / "photo.png"]
    with_network(files, "segment", *images, output=tmp_path)
    second = tmp_path / "photo-2"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "photo").iterdir()}
    expected = (second / "labels.png").read_bytes()
    (second / "manifest.json").unlink()
    (second / "labels.png").write_bytes(b"half")
    result = with_network(files, "segment", *images, output=tmp_path)
    assert result.exit_code == 0, result.output
    assert "1 of 2 images are finished" in result.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "photo").iterdir()} == before
    assert (second / "labels.png").read_bytes() == expected
    assert (second / "manifest.json").is_file()


def test_a_run_with_other_images_keeps_the_results_of_the_first(files, tmp_path):
    first, second = files / "a" / "photo.png", files / "b" / "photo.png"
    with_network(files, "segment", first, output=tmp_path)
    before = (tmp_path / "photo" / "labels.png").read_bytes()
    for images in ([second], [second, first]):
        result = with_network(files, "segment", *images, output=tmp_path)
        assert result.exit_code == 0, result.output
        for entry in json.loads((tmp_path / "run.json").read_text())["results"]:
            manifest = json.loads((tmp_path / entry["folder"] / "manifest.json").read_text())
            assert manifest["settings"]["classes"] is None
            assert entry["image"] == manifest["image"]
    assert (tmp_path / "photo" / "labels.png").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--no-crf",), "crf"),
        (("--classes", "bee"), "classes"),
        (("--preset", "tuned"), "saliency.min_candidates (3 before, 1 now)"),
        (("--weights", "demo"), "parameters"),
    ],
)
def test_a_folder_with_other_settings_is_refused(files, tmp_path, options, difference):
    image = files / "a" / "photo.png"
    with_network(files, "segment", image, output=tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("kept")
    network = () if "--weights" in options else ("--weights", files / "net.safetensors")
    names = ("--model", "squeezenet1_1", "--class-names", files / "names.txt", "--device", "cpu")
    command = ("segment", image, *network, *names, "--output", tmp_path, *options)
    refused = run(*command)
    assert difference in str(refused.exception)
    assert "--overwrite" in str(refused.exception)
    result = run(*command, "--overwrite")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "notes" / "mine.txt").read_text() == "kept"
    assert run(*command).exit_code == 0


def test_the_same_weights_in_another_file_resume(files, tmp_path):
    image, copy = files / "a" / "photo.png", tmp_path / "copy.safetensors"
    copy.write_bytes((files / "net.safetensors").read_bytes())
    with_network(files, "attribute", image, output=tmp_path / "out")
    names = ("--model", "squeezenet1_1", "--class-names", files / "names.txt", "--device", "cpu")
    result = run("attribute", image, "--weights", copy, *names, "--output", tmp_path / "out")
    assert "1 of 1 images are finished" in result.output


def test_demo_measures_and_draws(tmp_path):
    result = run("demo", "--scenes", 4, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    values = [float(value) for value in re.findall(r"^  [a-zA-Z ]+?\s+(\d+\.\d)", result.output, re.MULTILINE)]
    assert len(values) == 3
    assert all(0 < value < 100 for value in values)
    with Image.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 600
        assert np.asarray(picture.convert("L")).std() > 20


def test_demo_retrains_the_network(tmp_path, monkeypatch):
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
        (["--class-names", "no-such-names.txt"], "no-such-names.txt"),
        (["--classes", "unicorn"], "there is no class 'unicorn'"),
        (["--classes", " , "], "--classes must contain names or numbers"),
        (["--classes", "99"], "99"),
    ],
)
def test_user_errors_are_reported_in_one_line(files, tmp_path, monkeypatch, capsys, arguments, message):
    options = {"--model": "squeezenet1_1", "--weights": files / "net.safetensors", "--class-names": files / "names.txt"}
    options |= {"--device": "cpu", "--output": tmp_path / "out", **dict([arguments])}
    flat = [item for pair in options.items() for item in pair]
    monkeypatch.setattr(sys, "argv", ["dcsm-attr", "segment", str(files / "a" / "photo.png"), *map(str, flat)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    reported = capsys.readouterr().err
    assert reported.startswith("dcsm-attr: ")
    assert message in reported
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(files, tmp_path):
    result = in_a_process("segment", files / "a" / "photo.png", "--device", "cuda", "--output", tmp_path / "out")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("dcsm-attr: ")
    assert "PyTorch finds no GPU. --device auto" in result.stderr


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

"""``dcsm-attr pseudo-label``: options, collections, and what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr.cli import app

SLURM = Path(__file__).parents[1] / "examples" / "pseudo_label_slurm.sh"
QUICK = ("--no-crf", "--batch-size", "2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    assert CliRunner().invoke(app, ["scenes", str(folder), "--count", "5", "--size", "64"]).exit_code == 0
    return folder


def pseudo_label(*arguments, code=0):
    result = CliRunner().invoke(app, ["pseudo-label", *map(str, arguments), "--weights", "demo", *QUICK])
    assert result.exit_code == code, result.output
    return result


def error_of(*arguments):
    result = pseudo_label(*arguments, code=1)
    assert isinstance(result.exception, ValueError), result.exception
    return str(result.exception)


def manifest(folder):
    first, *lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return first, {line["name"]: line for line in lines}


def test_a_voc_folder_by_its_lists(tmp_path, scenes):
    pseudo_label(scenes, "--output", tmp_path / "train", "--report", "--overlays", "2", "--maps")
    first, lines = manifest(tmp_path / "train")
    names = (scenes / "ImageSets/Segmentation/train.txt").read_text().split()
    assert list(lines) == names
    assert first["labeled"] == len(names)
    assert first["settings"]["crf"] is None
    for name, line in lines.items():
        with Image.open(tmp_path / "train" / line["labels"]) as picture:
            assert picture.mode == "P"
            present = {value for _, value in picture.getcolors()}
        assert present <= {0, *(one["value"] for one in line["classes"])}
        assert (tmp_path / "train" / "maps" / f"{name}.npz").is_file()
    assert "<html" in (tmp_path / "train" / "report.html").read_text(encoding="utf-8")[:400].lower()
    assert len(list((tmp_path / "train" / "overlays").iterdir())) == -(-len(names) // 2)


def test_a_folder_a_list_and_a_broken_file(tmp_path, scenes):
    pictures = tmp_path / "pictures"
    shutil.copytree(scenes / "JPEGImages", pictures)
    names = sorted(path.name for path in pictures.iterdir())
    (pictures / "broken.jpg").write_bytes(b"no picture")
    labels = tmp_path / "labels.csv"
    rows = (scenes / "image_labels.csv").read_text().splitlines()
    labels.write_text("\n".join([*rows, rows[1].replace(rows[1].split(",")[0], "broken")]))
    result = pseudo_label(pictures, "--image-labels", labels, "--output", tmp_path / "folder", code=1)
    assert "1 images could not be read" in result.output
    assert "broken.jpg: not an image" in result.output
    first, lines = manifest(tmp_path / "folder")
    assert (first["labeled"], first["failed"]) == (len(names), 1)
    assert "not an image" in lines["broken"]["error"]

    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"pictures/{name}\n" for name in names))
    pseudo_label(listed, "--image-labels", labels, "--output", tmp_path / "list")
    assert {path.stem for path in (tmp_path / "list/labels").iterdir()} == {Path(name).stem for name in names}


def test_shards_end_with_one_manifest(tmp_path, scenes):
    listed, labels = tmp_path / "list.txt", scenes / "image_labels.csv"
    listed.write_text("".join(f"{path}\n" for path in sorted((scenes / "JPEGImages").iterdir())))
    arguments = (listed, "--image-labels", labels, "--output", tmp_path / "out", "--report")
    assert "no report yet" in pseudo_label(*arguments, "--shard", "1/2").output
    assert "report.html" in pseudo_label(*arguments, "--shard", "0/2").output
    assert manifest(tmp_path / "out")[0]["labeled"] == len(listed.read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "2/2"), "index must be in 0 to count - 1 = 1, got 2"),
        (("--shard", "1"), "--shard must be I/N, such as 0/8 for the first of eight parts; got '1'"),
        (("--engine", "ray", "--actors", "few"), "--actors must be N or MIN-MAX, such as 4 or 4-64; got 'few'"),
        (("--engine", "ray", "--actors", "4-2"), r"actors must be two numbers.*\(4, 2\)"),
        (("--split", "nowhere"), "nowhere"),
    ],
)
def test_bad_options_are_told_before_the_work(tmp_path, scenes, options, said):
    assert re.search(said, error_of(scenes, *options, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_images_need_labels(tmp_path, scenes):
    assert "For other images, pass --image-labels FILE.csv" in error_of(
        scenes / "JPEGImages", "--output", tmp_path / "out"
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_jobs_of_an_array(tmp_path, scenes):
    command = Path(sys.executable).with_name("dcsm-attr")
    if not command.exists():
        pytest.skip("needs the installed command")
    environment = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "SLURM_ARRAY_TASK_COUNT": "2"}
    given = {"IMAGES": str(scenes), "WEIGHTS": "demo", "OUTPUT": str(tmp_path / "out")}
    for task in "01":
        variables = {**os.environ, **environment, **given, "SLURM_ARRAY_TASK_ID": task}
        subprocess.run(["bash", str(SLURM)], env=variables, check=True, capture_output=True)
    first, lines = manifest(tmp_path / "out")
    names = (scenes / "ImageSets/Segmentation/train.txt").read_text().split()
    assert (first["labeled"], list(lines)) == (len(names), names)
    assert all(name in (tmp_path / "out" / "report.html").read_text(encoding="utf-8") for name in names)

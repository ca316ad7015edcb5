"""The notebooks run from top to bottom, agree with the package, and contain no outputs."""

import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from typer.testing import CliRunner

import dcsm_attr.training.classifier as classifier_training
from dcsm_attr import Segmenter
from dcsm_attr.cli import app
from dcsm_attr.demo import scene_classifier
from dcsm_attr.evaluation.metrics import confusion_matrix, mean_iou

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder where a notebook runs, with an environment that selects the default image."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    for name in ("IMAGE", "WEIGHTS", "MODEL", "CLASSES", "SHARED"):
        monkeypatch.delenv(f"DCSM_ATTR_{name}", raising=False)
    return tmp_path


def run(path, folder):
    """Run a notebook and return what it printed."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "dcsm_attr" in output.text]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def code_cells(name):
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, folder):
    run(path, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("01", "features.12.squeeze"),
        ("02", "distinct  bull mastiff and tabby"),
        ("03", "in the image: bull mastiff, tabby"),
        ("05", "the gradient at layer4 is the same at every position"),
    ],
)
def test_notebooks_run_with_an_image(start, expected, folder, monkeypatch, shared):
    monkeypatch.setenv("DCSM_ATTR_SHARED", str(shared))
    monkeypatch.setenv("DCSM_ATTR_IMAGE", str(shared / "images" / "dog-and-cat.png"))
    monkeypatch.setenv("DCSM_ATTR_WEIGHTS", str(shared / "models" / "squeezenet1_1-imagenet1k.safetensors"))
    monkeypatch.setenv("DCSM_ATTR_CLASSES", "bull mastiff,tabby")
    (path,) = (notebook for notebook in NOTEBOOKS if notebook.stem.startswith(start))
    assert expected in run(path, folder)


def test_the_training_notebook_equals_its_command(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    calls = []

    def record(classifier, training, validation, folder, settings, **options):
        calls.append((classifier, training, validation, settings))
        return classifier

    monkeypatch.setattr(classifier_training, "train_classifier", record)
    names = {}
    for source in code_cells("04"):
        if not calls:
            exec(source, names)
    text = (FOLDER / "04_train_on_your_own_folder.ipynb").read_text(encoding="utf-8")
    command = text[text.index("dcsm-attr train out/own-folder") :].partition("\\n")[0]
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    (classifier, *collections, settings), (other, *other_collections, other_settings) = calls
    assert other_collections == collections
    assert other_settings.schedule == settings.schedule
    assert other_settings.seed == settings.seed
    assert other.architecture == classifier.architecture
    assert other.preprocess == classifier.preprocess
    weights, other_weights = classifier.network.state_dict(), other.network.state_dict()
    assert all(torch.equal(other_weights[name], value) for name, value in weights.items())


def test_the_layer_notebook_measures_what_a_segmenter_gives(folder, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells, names = code_cells("05"), {}
    for source in (cells[0], cells[-1]):
        exec(source, names)
    measured = dict(zip(names["choices"], names["values"], strict=True))
    shipped = scene_classifier()
    segmenter = Segmenter(shipped.network, crf=None, preprocess=shipped.preprocess)
    results = segmenter.segment_batch([scene.image for scene in names["scenes"]], names["present"])
    confusion = confusion_matrix(torch.stack([result.labels for result in results]), names["truth"], 9)
    assert measured["all"] == pytest.approx(100 * mean_iou(confusion), abs=0.05)
    assert measured["block 1"] > measured["all"] - 1
    assert measured["block 3"] < measured["all"] - 15


def test_notebooks_contain_no_outputs(tmp_path):
    check = [sys.executable, str(FOLDER / "check_stripped.py")]
    assert subprocess.run([*check, *map(str, NOTEBOOKS)], check=False).returncode == 0
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("stream", text="output")]
    nbformat.write(notebook, tmp_path / "dirty.ipynb")
    assert subprocess.run([*check, str(tmp_path / "dirty.ipynb")], capture_output=True, check=False).returncode != 0

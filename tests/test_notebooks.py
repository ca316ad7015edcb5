"""Every notebook runs from top to bottom, and none carries outputs."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a notebook runs; whatever photograph the environment names, it is not taken."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    for name in ("IMAGE_ARRAY", "WEIGHTS", "MODEL", "CLASSES"):
        monkeypatch.delenv(f"DCSM_ATTR_{name}", raising=False)
    return tmp_path


def run(path, folder):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook shows pictures"
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "dcsm_attr" in output.text]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, folder):
    run(path, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("01", "features.12.squeeze"),
        ("02", "distinct  bull mastiff and tabby"),
        ("03", "in the picture: bull mastiff, tabby"),
    ],
)
def test_it_runs_on_an_image(start, said, folder, monkeypatch, shared):
    monkeypatch.setenv("DCSM_ATTR_PHOTOGRAPH", str(shared / "images" / "dog-and-cat.png"))
    monkeypatch.setenv("DCSM_ATTR_WEIGHTS", str(shared / "models" / "squeezenet1_1-imagenet1k.safetensors"))
    monkeypatch.setenv("DCSM_ATTR_CLASSES", "bull mastiff,tabby")
    (path,) = (notebook for notebook in NOTEBOOKS if notebook.stem.startswith(start))
    assert said in run(path, folder)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_outputs_are_stripped_and_the_check_can_fail(tmp_path):
    check = [sys.executable, str(FOLDER / "check_stripped.py")]
    assert subprocess.run([*check, *map(str, NOTEBOOKS)], check=False).returncode == 0
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    cell.outputs = [nbformat.v4.new_output("stream", text="left behind")]
    dirty = tmp_path / "dirty.ipynb"
    nbformat.write(notebook, dirty)
    assert subprocess.run([*check, str(dirty)], capture_output=True, check=False).returncode != 0

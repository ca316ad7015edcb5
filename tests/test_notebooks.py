"""Every notebook runs from top to bottom, and none carries outputs."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "a notebook shows pictures"
    assert not [output.text for output in outputs if output.get("name") == "stderr" and "dcsm_attr" in output.text]


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

"""The notebook on layers, with a real network and photograph: what it says of them holds."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_choosing_layers.ipynb"


@pytest.mark.slow
def test_it_runs_with_a_photograph(tmp_path, monkeypatch, shared):
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(os.environ, "DCSM_ATTR_SHARED", str(shared))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "block 3: features.9.squeeze (256), features.11.squeeze (384), features.12.squeeze (512)" in printed
    assert "the gradient at layer4 is the same at every position" in printed
    assert "Near it: features.12.squeeze" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5

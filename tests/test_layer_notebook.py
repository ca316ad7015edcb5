"""What the notebook on layers says holds, and it runs with a real network and photograph."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from dcsm_attr import Segmenter
from dcsm_attr.demo import scene_classifier
from dcsm_attr.evaluation.metrics import confusion_matrix, mean_iou

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_choosing_layers.ipynb"


def test_what_it_measures_is_what_a_segmenter_gives_and_what_its_text_says(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.delenv("DCSM_ATTR_SHARED", raising=False)
    code = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    names = {}
    for source in (code[0], code[-1]):
        exec(source, names)
    measured = dict(zip(names["choices"], names["values"], strict=True))
    shipped = scene_classifier()
    segmenter = Segmenter(shipped.network, crf=None, preprocess=shipped.preprocess)
    results = segmenter.segment_batch([scene.image for scene in names["scenes"]], names["present"])
    confusion = confusion_matrix(torch.stack([result.labels for result in results]), names["truth"], 9)
    assert measured["all"] == pytest.approx(100 * mean_iou(confusion), abs=0.05)
    assert measured["block 1"] > measured["all"] - 1
    assert measured["block 3"] < measured["all"] - 15


@pytest.mark.slow
def test_it_runs_with_an_image(tmp_path, monkeypatch, shared):
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(os.environ, "DCSM_ATTR_SHARED", str(shared))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "block 3: features.9.squeeze (256), features.11.squeeze (384), features.12.squeeze (512)" in printed
    assert "the gradient at layer4 is the same at every position" in printed
    assert "Similar names: features.12.squeeze" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5

"""The command line that the notebook on training names does what its cells do."""

import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from typer.testing import CliRunner

import dcsm_attr.training.classifier as module
from dcsm_attr.cli import app

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "04_train_on_your_own_folder.ipynb"


@pytest.fixture
def asked(monkeypatch):
    """The arguments of every training, none of which takes place."""
    calls = []

    def noted(classifier, training, validation, folder, settings, **options):
        calls.append((classifier, training, validation, settings))
        return classifier

    monkeypatch.setattr(module, "train_classifier", noted)
    return calls


def test_the_command_trains_the_same_network_in_the_same_way(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    names = {}
    for cell in cells:
        if cell.cell_type == "code" and not asked:
            exec(cell.source, names)
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    command = next(line for line in text.splitlines() if line.startswith("dcsm-attr train out/own-folder"))
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0
    (here, *collections, settings), (there, *other_collections, other_settings) = asked
    assert other_collections == collections
    assert other_settings.preset == settings.preset
    assert other_settings.seed == settings.seed
    assert there.architecture == here.architecture
    assert there.preprocess == here.preprocess
    weights, other_weights = here.network.state_dict(), there.network.state_dict()
    assert all(torch.equal(other_weights[name], value) for name, value in weights.items())

"""A classifier with FickleNet's head: its file, its training, and exact resumption."""

from dataclasses import replace

import pytest
import torch
from test_train_classifier import CANVAS, NAMES, SCHEDULE, SETTINGS, last_weights, make_collection
from torch import nn

import dcsm_attr.training.classifier as module
from dcsm_attr.models.checkpoint import Architecture, build_classifier, load_classifier, save_network
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.models.stochastic import FickleSettings, StochasticSelection, use_generator
from dcsm_attr.training.classifier import train_classifier
from dcsm_attr.training.loop import TrainingSettings

ARCHITECTURE = Architecture(
    "squeezenet1_1", 2, "features.4", "fickle", fickle=FickleSettings(3, 0.5, keep_center=False)
)


def fickle():
    torch.manual_seed(7)
    return build_classifier(ARCHITECTURE, None, NAMES, CANVAS)


def train(folder, collection, settings=SETTINGS):
    return train_classifier(fickle(), collection, collection, folder, settings, workers=0, progress=False)


def test_a_file_contains_the_settings_of_the_head(tmp_path):
    built = fickle()
    save_network(built, tmp_path / "net.safetensors")
    found = load_classifier(tmp_path / "net.safetensors")
    assert found.architecture == ARCHITECTURE
    (selection,) = found.network.head
    assert isinstance(selection, StochasticSelection)
    assert (selection.kernel_size, selection.rate, selection.keep_center) == ((3, 3), 0.5, False)
    images = torch.randn(1, 3, 48, 48)
    scores = []
    for network in (built.network.eval(), found.network):
        with torch.no_grad(), use_generator(torch.Generator().manual_seed(3)):
            scores.append(network(images))
    assert torch.equal(*scores)


def test_a_description_has_the_settings_that_the_network_uses():
    plain = Architecture("squeezenet1_1", 2, "features.4", "linear")
    assert plain.to_dict() == {"model": "squeezenet1_1", "num_classes": 2, "cut": "features.4", "head": "linear"}
    assert Architecture.from_dict(plain.to_dict()) == plain
    assert ARCHITECTURE.to_dict() == {
        "model": "squeezenet1_1",
        "num_classes": 2,
        "cut": "features.4",
        "head": "fickle",
        "fickle": {"window": 3, "rate": 0.5, "keep_center": False},
    }
    dilated = replace(ARCHITECTURE, output_stride=8)
    assert Architecture.from_dict(dilated.to_dict()) == dilated


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"window": 4}, "window must be odd"), ({"rate": 1.5}, "rate is the probability")],
)
def test_windows_and_rates_are_checked(arguments, message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(ValueError, match=message):
        fully_convolutional(model, 2, cut="0", head="fickle", fickle=FickleSettings(**arguments))


def test_it_learns(tmp_path):
    collection = make_collection(tmp_path / "p", 12)
    schedule = replace(SCHEDULE, steps=60, batch_size=6, pooling="average", head_only_steps=0)
    best = train(tmp_path / "out", collection, TrainingSettings(schedule, validate_every=20))
    rows = (tmp_path / "out" / "log.csv").read_text().splitlines()
    assert max(float(row.split(",")[3]) for row in rows[1:]) > 0.95, rows
    assert best.pooling == "average"


def test_an_interrupted_run_resumes_exactly(tmp_path, monkeypatch):
    collection = make_collection(tmp_path / "p", 7)
    train(tmp_path / "whole", collection)
    calls, original = [], module.multi_label_loss

    def failing(logits, present):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(logits, present)

    monkeypatch.setattr(module, "multi_label_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", collection)
    monkeypatch.setattr(module, "multi_label_loss", original)
    train(tmp_path / "cut", collection)
    whole, cut = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)

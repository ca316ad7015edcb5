"""Files of trained networks: their kinds, and files of earlier versions."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.affinity_net import AffinityNet
from dcsm_attr.models.checkpoint import (
    Architecture,
    TrainedAffinityNet,
    TrainedSegmentationNet,
    build_classifier,
    load_affinity_net,
    load_classifier,
    load_segmentation_net,
    network_kind,
    save_network,
)
from dcsm_attr.models.segmentation_net import SegmentationNet
from dcsm_attr.models.stochastic import FickleSettings
from dcsm_attr.models.weights import WeightsError

NAMES = ("red", "green")
CANVAS = Preprocess("caffe", 64)
LOADERS = {
    "classifier": load_classifier,
    "affinity_net": load_affinity_net,
    "segmentation_net": load_segmentation_net,
}


def built(kind, head="linear", fickle=FickleSettings()):  # noqa: B008 - frozen
    torch.manual_seed(0)
    classifier = build_classifier(Architecture("squeezenet1_1", 2, "features.4", head, 8, fickle), None, NAMES, CANVAS)
    backbone, architecture = classifier.network.backbone, classifier.architecture
    if kind == "affinity_net":
        return TrainedAffinityNet(AffinityNet(backbone, "sum"), architecture, CANVAS, "sum", "cam")
    if kind == "segmentation_net":
        network = SegmentationNet(backbone, 2, "largefov", 4)
        return TrainedSegmentationNet(network, architecture, "largefov", 4, NAMES, CANVAS, "sec, cam")
    return classifier


def description(path):
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
    assert key == "dcsm_attr"
    return json.loads(text)


def assert_equal(loaded, saved):
    assert {**vars(loaded), "network": None} == {**vars(saved), "network": None}
    expected = saved.network.state_dict()
    assert list(loaded.network.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.network.state_dict().items())
    assert not loaded.network.training


@pytest.mark.parametrize("kind", LOADERS)
def test_each_kind_is_saved_and_loaded_and_refused_as_another(tmp_path, kind):
    saved, path = built(kind), tmp_path / "net.safetensors"
    save_network(saved, path)
    assert network_kind(path) == description(path)["kind"] == kind
    random_state = torch.get_rng_state()
    for other, load in LOADERS.items():
        if other == kind:
            assert_equal(load(path), saved)
            assert torch.equal(torch.get_rng_state(), random_state)
            images = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                assert torch.equal(load(path).network(images), saved.network.eval()(images))
        else:
            with pytest.raises(WeightsError, match=r"net\.safetensors: holds an? .* wrote; expected an? .* wrote\.$"):
                load(path)


OLDER_ARCHITECTURES = {
    "linear": ({}, FickleSettings()),
    "normalized": ({"head": "normalised"}, FickleSettings()),
    "fickle": ({"window": 3, "rate": 0.5, "centre_kept": False}, FickleSettings(3, 0.5, keep_center=False)),
}


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("classifier", "linear"),
        ("classifier", "normalized"),
        ("classifier", "fickle"),
        ("affinity_net", "normalized"),
        ("segmentation_net", "fickle"),
    ],
)
def test_files_of_earlier_versions_are_loaded(tmp_path, kind, head):
    older, fickle = OLDER_ARCHITECTURES[head]
    saved, path = built(kind, head, fickle), tmp_path / "net.safetensors"
    save_network(saved, path)
    config = description(path)["config"]
    config["architecture"].pop("fickle", None)
    config["architecture"].update(older)
    tensors = {name.replace("backbone.", "trunk."): tensor for name, tensor in load_file(path).items()}
    assert any(name.startswith("trunk.") for name in tensors)
    save_file(tensors, path, {f"dcsm_attr.{kind}": json.dumps(config)})
    assert network_kind(path) == kind
    assert_equal(LOADERS[kind](path), saved)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "scorer", "config": {}}, "holds a network of kind 'scorer'; known are classifier, affinity_net"),
        ({"kind": "classifier"}, "description of its network is damaged .KeyError"),
        ([], "description of its network is damaged .TypeError"),
        ({"kind": "classifier", "config": 3}, "description of its network is incomplete .TypeError"),
    ],
)
def test_unknown_and_damaged_descriptions(tmp_path, entry, message):
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"dcsm_attr": json.dumps(entry)})
    with pytest.raises(WeightsError, match=message):
        load_classifier(path)


def test_missing_and_truncated_files(tmp_path):
    path = tmp_path / "net.safetensors"
    for load in LOADERS.values():
        with pytest.raises(WeightsError, match="there is no such file"):
            load(path)
    save_network(built("classifier"), path)
    path.write_bytes(path.read_bytes()[:5000])
    for load in (*LOADERS.values(), network_kind):
        with pytest.raises(WeightsError, match="not a complete safetensors file"):
            load(path)


def test_names_that_are_no_files_have_no_kind(tmp_path):
    assert network_kind("DEFAULT") is None
    assert network_kind(tmp_path / "none.safetensors") is None
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    assert network_kind(tmp_path / "plain.safetensors") is None

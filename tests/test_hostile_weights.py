"""Malicious and damaged weight files: refused with the rule, the value found, and the remedy."""

import json
import os
import pickle
from contextlib import suppress

import pytest
import torch
import torchvision
from conftest import TinyVGG
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from dcsm_attr.models.checkpoint import Architecture, build_classifier, load_classifier, save_network
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.models.weights import (
    UnsafeFileError,
    WeightsError,
    load_model,
    load_weights,
    load_weights_only,
    read_weights,
)
from dcsm_attr.training.checkpoints import CheckpointError, load_checkpoint


class Evil:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class EvilScript(nn.Module):
    """Writes a file when it is loaded: TorchScript can save files and runs ``__setstate__``."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(weights=None, num_classes=3).state_dict()


def refused(path, name="squeezenet1_1"):
    with pytest.raises(WeightsError) as caught:
        load_model(name, path)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["pth", "pt"])
@pytest.mark.parametrize("writing", ["zip", "legacy", "pickle", "inside"])
def test_pickles_are_refused_and_never_executed(tmp_path, state, ending, writing):
    victim, path = tmp_path / "victim", tmp_path / f"evil.{ending}"
    evil = {**state, "x": Evil(victim)} if writing == "inside" else {"state_dict": Evil(victim)}
    if writing == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=writing != "legacy")
    message = refused(path)
    assert message.startswith(
        f"{path}: it holds Python objects besides tensors, or is damaged; nothing in it was executed"
    )
    assert "torch.save(model.state_dict(), path), or use safetensors" in message
    assert not victim.exists()
    # Without the check, the code would have run.
    if writing != "pickle":
        torch.load(path, weights_only=False)
        assert victim.is_dir()


def test_programs_are_refused_and_never_executed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    torch.jit.script(EvilScript(str(victim))).save(path)
    assert "it is a TorchScript archive, which holds a program; nothing in it was executed" in refused(path)
    with pytest.raises(UnsafeFileError, match="TorchScript"):
        load_weights_only(path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_checkpoint(path, nn.Identity(), None, None)
    assert not victim.exists()
    torch.jit.load(path)
    assert victim.is_file()


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pt"])
def test_folders_and_empty_files(tmp_path, ending):
    folder, empty = tmp_path / f"folder.{ending}", tmp_path / f"empty.{ending}"
    folder.mkdir()
    empty.write_bytes(b"")
    assert refused(folder) == f"{folder}: weights are read from a file, but this is a folder. Name the file in it."
    assert refused(empty) == f"{empty}: the file is empty. Copy or download it again."
    assert "this is a folder" in refused(tmp_path)


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_truncated_files(tmp_path, state, ending, share):
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    # A truncated zip archive looks like a pickle of another kind.
    assert "not a complete" in refused(path) or "or is damaged" in refused(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_read_as_tensors(tmp_path, data):
    path = tmp_path / f"w.{data.draw(st.sampled_from(['pth', 'safetensors', 'legacy.pt']))}"
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pth")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(WeightsError):
        assert all(isinstance(value, torch.Tensor) for value in read_weights(path).values())


def test_another_architecture(tmp_path, state):
    save_file(state, tmp_path / "w.safetensors")
    assert "w.safetensors does not fit ResNet: conv1.weight is missing; bn1.weight is missing" in refused(
        tmp_path / "w.safetensors", "resnet18"
    )
    (changed := dict(state)).pop("features.0.bias")
    changed["classifier.1.weight"] = torch.tensor(3.0)
    save_file({**changed, "more": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert refused(tmp_path / "w.safetensors").endswith(
        "does not fit SqueezeNet: features.0.bias is missing; more is not in the model; classifier.1.weight is (), the "
        "model has (1000, 512, 1, 1); classifier.1.bias is (3,), the model has (1000,). Use the model that the "
        "weights were saved from."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_parameters_of_another_kind_of_number(tmp_path, state, dtype):
    torch.save({**state, "features.0.bias": state["features.0.bias"].to(dtype)}, tmp_path / "w.pth")
    assert refused(tmp_path / "w.pth").endswith(
        f"does not fit SqueezeNet: features.0.bias is {dtype}, the model has torch.float32. Use the model that the "
        "weights were saved from."
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_floating_point_of_any_width(tmp_path, state, dtype):
    rounded = {name: value.to(dtype) for name, value in state.items()}
    torch.save(rounded, tmp_path / "w.pth")
    model = load_model("squeezenet1_1", tmp_path / "w.pth")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, rounded[name].float()) for name, value in model.state_dict().items())


def test_counters_of_batch_norms_may_have_any_dtype(tmp_path):
    norm = nn.BatchNorm2d(2)
    load_weights(norm, {**norm.state_dict(), "num_batches_tracked": torch.tensor(7.0)}, "half.pth")
    assert (norm.num_batches_tracked.dtype, norm.num_batches_tracked.item()) == (torch.int64, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_values_that_are_not_finite(tmp_path, state, ending, value):
    state["features.3.squeeze.weight"][1, 2] = value
    state["classifier.1.bias"][0] = value
    path = tmp_path / f"w.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    # A safetensors file orders names differently.
    names = "; ".join(name for name in read_weights(path) if name in ("features.3.squeeze.weight", "classifier.1.bias"))
    assert refused(path) == (
        f"{path}: weights must be finite, but {names} hold NaN or infinity, from a training that diverged or a "
        "damaged file. Use an earlier checkpoint."
    )


def test_a_refused_file_changes_nothing(vgg):
    before = {name: value.clone() for name, value in vgg.state_dict().items()}
    other = {**TinyVGG().state_dict(), "classifier.2.bias": torch.full((4,), float("nan"))}
    with pytest.raises(WeightsError, match="finite"):
        load_weights(vgg, other, "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in vgg.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.quantize_per_tensor(tensor, 1.0, 0, torch.qint8),
        # A hundred bytes that declare ten billion classes.
        lambda tensor: torch.zeros(1, 512, 1, 1).expand(10**10, 512, 1, 1),
    ],
    ids=["sparse", "meta", "quantized", "expanded"],
)
def test_tensors_without_all_their_data(tmp_path, state, change):
    torch.save({**state, "classifier.1.weight": change(state["classifier.1.weight"])}, tmp_path / "w.pth")
    assert "w.pth: weights must be dense tensors with all of their values in the file; classifier.1.weight" in refused(
        tmp_path / "w.pth"
    )


def test_the_file_of_the_scenes(tmp_path):
    tensors = load_scene_net().state_dict()
    save_file({**tensors, "classifier.4.weight": torch.tensor(1.0)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors does not fit SceneNet: classifier\.4\.weight is \(\)"):
        load_scene_net(tmp_path / "w.safetensors")


def test_a_classifier_with_a_false_description(tmp_path):
    path = tmp_path / "w.safetensors"
    save_network(build_classifier(Architecture("squeezenet1_1", 2), None, ("ant", "bee")), path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        (key, text), *_ = file.metadata().items()
    description = json.loads(text)
    description["config"]["architecture"]["num_classes"] = 10**12
    save_file(load_file(path), path, {key: json.dumps(description)})
    with pytest.raises(WeightsError, match="1000000000000 classes need as many names, got 2"):
        load_classifier(path)
    save_file(load_file(path), path, {key: "[]"})
    with pytest.raises(WeightsError, match="is damaged .TypeError"):
        load_classifier(path)

"""Models from names and files, and files that are refused without executing anything in them."""

import pickle
import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from dcsm_attr.models import weights as loading
from dcsm_attr.models.weights import WeightsError, load_class_names, load_model, load_weights, read_weights


@pytest.fixture(scope="module")
def squeezenet():
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(weights=None, num_classes=7)


@pytest.mark.parametrize("ending", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize("wrapping", [None, "state_dict", "model"])
def test_a_file_determines_the_number_of_classes(squeezenet, tmp_path, ending, wrapping):
    path = tmp_path / f"weights.{ending}"
    state = squeezenet.state_dict()
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if wrapping is None else {wrapping: state, "epoch": 3}, path)
    model = load_model("squeezenet1_1", path)
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_half_precision_files_are_converted_to_float32(squeezenet, tmp_path):
    save_file({name: value.half() for name, value in squeezenet.state_dict().items()}, tmp_path / "half.safetensors")
    model = load_model("squeezenet1_1", tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mobilenet_v3_small", "densenet121", "googlenet"])
def test_the_last_layer_of_every_family_is_found(name, monkeypatch):
    options = {"init_weights": False} if name == "googlenet" else {}
    # Only the shapes, instead of files of up to half a gigabyte.
    monkeypatch.setattr(loading, "read_weights", lambda path: tensors)
    monkeypatch.setattr(loading, "load_weights", lambda model, tensors, source: None)
    with torch.device("meta"):
        tensors = torchvision.models.get_model(name, weights=None, num_classes=6, **options).state_dict()
        loaded = load_model(name, "w.safetensors", "meta")
    assert [m for m in loaded.modules() if isinstance(m, nn.Linear)][-1].out_features == 6
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in tensors.items()
    }


def test_published_weights_load_and_have_class_names(shared):
    model = load_model("squeezenet1_1", shared / "models" / "squeezenet1_1-imagenet1k.safetensors")
    assert model.classifier[1].out_channels == len(load_class_names("imagenet")) == 1000


class _Dangerous:
    executed = False

    def __reduce__(self):
        return (setattr, (_Dangerous, "executed", True))


def test_pickled_objects_are_never_executed(tmp_path):
    torch.save({"weight": _Dangerous()}, tmp_path / "evil.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Dangerous()))
    for name in ("evil.pth", "plain.pt"):
        with pytest.raises(WeightsError, match=f"{name}: it holds Python objects besides tensors, or is damaged"):
            read_weights(tmp_path / name)
    assert not _Dangerous.executed


def test_files_that_cannot_be_read(squeezenet, tmp_path):
    save_file(squeezenet.state_dict(), tmp_path / "whole.safetensors")
    torch.save(squeezenet.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    (tmp_path / "notes.txt").write_text("")
    cases = {
        "cut.safetensors": "not a complete safetensors file",
        "cut.pth": "not a complete PyTorch file",
        "empty.pth": "the file is empty",
        "list.pth": r"no state dict \(names and tensors\), but list",
        "epoch.pth": "a dict with epoch",
        "missing.pth": "there is no such file",
        "notes.txt": "from .safetensors, .pth, .pt files, not from '.txt'",
    }
    for name, message in cases.items():
        with pytest.raises(WeightsError, match=f"{name}: .*{message}"):
            read_weights(tmp_path / name)


def test_the_message_names_the_first_mismatches(squeezenet, tmp_path):
    save_file(squeezenet.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"does not fit ResNet: conv1.weight is missing; .*and \d+ more"):
        load_model("resnet18", tmp_path / "w.safetensors")
    other = dict(squeezenet.state_dict())
    other["features.0.weight"] = torch.zeros(1, 2)
    other["extra"] = torch.zeros(1)
    del other["features.3.squeeze.bias"]
    before = {name: value.clone() for name, value in squeezenet.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(squeezenet, other, "my.pth")
    assert str(caught.value) == (
        "my.pth does not fit SqueezeNet: features.3.squeeze.bias is missing; extra is not in the model; "
        "features.0.weight is (1, 2), the model has (64, 3, 3, 3). Use the model that the weights were saved from."
    )
    assert all(torch.equal(value, before[name]) for name, value in squeezenet.state_dict().items())


def test_batch_norm_counters_may_be_missing():
    tensors = {name: torch.rand(2) for name in ("weight", "bias", "running_mean", "running_var")}
    norm = nn.BatchNorm2d(2)
    load_weights(norm, tensors, "old.pth")
    assert all(torch.equal(norm.state_dict()[name], value) for name, value in tensors.items())
    assert norm.num_batches_tracked == 0


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no classification model 'resnet19'\. Similar names: .*resnet18"):
        load_model("resnet19", "DEFAULT")
    with pytest.raises(WeightsError, match=r"'BEST' is neither a file nor .*DEFAULT, IMAGENET1K_V1"):
        load_model("resnet18", "BEST")


def test_a_failed_download_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(WeightsError, match="could not be downloaded .*pass a local file"):
        load_model("squeezenet1_1", "DEFAULT")


def test_class_names(tmp_path):
    assert load_class_names("voc")[11] == "dog"
    assert load_class_names("imagenet")[281] == "tabby"
    path = tmp_path / "names.txt"
    path.write_text("Hund\n\nKätzchen\n", encoding="utf-8")
    assert load_class_names(path) == ("Hund", "Kätzchen")
    path.write_text("Hund\n", encoding="utf-8-sig")
    assert load_class_names(path) == ("Hund",), "some editors write a byte order mark"
    path.write_text("Hund\nKätzchen\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"names.txt: not a text in UTF-8 .*Save it in that encoding"):
        load_class_names(path)
    path.write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"names.txt: the class 'a' is named twice, as number 0 and 2"):
        load_class_names(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="names no class"):
        load_class_names(path)
    with pytest.raises(ValueError, match="'voc', 'imagenet' or a text file"):
        load_class_names("coco")


def test_the_number_of_classes_of_a_builder_that_computes_with_tensors(tmp_path):
    expected = torchvision.models.regnet_y_400mf(weights=None, num_classes=7)
    save_file(expected.state_dict(), tmp_path / "regnet.safetensors")
    model = load_model("regnet_y_400mf", tmp_path / "regnet.safetensors")
    assert model.fc.out_features == 7
    assert torch.equal(model.fc.weight, expected.fc.weight)

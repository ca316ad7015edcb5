"""Tests that bad input raises errors that state the rule and the value received."""

import pytest
import torch
import torchvision
from conftest import PooledCNN, TinyVGG
from torch import nn

from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, Simonyan


@pytest.fixture(params=[DistinctClassSaliency, Simonyan, ClassActivationMaps], ids=["dcsm", "simonyan", "cam"])
def method(request, vgg):
    return request.param(vgg)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (torch.randn(3, 20, 20), ValueError, r"\(N, C, H, W\), got \(3, 20, 20\).*x\[None\]"),
        (torch.randn(20, 20), ValueError, r"\(N, C, H, W\), got \(20, 20\)"),
        (torch.randn(1, 1, 3, 20, 20), ValueError, r"\(N, C, H, W\)"),
        (torch.randn(0, 3, 20, 20), ValueError, "empty batch"),
        (torch.randn(2, 3, 0, 20), ValueError, "empty batch"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.uint8), TypeError, "to_dtype.*scale=True"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.int64), TypeError, r"int64.*x\.float\(\)"),
        (torch.full((1, 3, 20, 20), float("nan")), ValueError, "finite"),
        (torch.full((1, 3, 20, 20), float("inf")), ValueError, "finite"),
        ([torch.randn(1, 3, 20, 20)], TypeError, "got list"),
        ("photo.jpg", TypeError, "got str"),
        ((), ValueError, "empty tuple"),
        ((torch.randn(1, 3, 20, 20), torch.randn(1, 3, 10, 20)), ValueError, "same N, H and W"),
        (torch.randn(1, 1, 20, 20), ValueError, "1 channels, but the model's first convolution takes 3"),
        (torch.randn(1, 4, 20, 20), ValueError, "4 channels"),
    ],
)
def test_inputs(method, inputs, error, message):
    with pytest.raises(error, match=message):
        method.attribute(inputs, 1)
    with pytest.raises(error, match=message):
        method.class_maps(inputs)


@pytest.mark.parametrize("method", [DistinctClassSaliency, Simonyan])
def test_inference_mode(method, vgg, images):
    method = method(vgg)
    with torch.inference_mode():
        made_inside = torch.randn(1, 3, 20, 20)
        with pytest.raises(RuntimeError, match="no_grad is fine"):
            method.attribute(images, 1)
    with pytest.raises(RuntimeError, match=r"inputs\.clone\(\) made outside"):
        method.attribute(made_inside, 1)
    assert method.attribute(made_inside.clone(), 1).max() > 0.1


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (4, IndexError, r"out of range: the model has 4 classes \(0 to 3\)"),
        (-5, IndexError, "out of range"),
        ([0, 4], IndexError, "out of range"),
        (torch.tensor([0, 9]), IndexError, "out of range"),
        ((4,), IndexError, "out of range"),
        ([1, 2, 3], AssertionError, "length"),
        (torch.tensor([[1], [2]]), AssertionError, "not valid"),
        (1.5, AssertionError, "not valid"),
        ("dog", AssertionError, "not valid"),
        (True, AssertionError, "does not select one score"),
        ((1, 2), AssertionError, "does not select one score"),
        ((0, 9, 0), IndexError, "5 x 6 positions"),
        ((9999,) * 20, AssertionError, "Cannot choose target column|does not select"),
    ],
)
def test_targets(method, images, target, error, message):
    with pytest.raises(error, match=message):
        method.attribute(images, target)


@pytest.mark.parametrize(
    "target", [0, -1, (3,), [1, 2], torch.tensor([1, 2]), torch.tensor(2), torch.tensor([2]), [(1,), (2,)]]
)
def test_all_forms_of_captum_are_accepted(cnn, images, target):
    dcs = DistinctClassSaliency(cnn)
    plain = {0: [0, 0], -1: [4, 4], (3,): [3, 3]}.get(target if isinstance(target, (int, tuple)) else None)
    if plain is None:
        plain = [2, 2] if isinstance(target, torch.Tensor) and target.numel() == 1 else [1, 2]
    assert torch.equal(dcs.attribute(images, target), dcs.attribute(images, plain))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("candidates", [0, 2], "candidates must include the target: image 0 has target 1"),
        ("candidates", [[1, 2], [0, 2]], "image 1 has target 1 and candidates"),
        ("candidates", [1, 4], "between 0 and 3"),
        ("candidates", [1, -2], "between 0 and 3"),
        ("candidates", [1, 1], "none twice"),
        ("candidates", [[1, 2]], "a row for each of the 2 images, got 1"),
        ("candidates", [[1, 2], [-1, -1]], "at least one class for each image"),
        ("candidates", [], "integers of shape"),
        ("candidates", [1.5, 2.0], "integers of shape"),
        ("candidates", "dog", "integers of shape"),
        ("candidates", [True, False], "integers of shape"),
    ],
)
def test_candidates(vgg, images, name, value, message):
    with pytest.raises(ValueError, match=message):
        DistinctClassSaliency(vgg).attribute(images, 1, candidates=value)


def test_known_classes(vgg, images):
    dcs = DistinctClassSaliency(vgg)
    with pytest.raises(ValueError, match="classes must lie between 0 and 3"):
        dcs.class_maps(images, classes=[7])
    with pytest.raises(ValueError, match=r"image 1 has classes \[0, 2\] and candidates \[0, 1\]"):
        dcs.class_maps(images, classes=[[0], [0, 2]], candidates=[0, 1])


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("features.99", ValueError, "not in TinyVGG.*named_modules"),
        ("eatures.5", ValueError, "Similar names: features.5"),
        (nn.Conv2d(3, 3, 1), ValueError, "not a module of TinyVGG"),
        (["features.5", "features.5"], ValueError, "named twice"),
        ([], ValueError, "layer is empty"),
        ([5], TypeError, "got int"),
    ],
)
def test_layers(vgg, layer, error, message):
    with pytest.raises(error, match=message):
        DistinctClassSaliency(vgg, layer)


def test_a_layer_that_is_not_reached(images):
    class Model(TinyVGG):
        def __init__(self):
            super().__init__()
            self.spare = nn.Conv2d(3, 3, 1)

    with pytest.raises(RuntimeError, match="'spare' was not reached"):
        DistinctClassSaliency(Model(), "spare").attribute(images, 1)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("variant", "torch", "'paper', 'matconvnet', 'caffe'"),
        ("activation", "relu", "'auto', 'sigmoid' or 'softmax'"),
        ("threshold", 1.5, "between 0 and 1"),
        ("alpha", 0.0, "positive"),
        ("alpha", float("nan"), "positive"),
        ("scales", (), "ratios to the input size"),
        ("scales", (1.0, -0.5), "ratios to the input size"),
        ("min_candidates", 0, "subtract=False"),
        ("internal_batch_size", 0, "at least 1"),
    ],
)
def test_settings(vgg, option, value, message):
    with pytest.raises(ValueError, match=message):
        DistinctClassSaliency(vgg, **{option: value})


class _Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.net, self.change = PooledCNN(), change

    def forward(self, x):
        return self.change(self.net(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda y: {"scores": y}, TypeError, r"under 'out' or 'logits'; it returned dict with 'scores'.*\['name'\]"),
        (lambda y: {"out": [y]}, TypeError, "returned dict with 'out'"),
        (lambda y: (y, y), TypeError, r"returned tuple of 2.*picks the scores.*self\.model\(x\)\[0\]"),
        (lambda y: y.sum(), ValueError, r"\(N, C\) or \(N, C, h, w\) with N = 2; it returned \(\)"),
        (lambda y: y[0], ValueError, r"returned \(5,\)"),
        (lambda y: y[:1], ValueError, r"returned \(1, 5\)"),
        (lambda y: y[:, :, None], ValueError, r"returned \(2, 5, 1\)"),
        (lambda y: y[:, :0], ValueError, r"returned \(2, 0\)"),
        (lambda y: y * float("nan"), ValueError, "scores contain NaN"),
    ],
)
def test_outputs(images, change, error, message):
    with pytest.raises(error, match=message):
        DistinctClassSaliency(_Returns(change), "net.conv2").attribute(images, 1)


def test_outputs_raise_alike_when_layers_are_chosen():
    with pytest.raises(ValueError, match=r"\(N, C\) or \(N, C, h, w\) with N = 1; it returned \(1, 5, 1\)"):
        _ = DistinctClassSaliency(_Returns(lambda y: y[:, :, None])).layers


def test_models_that_cannot_be_explained(images):
    with pytest.raises(TypeError, match=r"model\.module"):
        DistinctClassSaliency(nn.DataParallel(TinyVGG()))
    with pytest.raises(TypeError, match="nn.Module it was made from"):
        DistinctClassSaliency(torch.jit.trace(TinyVGG().eval(), images))
    with pytest.raises(TypeError, match="got int"):
        DistinctClassSaliency(5, "layer")
    with pytest.raises(ValueError, match="layers cannot be chosen for a function"):
        DistinctClassSaliency(lambda x: x)
    with pytest.raises(ValueError, match="'conv1' is a name, but forward_func is a function"):
        DistinctClassSaliency(lambda x: x, "conv1")
    with pytest.raises(ValueError, match="no convolution"):
        DistinctClassSaliency(nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 24, 5), nn.ReLU())).attribute(images, 1)


def test_a_model_without_rectifiers(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3))
    with pytest.raises(ValueError, match="no rectifier.*guided=False"):
        DistinctClassSaliency(model, "2").attribute(images, 1, attribute_to_layer_input=True)
    result = DistinctClassSaliency(model, "2", guided=False).attribute(images, 1, attribute_to_layer_input=True)
    assert result.max() > 0


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_transformers(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    with pytest.raises(ValueError, match="is a transformer.*attention"):
        DistinctClassSaliency(model)


class _OneSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4 * 16 * 20, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).flatten(1))


def test_a_model_of_one_size(images):
    model = _OneSize().eval()
    with pytest.raises(RuntimeError, match=r"at another scale, \(2, 3, 16, 19\) .*scales=\(1.0,\)"):
        DistinctClassSaliency(model).attribute(images, 1)
    result = DistinctClassSaliency(model, scales=(1.0,)).attribute(images, 1)
    assert result.max() > 0.5
    with pytest.raises(RuntimeError, match="can be read after the first call"):
        _ = DistinctClassSaliency(model).layers
    one_size = DistinctClassSaliency(model, scales=(1.0,))
    one_size.attribute(images, 1)
    assert one_size.layers == ("conv2",)


def test_out_of_memory_errors_are_raised_unchanged(images):
    class Large(TinyVGG):
        def forward(self, x):
            if x.shape[2:] != images.shape[2:]:
                raise torch.OutOfMemoryError("tried to allocate 2 GiB")
            return super().forward(x)

    with pytest.raises(torch.OutOfMemoryError, match="^tried to allocate 2 GiB$"):
        DistinctClassSaliency(Large(), "features.5").attribute(images, 1)


def test_errors_of_the_model_are_raised_unchanged(images):
    class Broken(TinyVGG):
        def forward(self, x):
            raise RuntimeError("something of its own")

    with pytest.raises(RuntimeError, match="something of its own"):
        DistinctClassSaliency(Broken(), "features.5").attribute(images, 1)

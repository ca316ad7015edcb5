"""The methods of other libraries: their values by hand, against each other, and what they leave of the network."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import LayerGradCam
from conftest import TinyVGG
from torch import nn
from untouched import changes, no_graph_left, snapshot

from benchmarks.peers import REFERENCE_METHODS, reference_maps
from benchmarks.peers.methods import most_similar
from dcsm_attr.attribution.maps import divide_by_maximum, upsample
from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork, fully_convolutional

_REASON = "the other libraries are an extra: pip install 'dcsm_attr[peers]'"
pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam", reason=_REASON)
torchcam = pytest.importorskip("torchcam.methods", reason=_REASON)

# The features of the network below for its image, and the weights and biases of its four classes.
FIRST, SECOND = np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])
WEIGHTS = np.array([[1.0, -1.0], [-1.0, 2.0], [1.0, 3.0], [-1.0, -1.0]])
BIASES = np.array([0.5, -1.0, 0.0, 4.0])
IMAGE = torch.tensor(np.stack([FIRST, SECOND, np.zeros((2, 2))]), dtype=torch.float32)[None]
NOWHERE = [[0, 0], [0, 0]]


class _Backbone(nn.Module):
    """Layers by the names of the model that they are from, giving a map as torchvision's feature extractors do."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images):
        return {"map": self.features(images)}


def _convolution(weights, biases=None):
    layer = nn.Conv2d(len(weights[0]), len(weights), 1, bias=biases is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.array(weights))[..., None, None])
        if biases is not None:
            layer.bias.copy_(torch.tensor(biases))
    return layer


def _by_hand(*head):
    """Features are the image's first two colors; each class is weighted as above."""
    backbone = _Backbone(nn.Sequential(_convolution([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), nn.ReLU(inplace=True)))
    return ScoreMapNetwork(backbone, nn.Sequential(*(head or (_convolution(WEIGHTS, BIASES),)))).eval()


def _tiny(model=TinyVGG, **arguments):
    model = model(**arguments)
    return ScoreMapNetwork(_Backbone(model.features), model.classifier).eval()


@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("name", ["cam", "grad-cam"])
def test_cam_and_grad_cam_by_hand(name, pooling):
    """Behind one linear layer, CAM needs no gradient, and the mean of Grad-CAM's is the weight over the positions."""
    maps = reference_maps(name, _by_hand(), pooling, IMAGE, [0, 1, 2, 3])
    # A1 - A2, 2 A2 - A1, A1 + 3 A2, -A1 - A2
    expected = [[[0, 2 / 3], [0, 1]], [[1, 0], [2 / 3, 0]], [[1, 2 / 7], [3 / 7, 3 / 7]], NOWHERE]
    torch.testing.assert_close(maps, torch.tensor(expected))


def test_layer_cam_by_hand():
    maps = reference_maps("layer-cam", _by_hand(), "average", IMAGE, [0, 1, 2, 3])
    # The positive weights alone: A1, A2, A1 + 3 A2, nothing.
    expected = [[[1 / 3, 2 / 3], [0, 1]], [[1, 0], [0.5, 0]], [[1, 2 / 7], [3 / 7, 3 / 7]], NOWHERE]
    torch.testing.assert_close(maps, torch.tensor(expected))
    # The gradient of a maximum is at one position.
    maps = reference_maps("layer-cam", _by_hand(), "max", IMAGE, [2, 0])
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0], [0, 0]], [[0, 0], [0, 1]]]))


def test_grad_cam_plus_plus_by_hand():
    maps = reference_maps("grad-cam++", _by_hand(), "max", IMAGE, [0, 1, 2, 3])
    # Class 2, whose maximum is at the top left: alpha = 1 / (2 + 6 * 1) and 9 / (18 + 3 * 27), so that the map is
    # A1 / 8 + 3 A2 / 11. Of the others one feature counts: A1, A2, none.
    both = [[1, 22 / 59], [24 / 59, 33 / 59]]
    expected = [[[1 / 3, 2 / 3], [0, 1]], [[1, 0], [0.5, 0]], both, NOWHERE]
    torch.testing.assert_close(maps, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_guided_grad_cam_by_hand():
    maps = reference_maps("guided-grad-cam", _by_hand(), "average", IMAGE, [0, 2, 3])
    # Class 2: the guided gradient is 1/4 where A1 is positive and 3/4 where A2 is; the larger, times A1 + 3 A2.
    expected = [[[0, 2 / 3], [0, 1]], [[1, 2 / 21], [3 / 7, 1 / 7]], NOWHERE]
    torch.testing.assert_close(maps, torch.tensor(expected))


@pytest.mark.parametrize("c", [0, 1, 2, 3])
def test_finer_cam_by_hand(c):
    # Biases that bring the scores near to each other, so that all of the others count.
    features, biases = np.stack([FIRST, SECOND]), [3.0, 3.5, 0.0, 5.0]
    scores = WEIGHTS @ features.mean((1, 2)) + biases
    others = [d for d in range(4) if d != c]
    q = np.exp(scores[others]) / np.exp(scores[others]).sum()
    # The derivatives of S_c - sum_d q_d S_d, with q the softmax over the others.
    slopes = -q * (1 + scores[others] - q @ scores[others])
    weights = WEIGHTS[c] + slopes @ WEIGHTS[others]
    expected = np.maximum(np.tensordot(weights, features, 1), 0)
    maps = reference_maps("finer-cam", _by_hand(_convolution(WEIGHTS, biases)), "average", IMAGE, [c])
    assert (expected.max() > 0) == (c != 3)
    np.testing.assert_allclose(maps[0], expected / (expected.max() or 1), atol=1e-5)


def test_finer_cam_compares_with_the_nearest_scores():
    scores = torch.tensor([0.0, 5.0, 1.0, 0.0, -1.0, 2.5, 0.0])
    assert most_similar(scores, 2) == [0, 3, 6]
    assert most_similar(scores, 3) == [0, 6, 2]
    assert most_similar(scores, 1) == [5, 2, 0]
    assert most_similar(scores[:2], 0) == [1]
    with pytest.raises(ValueError, match="must have at least two classes, it has 1"):
        most_similar(scores[:1], 0)


def test_cam_behind_hidden_layers_is_the_score_map_without_its_bias():
    network, image = _tiny(), torch.randn(1, 3, 16, 20)
    network.head[-1].bias.data.fill_(-0.5)
    with torch.no_grad():
        scores = network(image)[:, [1, 3]] + 0.5
    expected = divide_by_maximum(upsample(scores.clamp(min=0), (16, 20)))[0]
    torch.testing.assert_close(reference_maps("cam", network, "max", image, [1, 3]), expected)


def test_cam_of_rectified_scores_is_the_score_map():
    network = _by_hand(_convolution(WEIGHTS, BIASES), nn.ReLU(inplace=True))
    maps = reference_maps("cam", network, "average", IMAGE, [0, 1])
    torch.testing.assert_close(maps, torch.tensor([[[0, 5 / 7], [0, 1]], [[1, 0], [0.5, 0]]]))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_grad_cam_behind_average_pooling_and_a_linear_layer_is_cam(name):
    network = _torchvision(name, head="linear")
    image = torch.randn(1, 3, 96, 64)
    maps = reference_maps("cam", network, "average", image, range(6))
    torch.testing.assert_close(
        reference_maps("grad-cam", network, "average", image, range(6)), maps, rtol=1e-3, atol=1e-4
    )
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert maps.amax() == 1


def _torchvision(name, classes=6, **arguments):
    model = getattr(torchvision.models, name)(weights=None)
    network = fully_convolutional(model, classes, **arguments).eval()
    last = [layer for layer in network.head.modules() if isinstance(layer, nn.Conv2d)][-1]
    nn.init.normal_(last.weight, std=0.1)
    return network


@pytest.mark.parametrize("pooling", ["max", "average", "logsumexp"])
@pytest.mark.parametrize("name", REFERENCE_METHODS)
@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("squeezenet1_1", {"head": "own"}),
        ("squeezenet1_1", {"head": "extended"}),
        ("squeezenet1_1", {"classes": None}),
        ("resnet18", {"head": "rectified"}),
    ],
)
def test_every_peer_on_every_kind_of_head(name, pooling, model, arguments):
    network = _torchvision(model, **arguments)
    image = torch.randn(1, 3, 80, 112)
    maps = reference_maps(name, network, pooling, image, [5, 0, 3])
    assert (maps.shape, maps.dtype, maps.device.type) == ((3, 80, 112), torch.float32, "cpu")
    assert maps.min() >= 0
    assert set(maps.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert maps.amax() == 1
    # A class's map does not depend on the others that are asked for.
    torch.testing.assert_close(reference_maps(name, network, pooling, image, [3])[0], maps[2])


# The libraries against each other: what the second gives with its own settings, on the same network.


@pytest.fixture
def parity():
    network, image = _tiny(classes=12, in_place=False), torch.randn(1, 3, 32, 40)

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return pool_score_maps(self.network(images), "max")

    return network, Scores().eval(), image


@pytest.mark.parametrize(("name", "other"), [("grad-cam", "GradCAM"), ("layer-cam", "LayerCAM")])
def test_torchcam_agrees_with_pytorch_grad_cam(parity, name, other):
    network, scores, image = parity
    ours = reference_maps(name, network, "max", image, range(12))
    # pytorch-grad-cam subtracts the minimum, which changes nothing where that is zero.
    comparable = [c for c in range(12) if (ours[c].min(), ours[c].max()) == (0, 1)]
    assert len(comparable) >= 3
    with getattr(pytorch_grad_cam, other)(scores, [network.backbone.features]) as extractor:
        for c in comparable:
            target = pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(c)
            np.testing.assert_allclose(ours[c], extractor(image, [target])[0], atol=1e-4)


def test_torchcam_agrees_with_captum(parity):
    network, scores, image = parity
    method = LayerGradCam(scores, network.backbone.features)
    raw = torch.cat([method.attribute(image, c, relu_attributions=True) for c in range(12)], dim=1).detach()
    expected = divide_by_maximum(upsample(raw, (32, 40)))[0]
    torch.testing.assert_close(reference_maps("grad-cam", network, "max", image, range(12)), expected)


@pytest.mark.skipif(not hasattr(torchcam, "FinerCAM"), reason="torchcam has FinerCAM from 0.5")
def test_pytorch_grad_cam_agrees_with_torchcam_on_two_classes():
    """With one class to compare with, there is nothing to be weighted, which the libraries do differently."""
    network, image = _tiny(classes=2), torch.randn(1, 3, 32, 40)
    ours = reference_maps("finer-cam", network, "average", image, [0, 1])
    assert ours.amax() == 1
    with torchcam.FinerCAM(network, network.backbone.features, gamma=1.0, num_references=1) as extractor:
        for c in range(2):
            scores = pool_score_maps(network(image), "average")
            raw = extractor(c, scores, normalized=False)[0]
            expected = divide_by_maximum(upsample(raw[None], (32, 40)))[0, 0]
            torch.testing.assert_close(ours[c], expected, rtol=1e-3, atol=1e-4)


HOOKING = [name for name in REFERENCE_METHODS if name != "cam"]


@pytest.mark.parametrize("name", HOOKING)
def test_a_named_layer_is_its_output_also_before_a_rectifier_in_place(name):
    """A library that hooked the convolution itself would see what the rectifier made of its output."""
    separate, overwriting, image = _tiny(in_place=False), _tiny(in_place=True), torch.randn(1, 3, 16, 20)
    overwriting.load_state_dict(separate.state_dict())
    expected = reference_maps(name, separate, "max", image, [0, 1], "backbone.features.5")
    torch.testing.assert_close(reference_maps(name, overwriting, "max", image, [0, 1], "backbone.features.5"), expected)
    by_module = reference_maps(name, overwriting, "max", image, [0, 1], overwriting.backbone.features[5])
    torch.testing.assert_close(by_module, expected)
    assert not torch.equal(expected, reference_maps(name, separate, "max", image, [0, 1], "backbone.features.2"))


def test_grad_cam_of_a_named_layer_against_autograd(images):
    network = _tiny().double()
    image = images[:1].double()
    features = network.backbone.features[:6](image).detach().requires_grad_()
    score = network.head(network.backbone.features[6:](features.clone()))[0, 2].mean()
    (gradient,) = torch.autograd.grad(score, features)
    raw = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).clamp(min=0)
    resized = F.interpolate(raw, image.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    maps = reference_maps("grad-cam", network, "average", image, [2], "backbone.features.5")
    torch.testing.assert_close(maps[0], (resized / resized.max()).float())


# The network is a guest.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", REFERENCE_METHODS)
def test_nothing_is_left_behind(name, training, images):
    network = _tiny().train(training)
    for p in list(network.parameters())[:2]:
        p.grad = torch.ones_like(p)
    network.head[0].eval()
    list(network.parameters())[3].requires_grad_(False)
    calls = []
    network.head.register_forward_hook(lambda *_: calls.append(1))
    before, image = snapshot(network), images[:1].clone()
    gradients = [p.grad.clone() for p in list(network.parameters())[:2]]
    reference_maps(name, network, "max", image, [0, 1])
    assert changes(before, snapshot(network)) == []
    for p, gradient in zip(network.parameters(), gradients, strict=False):
        assert torch.equal(p.grad, gradient)
    assert calls  # the user's own hook runs
    assert torch.equal(image, images[:1])
    assert (image.requires_grad, image.grad) == (False, None)


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("a fault in the backward")


class _BackwardFault(nn.Module):
    def forward(self, x):
        return _FailsBackward.apply(x)


class _ForwardFault(nn.Module):
    def forward(self, x):
        # An IndexError, which pytorch-grad-cam's own context would swallow.
        raise IndexError("a fault of the model")


@pytest.mark.parametrize("name", REFERENCE_METHODS)
def test_nothing_is_left_behind_after_a_fault_of_the_network(name, images):
    network = _tiny().train()
    network.head.append(_ForwardFault())
    before = snapshot(network)
    with pytest.raises(IndexError, match="a fault of the model"):
        reference_maps(name, network, "max", images[:1], [0, 1])
    assert changes(before, snapshot(network)) == []


@pytest.mark.parametrize("name", HOOKING)
def test_nothing_is_left_behind_after_a_fault_in_the_backward(name, images):
    network = _tiny().train()
    network.head.append(_BackwardFault())
    before = snapshot(network)
    with pytest.raises(KeyError, match="a fault in the backward"):
        reference_maps(name, network, "max", images[:1], [0, 1])
    assert changes(before, snapshot(network)) == []


@pytest.mark.parametrize("name", REFERENCE_METHODS)
def test_maps_are_the_same_in_training_mode_frozen_and_under_no_grad(name):
    network, image = _tiny(), torch.randn(1, 3, 16, 20)
    network.head.insert(0, nn.Dropout())
    network.eval()
    expected = reference_maps(name, network, "max", image, [0, 2])
    assert torch.equal(reference_maps(name, network.train(), "max", image, [0, 2]), expected)
    with torch.no_grad():
        assert torch.equal(reference_maps(name, network, "max", image, [0, 2]), expected)
    network.requires_grad_(False)
    assert torch.equal(reference_maps(name, network, "max", image, [0, 2]), expected)


@pytest.mark.parametrize("name", REFERENCE_METHODS)
def test_no_graph_is_kept(name, images):
    network = _tiny()
    with no_graph_left():
        reference_maps(name, network, "max", images[:1], [0, 1])


# What is refused.


@pytest.mark.parametrize("name", ["cam", "grad-cam", "grad-cam++", "layer-cam", "finer-cam"])
def test_a_missing_library_is_named_together_with_the_extra(name, monkeypatch):
    module = {"torchcam": "torchcam.methods", "grad-cam": "pytorch_grad_cam"}[REFERENCE_METHODS[name].distribution]
    for loaded in [m for m in sys.modules if m.split(".")[0] == module.split(".")[0]]:
        monkeypatch.setitem(sys.modules, loaded, None)
    network = _by_hand()
    before = snapshot(network)
    with pytest.raises(ImportError, match=rf'{module}.*pip install "dcsm_attr\[peers\]"'):
        reference_maps(name, network, "max", IMAGE, [0])
    assert changes(before, snapshot(network)) == []


@pytest.mark.parametrize("name", REFERENCE_METHODS)
@pytest.mark.parametrize("classes", [[0, 4], [-1]])
def test_classes_that_are_not_there(name, classes):
    with pytest.raises(ValueError, match=f"classes must be in 0 to 3, got {classes[-1]}"):
        reference_maps(name, _by_hand(), "max", IMAGE, classes)


def test_finer_cam_needs_another_class():
    with pytest.raises(ValueError, match="at least two classes"):
        reference_maps("finer-cam", _by_hand(_convolution([[1.0, 1.0]])), "max", IMAGE, [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gradcam"}, "there is no reference method 'gradcam'; choose one of cam, grad-cam"),
        ({"images": IMAGE[0]}, r"\(1, 3, H, W\) and be floating point, got \(3, 2, 2\)"),
        ({"images": IMAGE.expand(2, 3, 2, 2)}, r"got \(2, 3, 2, 2\)"),
        ({"images": IMAGE.long()}, "torch.int64"),
        ({"classes": []}, "classes is empty"),
        ({"layer": "backbone.features.7"}, "layer 'backbone.features.7' is not in ScoreMapNetwork"),
        ({"layer": "backbone"}, "layer 'backbone' must return a map"),
        ({"name": "cam", "layer": "head.0"}, "CAM is defined only at the input of the classification layer"),
    ],
)
def test_bad_arguments(arguments, message):
    usual = {"name": "grad-cam", "network": _by_hand(), "pooling": "max", "images": IMAGE, "classes": [0]}
    with pytest.raises(ValueError, match=message):
        reference_maps(**usual | arguments)


def test_a_layer_must_run_once():
    relu = nn.ReLU()
    network = _by_hand(relu, _convolution(WEIGHTS), relu)
    with pytest.raises(ValueError, match=r"layer 'head.0' must run once in a forward pass, but it runs 2 times"):
        reference_maps("grad-cam", network, "max", IMAGE, [0], "head.0")
    traced = _torchvision("resnet18", head="linear")
    with pytest.raises(ValueError, match=r"'backbone.layer4.1' .* runs 0 times: .*innermost"):
        reference_maps("grad-cam", traced, "max", torch.randn(1, 3, 64, 64), [0], "backbone.layer4.1")

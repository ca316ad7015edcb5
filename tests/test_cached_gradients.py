"""Tests that cached gradients give the same maps as the images, bit for bit."""

import warnings
from dataclasses import fields

import pytest
import torch
from conftest import TinyVGG
from safetensors.torch import load_file, save_file
from torch import nn

from dcsm_attr import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.cached_gradients import (
    CachedGradients,
    CachedRun,
    class_maps_from_gradients,
    compute_gradients,
)

ALL = ["features.2", "features.5", "features.8"]
LAYERS = ["features.5", "features.8"]


@pytest.fixture
def network():
    """Six classes, of which images have different numbers above the threshold."""
    torch.manual_seed(4)
    network = TinyVGG(6).eval()
    with torch.no_grad():
        network.classifier[2].weight.mul_(20)
        network.classifier[2].bias.fill_(-1)
    return network


def saliency(network, **settings):
    return DistinctClassSaliency(network, **{"layer": LAYERS, **settings})


def same(first, second):
    for field in fields(first):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        assert (ours is None) == (theirs is None), field.name
        assert ours is None or (ours.dtype == theirs.dtype and torch.equal(ours, theirs)), field.name
    assert first.maps.max() > 0
    return True


def equal_from_cached(method, images, keep=None, at_input=True, **request):
    """Whether the maps of an image and those of its gradients are the same, whoever took the gradients."""
    taken = {} if isinstance(method, Simonyan) else {"attribute_to_layer_input": at_input}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # A single candidate is among the cases.
        direct = method.class_maps(images, **request, **taken, raw=True)
    kept = compute_gradients(keep or method, images, **request, **taken)
    assert same(class_maps_from_gradients(method, kept, **request, raw=True), direct)
    return direct


@pytest.mark.parametrize("at_input", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_bit_for_bit(network, images, variant, guided, subtract, at_input):
    # Known classes, for the MatConvNet release detects at every scale.
    method = saliency(network, variant=variant, guided=guided, subtract=subtract)
    found = equal_from_cached(method, images, classes=[[0, 3], [5]], at_input=at_input)
    assert found.subtracted.all() == subtract


def test_detected_classes_of_which_images_have_different_numbers(network):
    images = torch.randn(3, 3, 20, 24) * torch.tensor([1.0, 0.0, 4.0])[:, None, None, None]
    for settings in ({"min_candidates": 1}, {"min_candidates": 3}, {"variant": "caffe"}):
        found = equal_from_cached(saliency(network, **settings), images)
        counts = (found.classes >= 0).sum(dim=1).tolist()
        assert (len(set(counts)) > 1) == (settings != {"variant": "caffe"}), counts


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_candidates_given_and_different_numbers_of_them(network, images, variant):
    method = saliency(network, variant=variant)
    equal_from_cached(method, images, candidates=[[4, 0, 2], [1, 3]], classes=[[2], [3]])
    equal_from_cached(method, images, candidates=[5, 1])
    equal_from_cached(method, images, candidates=[[4], [1, 3, 0]])


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_nothing_detected(network, images, variant):
    with torch.no_grad():
        network.classifier[2].bias.fill_(-1000)
        network.classifier[2].weight.mul_(1e-3)
    found = equal_from_cached(saliency(network, variant=variant), images)
    assert found.nothing_detected.all() == (variant != "caffe")


def test_softmax_scores_of_a_plain_classifier(cnn, images):
    equal_from_cached(DistinctClassSaliency(cnn, ["conv2", "conv3"]), images)
    equal_from_cached(DistinctClassSaliency(cnn), images, classes=[1])


def test_simonyan(network, images):
    equal_from_cached(Simonyan(network), images)
    equal_from_cached(Simonyan(network, alpha=2.0), images, keep=Simonyan(network), classes=[[0, 4], [2]])


OTHERS = {
    "alpha": {"alpha": 5.0},
    "no subtraction": {"subtract": False},
    "one candidate": {"min_candidates": 1},
    "all candidates": {"min_candidates": 6},
    "a layer": {"layer": ["features.8"]},
    "layers in another order": {"layer": ["features.8", "features.2"]},
    "a scale": {"scales": (1.2,)},
    "two scales": {"scales": (1.2, 0.8)},
    "parts of a batch": {"internal_batch_size": 4},
    "a threshold that known classes pass": {"threshold": 0.9},
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_settings_share_cached_gradients(network, images, settings):
    keep = saliency(network, layer=ALL, min_candidates=6)
    request = {"classes": [[0, 1], [4]]}
    found = equal_from_cached(saliency(network, **settings), images, keep=keep, **request)
    paper = saliency(network).class_maps(images, **request, attribute_to_layer_input=True)
    changes_nothing = settings in (OTHERS["parts of a batch"], OTHERS["a threshold that known classes pass"])
    assert torch.equal(found.maps[:, :1], paper.maps[:, :1]) == changes_nothing


def test_scales_of_two_calls_are_combined(network, images):
    request = {"classes": [[0, 1], [4]]}
    first = compute_gradients(saliency(network, scales=(0.8, 1.0)), images, **request, attribute_to_layer_input=True)
    second = compute_gradients(saliency(network, scales=(0.6, 1.4)), images, **request, attribute_to_layer_input=True)
    method = saliency(network, scales=(0.6, 0.8, 1.0, 1.4))
    direct = method.class_maps(images, **request, attribute_to_layer_input=True)
    for kept in (first + second, second + first):
        assert same(class_maps_from_gradients(method, kept, **request), direct)


def test_gradients_are_read_from_a_file(network, images, tmp_path):
    request = {"candidates": [[4, 0, 2], [1, 3]]}
    method = saliency(network)
    kept = compute_gradients(method, images, **request, attribute_to_layer_input=True)
    save_file(kept.tensors(), tmp_path / "kept.safetensors")
    loaded = CachedGradients.from_tensors(load_file(tmp_path / "kept.safetensors"), LAYERS)
    assert loaded.size == kept.size == (20, 24)
    for ours in kept.runs:
        theirs = loaded.run(ours.scale)
        assert theirs.points == ours.points == LAYERS
        assert torch.equal(theirs.logits, ours.logits)
        assert torch.equal(theirs.classes, torch.tensor([[4, 0, 2], [1, 3, -1]]))
        assert all(torch.equal(a, b) for a, b in zip(theirs.maps, ours.maps, strict=True))
    assert same(
        class_maps_from_gradients(method, loaded, **request), class_maps_from_gradients(method, kept, **request)
    )


def test_cached_gradients_are_small(network):
    kept = compute_gradients(saliency(network, layer=["features.8"]), torch.randn(1, 3, 64, 64), classes=[0, 1, 2])
    # Sides of 51, 64 and 77 pixels, halved twice.
    assert sum(maps.numel() for run in kept.runs for maps in run.maps) == 3 * (12**2 + 16**2 + 19**2)


def by_hand():
    """Two images of two points; image 1 has one class."""
    return CachedRun(
        1.0,
        torch.zeros(2, 9),
        ["a", "b"],
        torch.tensor([[7, 2], [5, -1]]),
        [
            torch.tensor([[[[7.0]], [[2.0]]], [[[5.0]], [[0.0]]]]),
            torch.tensor([[[[70.0]], [[20.0]]], [[[50.0]], [[0.0]]]]),
        ],
    )


def test_cached_classes_are_selected():
    a, b = by_hand().channel_maxima(torch.tensor([[2, -1, 7], [-1, 5, -1]]))
    assert a.flatten(1).tolist() == [[2, 0, 7], [0, 5, 0]]
    assert b.flatten(1).tolist() == [[20, 0, 70], [0, 50, 0]]
    (b,) = by_hand().at(["b"]).channel_maxima(torch.tensor([[7], [5]]))
    assert b.flatten().tolist() == [70, 50]


def test_missing_classes_layers_and_scales_raise(network, images):
    with pytest.raises(ValueError, match=r"classes \[3, 2\] were not cached for image 1; cached are \[5\]"):
        by_hand().channel_maxima(torch.tensor([[7, 2], [3, 2]]))
    with pytest.raises(ValueError, match="pass a class"):
        by_hand().channel_maxima(torch.tensor([[7], [5]]), positions=torch.tensor([0, 0]))
    kept = compute_gradients(saliency(network), images, candidates=[1, 2, 3], attribute_to_layer_input=True)
    for settings, request, message in (
        ({"layer": ALL}, {}, r"no gradients were cached at features\.2; cached are features\.5, features\.8"),
        ({"scales": (0.8, 0.5)}, {}, r"no gradients were cached at scale 0\.5; cached are \[1\.0, 0\.8, 1\.2\]"),
        ({}, {"candidates": [1, 4]}, r"classes \[4\] were not cached for image 0; cached are \[1, 2, 3\]"),
        ({}, {"candidates": [1, 9]}, "candidates must lie between 0 and 5"),
        ({}, {"classes": [[1], [2], [3]]}, "classes must have a row for each of the 2 images, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            class_maps_from_gradients(saliency(network, **settings), kept, **{"candidates": [1, 2], **request})
    with pytest.raises(ValueError, match="no gradients were cached at images"):
        class_maps_from_gradients(Simonyan(network), kept)


class Twofold(nn.Module):
    """A layer that gives two maps."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Module()
        self.layer.forward = lambda x: (x.relu(), (-x).relu())
        self.read = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        positive, negative = self.layer(x)
        return self.read(torch.relu(positive - 0.5 * negative))


def test_a_layer_with_several_maps_raises(images):
    method = DistinctClassSaliency(Twofold(), "layer")
    assert method.class_maps(images).maps.max() > 0
    with pytest.raises(ValueError, match="a layer has several maps: layer, layer. Choose layers with one tensor each"):
        compute_gradients(method, images)


@pytest.mark.parametrize("missing", ["size", "1.0|classes", "0.8|map|features.5"])
def test_incomplete_tensors(network, images, missing):
    named = compute_gradients(saliency(network), images, classes=[1], attribute_to_layer_input=True).tensors()
    del named[missing]
    with pytest.raises(ValueError, match="the tensors are not cached gradients: .* is missing"):
        CachedGradients.from_tensors(named, LAYERS)


def test_other_tensors():
    for named in ({}, {"weight": torch.zeros(3)}):
        with pytest.raises(ValueError, match="not cached gradients"):
            CachedGradients.from_tensors(named, LAYERS)


def test_the_model_is_left_unchanged(cnn, images):
    cnn.train()
    state = {name: value.clone() for name, value in cnn.state_dict().items()}
    cnn.conv1.weight.grad = torch.ones_like(cnn.conv1.weight)
    torch.manual_seed(3)
    random = torch.get_rng_state()
    method = DistinctClassSaliency(cnn)
    kept = compute_gradients(method, images.requires_grad_(), classes=[1])
    class_maps_from_gradients(method, kept, classes=[1])
    assert cnn.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in cnn.state_dict().items())
    assert torch.equal(cnn.conv1.weight.grad, torch.ones_like(cnn.conv1.weight))
    assert images.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in cnn.modules())
    tensors = kept.tensors().values()
    assert not any(tensor.requires_grad for tensor in tensors)


def test_bad_requests_raise_before_gradients_are_computed(network, images):
    for request, message in (
        ({"classes": [[1], [2], [3]]}, "classes must have a row for each of the 2 images, got 3"),
        ({"classes": [4], "candidates": [1, 2]}, "candidates must include all classes"),
    ):
        with pytest.raises(ValueError, match=message):
            compute_gradients(saliency(network), images, **request)
    with pytest.raises(ValueError, match="the model has no rectifier"):
        compute_gradients(DistinctClassSaliency(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), "1"), images)

"""Tests that nested calls, in a forward pass or a hook, give the same results as alone."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import NoiseTunnel
from conftest import PooledCNN, TinyVGG
from torch import nn
from untouched import untouched

from dcsm_attr import ClassActivationMaps, DenseCRF, DistinctClassSaliency, GuidedRectifiers, Segmenter, Simonyan
from dcsm_attr.datasets.preprocess import Preprocess

INNER = {
    "guided": lambda model: DistinctClassSaliency(model, ["conv2", "conv3"]),
    "plain": lambda model: DistinctClassSaliency(model, ["conv2", "conv3"], guided=False),
    "layers not yet chosen": lambda model: DistinctClassSaliency(model),
    "images": lambda model: Simonyan(model),
    "without gradients": lambda model: ClassActivationMaps(model),
}


class _Calls(nn.Module):
    """A model whose forward pass calls a function, and is otherwise another model."""

    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x):
        self.call()
        return self.net(x)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
@pytest.mark.parametrize("guided", [True, False])
def test_one_model_explained_within_the_forward_pass_of_another(images, inner, guided):
    other = PooledCNN().train()
    expected_inner = inner(other).attribute(images, 1)
    results = []
    vgg = TinyVGG().train()
    expected = DistinctClassSaliency(vgg, "features.5", guided=guided).attribute(images, 1)
    model = _Calls(vgg, lambda: results.append(inner(other).attribute(images, 1)))
    outer = DistinctClassSaliency(model, "net.features.5", guided=guided)
    with untouched(model, images), untouched(other):
        assert torch.equal(outer.attribute(images, 1), expected)
    assert len(results) == 3
    assert all(torch.equal(result, expected_inner) for result in results)


def test_only_the_innermost_rule_is_active(images):
    model = TinyVGG().eval()
    expected = DistinctClassSaliency(model, "features.5", guided=False).attribute(images, 1)
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    seed = torch.tensor([1.0, -1.0])
    with GuidedRectifiers() as outer:
        assert torch.equal(DistinctClassSaliency(model, "features.5", guided=False).attribute(images, 1), expected)
        seen = outer.seen
        with GuidedRectifiers() as inner:
            output = F.relu(x)
        assert (inner.guided, outer.seen) == (1, seen)
        again = F.relu(x)
    for rectified in (output, again):
        assert torch.autograd.grad(rectified, x, seed)[0].tolist() == [1, 0]
    assert outer.guided == 1
    assert torch.autograd.grad(F.relu(x), x, seed)[0].tolist() == [1, -1]


def test_a_model_without_rectifiers_raises_even_with_a_nested_call(images):
    """What the inner model rectifies is not the outer one's."""
    inner = DistinctClassSaliency(PooledCNN(), "conv2")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3))
    model = _Calls(net, lambda: inner.attribute(images, 1))
    with pytest.raises(ValueError, match="the model has no rectifier"):
        DistinctClassSaliency(model, "net.0").attribute(images, 1)


def test_from_a_hook_of_the_model_that_is_explained(vgg, images):
    inner = []
    dcs = DistinctClassSaliency(vgg, "features.5", scales=(1.0,))
    expected = dcs.attribute(images, 1)

    def hook(module, inputs, output):
        handle.remove()
        inner.append(dcs.attribute(images, 1))

    handle = vgg.features[2].register_forward_hook(hook)
    outer = dcs.attribute(images, 1)
    torch.testing.assert_close(inner[0], expected)
    torch.testing.assert_close(outer, expected)


@contextmanager
def _once(register, call):
    """``call`` runs when the hook fires; what it runs itself does not fire it again."""
    running = []

    def hook(*_):
        if not running:
            running.append(True)
            call()
            running.clear()

    handle = register(hook)
    yield
    handle.remove()


@pytest.mark.parametrize("kind", ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"])
def test_from_a_hook_of_the_user_in_training(images, kind):
    """The step is the one without the hook, the map that of the same parameters in evaluation mode."""
    model = nn.Sequential(TinyVGG(in_place=False), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.5))
    dcs = DistinctClassSaliency(model, ["0.features.2", "0.features.5"])
    expected = dcs.attribute(images, 1)
    labels, maps = torch.tensor([0, 3]), []

    def step():
        torch.manual_seed(1)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    gradients = step()
    with _once(getattr(model[0].features[5], kind), lambda: maps.append(dcs.attribute(images, 1))):
        gradients_with = step()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_with, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    assert len(maps) == 1
    assert torch.equal(maps[0], expected)


def test_two_models_that_share_a_part_in_turns(images):
    first = TinyVGG().train()
    second = nn.Sequential(first.features, nn.Conv2d(12, 3, 1)).eval()
    methods = [DistinctClassSaliency(first, "features.5"), DistinctClassSaliency(second, "0.5")]
    expected = [method.attribute(images, 1) for method in methods]
    assert not torch.equal(*expected)
    with untouched(first, images), untouched(second):
        for _ in range(2):
            for method, alone in zip(methods, expected, strict=True):
                assert torch.equal(method.attribute(images, 1), alone)


def test_two_streams_of_one_model_in_turns():
    model = TinyVGG().train()
    segmenters = [
        Segmenter(model, saliency=saliency, preprocess=Preprocess(size=24), crf=DenseCRF(iterations=1))
        for saliency in (DistinctClassSaliency(model, "features.5"), Simonyan(model), ClassActivationMaps(model))
    ]
    image_arrays = np.random.default_rng(0).integers(0, 255, (5, 12, 24, 3), dtype=np.uint8)
    alone = [
        [s.probabilities for s in segmenter.segment_stream(image_arrays, batch_size=2)] for segmenter in segmenters
    ]
    with untouched(model):
        streams = [segmenter.segment_stream(image_arrays, batch_size=2) for segmenter in segmenters]
        for pair, *expected in zip(zip(*streams, strict=True), *alone, strict=True):
            assert all(torch.equal(one.probabilities, other) for one, other in zip(pair, expected, strict=True))


def test_a_noise_tunnel_within_the_forward_pass_of_another_model(images):
    inner = DistinctClassSaliency(PooledCNN().eval(), "conv2", guided=False)
    results = []

    def smooth():
        torch.manual_seed(2)
        results.append(NoiseTunnel(inner).attribute(images, nt_samples=2, stdevs=0.1, target=1))

    smooth()
    model = _Calls(TinyVGG(), smooth)
    with untouched(model, images):
        DistinctClassSaliency(model, "net.features.5").attribute(images, 1)
    assert len(results) == 4
    assert all(torch.equal(result, results[0]) for result in results)

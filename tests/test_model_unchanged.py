"""Tests that every call leaves the model, PyTorch's settings and the random state unchanged, even if it fails."""

import weakref

import psutil
import pytest
import torch
from conftest import PooledCNN, TinyVGG
from torch import nn
from untouched import no_graph_left, untouched

from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.model import prepared_model

METHODS = {
    "dcsm": lambda m: DistinctClassSaliency(m),
    "simonyan": lambda m: Simonyan(m),
    "plain": lambda m: DistinctClassSaliency(m, guided=False),
    "cam": lambda m: ClassActivationMaps(m),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("model", [TinyVGG, PooledCNN])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_behind(method, model, training, images):
    model = model().train(training)
    for p in list(model.parameters())[:2]:
        p.grad = torch.ones_like(p)
    next(iter(model.children())).eval()
    list(model.parameters())[3].requires_grad_(False)
    with untouched(model, images):
        method(model).attribute(images, 1)
        method(model).class_maps(images)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_input_keeps_its_requirement(vgg, images, requires_grad):
    x = images.requires_grad_(requires_grad)
    DistinctClassSaliency(vgg).attribute(x, 1)
    assert x.requires_grad == requires_grad
    assert x.grad is None


class _Failing(nn.Module):
    """Fails at the n-th call: the scales, and the probing run, are calls of their own."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.at, self.calls = TinyVGG(), at, []

    def forward(self, x):
        y = self.inner.features(x)
        self.calls.append(y.shape)
        if len(self.calls) == self.at:
            raise KeyError("a fault of the model")
        return self.inner.classifier(y)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_nothing_is_left_behind_after_a_fault_of_the_model(at, images):
    model = _Failing(at).train()
    with untouched(model, images), pytest.raises(KeyError, match="a fault of the model"):
        DistinctClassSaliency(model).attribute(images, 1)
    assert DistinctClassSaliency(model).attribute(images, 1).max() > 0.1


class _FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyError("a fault in the backward")


class _BackwardFault(TinyVGG):
    def forward(self, x):
        return _FailsBackward.apply(super().forward(x))


def test_nothing_is_left_behind_after_a_fault_in_the_backward(images):
    model = _BackwardFault().train()
    with untouched(model, images), pytest.raises(KeyError, match="a fault in the backward"):
        DistinctClassSaliency(model, "features.5").attribute(images, 1)


def test_results_are_the_same_in_training_mode_frozen_and_under_no_grad(images):
    model = PooledCNN().eval()
    expected = DistinctClassSaliency(model).attribute(images, 1)
    assert torch.equal(DistinctClassSaliency(model.train()).attribute(images, 1), expected)
    with torch.no_grad():
        assert torch.equal(DistinctClassSaliency(model).attribute(images, 1), expected)
    model.requires_grad_(False)
    assert torch.equal(DistinctClassSaliency(model).attribute(images, 1), expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_in_place_reused_and_functional_rectifiers_agree(images, in_place):
    separate = TinyVGG(in_place=in_place).eval()
    expected = DistinctClassSaliency(separate, ["features.2", "features.5"]).attribute(images, 1)

    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.relu = separate, nn.ReLU(in_place)

        def rectified(self, x):
            return self.relu(x)

        def forward(self, x):
            for part in (self.net.features, self.net.classifier):
                for module in part:
                    x = self.rectified(x) if isinstance(module, nn.ReLU) else module(x)
            return x

    class Functional(Reused):
        def rectified(self, x):
            return torch.relu_(x) if in_place else nn.functional.relu(x)

    for model in (Reused(), Functional()):
        result = DistinctClassSaliency(model, ["net.features.2", "net.features.5"]).attribute(images, 1)
        torch.testing.assert_close(result, expected)


def test_hooks_of_the_user_run_and_are_kept(vgg, images):
    calls = []
    handle = vgg.features[5].register_forward_hook(lambda *_: calls.append(1))
    DistinctClassSaliency(vgg).attribute(images, 1)
    assert len(calls) == 4  # the probing run and three scales
    handle.remove()


CPU = torch.device("cpu")


def test_each_submodule_gets_its_own_training_flag_back_after_nested_calls():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(2).eval())
    with prepared_model(model, CPU):
        with prepared_model(model, CPU):
            assert [m.training for m in model.modules()] == [False, False, False]
        assert [m.training for m in model.modules()] == [False, False, False]
    assert [m.training for m in model.modules()] == [True, True, False]


def test_the_random_state_is_restored():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with prepared_model(nn.Identity(), CPU):
        torch.rand(3)
        inner = torch.get_rng_state()
        with prepared_model(nn.Identity(), CPU):
            torch.rand(100)
        assert torch.equal(torch.get_rng_state(), inner)
    assert torch.equal(torch.rand(4), expected)


class _ChangesItsBuffers(PooledCNN):
    """Counts its calls in place, replaces one buffer, and resizes another, as observers do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x):
        self.calls += 1
        self.last = x.mean((1, 2, 3))
        self.seen.resize_(len(x)).fill_(1.0)
        return super().forward(x)


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_buffers_that_the_model_changes_are_restored(layer, images):
    model = _ChangesItsBuffers().train()
    last = model.last
    DistinctClassSaliency(model, layer).attribute(images, 1)
    assert model.calls == 0
    assert model.last is last
    assert torch.equal(last, torch.zeros(2))
    assert model.seen.shape == (0,)


def test_lazy_parameters_without_a_shape_raise(images):
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(2), nn.LazyLinear(5)
    )
    with pytest.raises(ValueError, match=r"0\.weight.*has no shape yet.*Run the model once"):
        DistinctClassSaliency(model, "2")
    assert torch.nn.parameter.is_lazy(model[0].weight)


def test_no_reference_to_graph_or_result_is_kept(vgg, images):
    dcs = DistinctClassSaliency(vgg)
    with no_graph_left():
        result = dcs.attribute(images, 1)
    dead = weakref.ref(result)
    del result
    assert dead() is None


def test_the_check_detects_a_graph_that_is_kept():
    held = []
    with pytest.raises(AssertionError), no_graph_left():
        held.append(torch.ones(1, requires_grad=True) * 2)


def test_memory_does_not_grow():
    """Resident memory after 100 calls within 20 MB of that after 20; copies of the images alone would be 35."""
    model, x = TinyVGG().eval(), torch.randn(4, 3, 96, 96)
    dcs = DistinctClassSaliency(model, scales=(1.0,))
    process = psutil.Process()
    for call in range(100):
        dcs.attribute(x, 1)
        if call == 19:
            after_20 = process.memory_info().rss
    assert process.memory_info().rss - after_20 < 20e6


def test_compiled_models_are_unwrapped(vgg, images):
    expected = DistinctClassSaliency(vgg).attribute(images, 1)
    compiled = torch.compile(vgg, backend="eager")
    for _ in range(2):
        assert torch.equal(DistinctClassSaliency(compiled).attribute(images, 1), expected)
        compiled(images)  # warm: the code in which hooks no longer exist is there now
    assert DistinctClassSaliency(compiled).forward_func is vgg

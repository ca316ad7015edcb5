"""Tests that compiled models are explained through their original code, and stay compiled."""

import pytest
import torch
import torchvision
from conftest import PooledCNN, TinyVGG
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.models.fully_convolutional import fully_convolutional


@pytest.fixture(autouse=True)
def _forgotten():
    """The compiler keeps graphs of its own, which other tests would take for ours."""
    yield
    torch.compiler.reset()


def _compiled(form):
    """A model of which something is compiled, and a list with an entry for each call of the compiler."""
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    torch.manual_seed(0)
    model = nn.Sequential(PooledCNN()).eval()
    if form == "in place":
        model = model[0]
        model.compile(backend=backend)
    elif form == "a part in place":
        model[0].compile(backend=backend)
    elif form == "a part":
        model[0] = torch.compile(model[0], backend=backend)
    else:
        model = torch.compile(model[0], backend=backend)
    return model, calls


FORMS = ["in place", "a part in place", "a part", "wrapped"]


def _compiled_parts(model):
    return [{name: vars(m).get(name) for name in ("_compiled_call_impl", "forward")} for m in model.modules()]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_compiled_models_are_explained_as_they_were_before(form, warm, images):
    model, calls = _compiled(form)
    torch.manual_seed(0)
    plain = PooledCNN().eval()
    if warm:
        with torch.no_grad():
            model(images)
        assert calls
    before, parts = len(calls), _compiled_parts(model)
    dcs = DistinctClassSaliency(model)
    assert [name.rpartition(".")[2] for name in dcs.layers] == ["conv2", "conv3"]
    assert torch.equal(dcs.attribute(images, 1), DistinctClassSaliency(plain).attribute(images, 1))
    assert len(calls) == before, "nothing of the method may be compiled"
    assert _compiled_parts(model) == parts
    with torch.no_grad():
        model(images)
    assert calls, "it is compiled again"


def test_it_stays_compiled_after_a_fault(images):
    class Broken(TinyVGG):
        def forward(self, x):
            super().forward(x)
            raise KeyError("a fault of the model")

    model = Broken().eval()
    model.compile(backend="eager")
    model.features = torch.compile(model.features, backend="eager")
    parts = _compiled_parts(model)
    with pytest.raises(KeyError, match="a fault of the model"):
        DistinctClassSaliency(model).attribute(images, 1)
    assert _compiled_parts(model) == parts


def test_a_compiled_function_is_replaced_by_the_original(vgg, images):
    function = torch.compile(lambda x: vgg(x), backend="eager")
    expected = DistinctClassSaliency(vgg, vgg.features[5]).attribute(images, 1)
    assert torch.equal(DistinctClassSaliency(function, vgg.features[5]).attribute(images, 1), expected)


def test_a_compiled_classifier_can_be_made_fully_convolutional():
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = fully_convolutional(model)(x)
        assert torch.equal(fully_convolutional(torch.compile(model, backend="eager"))(x), expected)

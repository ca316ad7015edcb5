"""Tests that the scores are found in the output of a model."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from conftest import PooledCNN
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.attribution.model import find_scores

SCORES = torch.randn(2, 5)
OTHER = torch.randn(2, 5)
Auxiliary = namedtuple("Auxiliary", ["logits", "aux_logits"])

OUTPUTS = {
    "tensor": SCORES,
    "segmentation": OrderedDict(aux=OTHER, out=SCORES),
    "logits in a mapping": {"loss": OTHER, "logits": SCORES},
    "named tuple": Auxiliary(SCORES, OTHER),
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_the_scores_are_found(output):
    assert find_scores(output) is SCORES


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ((SCORES, OTHER), "returned tuple of 2"),
        ([SCORES], "returned list of 1"),
        ({"scores": SCORES, "loss": OTHER}, "returned dict with 'scores', 'loss'"),
        ({}, "returned dict with nothing"),
        ({"out": None}, "returned dict with 'out'"),
        (None, "returned NoneType"),
    ],
)
def test_outputs_without_scores_raise(output, said):
    with pytest.raises(TypeError, match=rf"\(N, C\) or \(N, C, h, w\), or hold one under 'out' or 'logits'.*{said}"):
        find_scores(output)


@pytest.mark.parametrize("wrapped", [lambda y: {"out": y, "aux": -y}, lambda y: Auxiliary(y, None)])
def test_a_wrapped_output_is_explained_like_the_tensor_itself(images, wrapped):
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = net

        def forward(self, x):
            return wrapped(self.model(x))

    net = PooledCNN().eval()
    dcs = DistinctClassSaliency(Wrapping())
    assert dcs.layers == tuple(f"model.{name}" for name in DistinctClassSaliency(net).layers)
    assert torch.equal(dcs.attribute(images, 1), DistinctClassSaliency(net).attribute(images, 1))

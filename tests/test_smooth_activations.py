"""Tests of the guided rule for smooth activations, against derivatives in NumPy's float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcsm_attr import DistinctClassSaliency, GuidedRectifiers

ERF = np.vectorize(math.erf)
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def tanh_gelu_derivative(x):
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2)


def mish_derivative(x):
    t = np.tanh(np.log1p(np.exp(x)))
    return t + x * (1 - t**2) * sigmoid(x)


# Activation, its value, and its derivative.
ACTIVATIONS = {
    "gelu": (nn.GELU(), lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2, None),
    "gelu by tanh": (nn.GELU("tanh"), None, tanh_gelu_derivative),
    "silu": (nn.SiLU(), lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "mish": (nn.Mish(), lambda x: x * np.tanh(np.log1p(np.exp(x))), mish_derivative),
    "hardswish": (
        nn.Hardswish(),
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        lambda x: np.where(x <= -3, 0, np.where(x >= 3, 1, x / 3 + 0.5)),
    ),
    "elu": (
        nn.ELU(0.7),
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
        lambda x: np.where(x > 0, 1, 0.7 * np.exp(x)),
    ),
    "celu": (nn.CELU(0.5), None, lambda x: np.where(x > 0, 1, np.exp(x / 0.5))),
    "selu": (nn.SELU(), None, lambda x: SELU_SCALE * np.where(x > 0, 1, SELU_ALPHA * np.exp(x))),
    "leaky relu": (nn.LeakyReLU(0.2), lambda x: np.where(x > 0, x, 0.2 * x), lambda x: np.where(x > 0, 1, 0.2)),
    "prelu": (nn.PReLU(init=0.25), lambda x: np.where(x > 0, x, 0.25 * x), lambda x: np.where(x > 0, 1, 0.25)),
    "softplus": (nn.Softplus(beta=2), lambda x: np.log1p(np.exp(2 * x)) / 2, lambda x: sigmoid(2 * x)),
    "relu6": (nn.ReLU6(), lambda x: np.clip(x, 0, 6), lambda x: ((x > 0) & (x < 6)).astype(float)),
    "relu": (nn.ReLU(), lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
}
ACTIVATIONS["gelu"] = (
    *ACTIVATIONS["gelu"][:2],
    lambda x: (1 + ERF(x / math.sqrt(2))) / 2 + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
)


@pytest.mark.parametrize(("activation", "value", "derivative"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_positive_gradients_pass_through_the_derivative(activation, value, derivative):
    # No point on a kink.
    x = np.linspace(-7.31, 7.29, 147)
    seed = np.random.default_rng(0).normal(size=x.shape)
    tensor = torch.from_numpy(x).requires_grad_()
    with GuidedRectifiers() as rule:
        output = activation.double()(tensor)
    (gradient,) = torch.autograd.grad(output, tensor, torch.from_numpy(seed))
    expected = derivative(x) * np.maximum(seed, 0)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-9, atol=1e-12)
    if value is not None:
        np.testing.assert_allclose(output.detach().numpy(), value(x), rtol=1e-9, atol=1e-12)
    assert rule.guided == 1


class _TwoLayers(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 3, 1)
        self.activation = activation

    def forward(self, x):
        return self.second(self.activation(self.first(x)))


@pytest.mark.parametrize("name", ["gelu", "silu", "hardswish", "mish", "elu", "relu"])
def test_a_network_by_hand(name):
    """Two 1 x 1 convolutions: the gradient at the input is a sum over four hidden units, written out in NumPy."""
    activation, _, derivative = ACTIVATIONS[name]
    model = _TwoLayers(activation).double().eval()
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    first, bias = model.first.weight.detach().numpy()[:, :, 0, 0], model.first.bias.detach().numpy()
    second = model.second.weight.detach().numpy()[:, :, 0, 0]
    hidden = np.einsum("hc,cyx->hyx", first, x[0].numpy()) + bias[:, None, None]
    tensor = x.clone().requires_grad_()
    with GuidedRectifiers():
        scores = model(tensor)
    for c in range(3):
        expected = np.einsum("hc,hyx->cyx", first, derivative(hidden) * np.maximum(second[c], 0)[:, None, None])
        (gradient,) = torch.autograd.grad(scores[0, c].sum(), tensor, retain_graph=True)
        np.testing.assert_allclose(gradient[0].numpy(), expected, rtol=1e-9, atol=1e-12)
    # The same through the method: the maximum over channels, divided by the largest, of the raw maps.
    maps = DistinctClassSaliency(model, "first", scales=(1.0,), subtract=False, min_candidates=1).class_maps(
        x, [0], attribute_to_layer_input=True
    )
    gradient = np.einsum("hc,hyx->cyx", first, derivative(hidden) * np.maximum(second[0], 0)[:, None, None])
    strongest = np.abs(gradient).max(0)
    np.testing.assert_allclose(maps.maps[0, 0].numpy(), np.tanh(3 * strongest / strongest.max()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
def test_the_limit_of_steep_activations_is_the_rule_of_relu(name):
    """f(s x) / s tends to ReLU for large s, and the guided gradient to that of the paper."""
    x = torch.linspace(-3, 3, 40, dtype=torch.float64).requires_grad_()
    seed = torch.randn(40, dtype=torch.float64)
    function = getattr(F, name)
    with GuidedRectifiers():
        sharp, relu = function(1000 * x) / 1000, F.relu(x)
    found, expected = (torch.autograd.grad(y, x, seed)[0] for y in (sharp, relu))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "hardswish"])
def test_decreasing_activations_change_the_sign_of_the_gradient(name):
    x = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    with GuidedRectifiers():
        y = getattr(F, name)(x)
    (gradient,) = torch.autograd.grad(y, x)
    assert gradient < 0

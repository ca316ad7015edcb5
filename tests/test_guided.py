"""Tests of the guided rule against Captum and transposed convolutions in float64."""

import threading
import warnings

import pytest
import reference
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import GuidedBackprop
from torch import nn

from dcsm_attr import GuidedRectifiers


def _guided(model, x, select):
    x = x.clone().requires_grad_()
    with GuidedRectifiers() as rule:
        output = model(x.clone())
    (gradient,) = torch.autograd.grad(select(output), x)
    return gradient, output, rule


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_equals_captum_bit_for_bit(name):
    options = {"init_weights": False} if name == "vgg16" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=[3, 7])
    gradient, output, rule = _guided(model, x, lambda y: y[0, 3] + y[1, 7])
    assert torch.equal(gradient, expected)
    assert gradient.abs().max() > 0
    assert rule.guided == rule.seen == {"vgg16": 15, "resnet18": 17}[name]
    assert torch.equal(output, model(x))


def test_equals_an_independent_float64_reference(vgg):
    vgg = vgg.double()
    x = torch.randn(3, 20, 24, dtype=torch.float64)
    gradient, output, rule = _guided(vgg, x[None], lambda y: y[0, 2].sum())
    assert (rule.seen, rule.guided) == (5, 5)
    at_input, _ = reference.layer_gradients(vgg, x, reference.one_hot_seed(output[0], 2))
    expected = torch.from_numpy(at_input[vgg.features[0]])
    assert (gradient[0] - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert expected.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "rectifiers"), [("googlenet", 57), ("inception_v3", 94), ("densenet121", 121), ("mobilenet_v2", 35)]
)
def test_reaches_rectifiers_that_module_hooks_miss(name, rectifiers):
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.randn(1, 3, 80, 80)
    gradient, _, rule = _guided(model, x, lambda y: y[0, 0])
    assert (rule.seen, rule.guided) == (rectifiers, rectifiers)
    plain = x.clone().requires_grad_()
    model(plain)[0, 0].backward()
    assert (gradient - plain.grad).norm() > 0.1 * gradient.norm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_hooks = GuidedBackprop(model).attribute(x.clone().requires_grad_(), target=0)
    # DenseNet's norms have modules for rectifiers; what the README says of the others holds as long as this does.
    assert torch.equal(by_hooks, plain.grad) == (name != "densenet121")


RELU_SPELLINGS = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place by position": lambda x: F.relu(x, True),
    "F.relu by keyword": lambda x: F.relu(input=x),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "clamp": lambda x: x.clamp(min=0),
    "clamp by position": lambda x: torch.clamp(x, 0),
    "clamp in place": lambda x: x.clamp_(0),
    "clamp_min": lambda x: x.clamp_min(0.0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "clip": lambda x: x.clip(min=0),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
    "torch.relu by keyword": lambda x: torch.relu(input=x),
    "torch.clamp by keyword": lambda x: torch.clamp(input=x, min=0),
    "torch.threshold by keyword": lambda x: torch.threshold(input=x, threshold=0, value=0),
    "F.threshold by keyword": lambda x: F.threshold(input=x, threshold=0, value=0),
    "ignored result": lambda x: (x.relu_(), x)[1],
    "ignored result of F.relu": lambda x: (F.relu(x, inplace=True), x)[1],
    "ignored result of F.relu by position": lambda x: (F.relu(x, True), x)[1],
    "ignored result of the module": lambda x: (nn.ReLU(inplace=True)(x), x)[1],
}


@pytest.mark.parametrize("relu", RELU_SPELLINGS.values(), ids=RELU_SPELLINGS)
def test_every_form_of_relu_follows_the_rule(relu):
    x = torch.tensor([-2.0, -1.0, -0.5, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    seed = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    with GuidedRectifiers() as rule:
        y = relu(x * 1)
    (gradient,) = torch.autograd.grad(y, x, seed)
    assert y.tolist() == [0, 0, 0, 1, 2, 3]
    # Open at 1, 2, 3; of the gradients there, only the positive ones pass.
    assert gradient.tolist() == [0, 0, 0, 1, 0, 2]
    assert (rule.seen, rule.guided) == (1, 1)


@pytest.mark.parametrize("name", ["F.relu", "torch.relu", "method", "module", "clamp", "threshold"])
def test_relu_out_of_place_leaves_its_input(name):
    x = torch.randn(6, requires_grad=True)
    with GuidedRectifiers():
        inner = x * 1
        RELU_SPELLINGS[name](inner)
    assert torch.equal(inner, x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient_layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 20, 30), (3, 1, 1, 7), (2, 3, 0, 4)])
def test_the_rule_holds_for_every_size_and_order_in_memory(layout, gradient_layout, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(shape, generator=generator).contiguous(memory_format=gradient_layout)
    before = gradient.clone()
    with GuidedRectifiers():
        output = F.relu(x)
    (found,) = torch.autograd.grad(output, x, gradient)
    assert torch.equal(found, gradient.clamp(min=0) * (x > 0))
    assert torch.equal(gradient, before)


def test_a_gradient_that_shares_its_memory_follows_the_rule():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    with GuidedRectifiers():
        output = F.relu(x)
    (found,) = torch.autograd.grad(output, x, torch.tensor(2.0).expand(2, 3, 4, 5))
    assert torch.equal(found, 2.0 * (x > 0))


def test_relu_is_closed_at_zero():
    x = torch.zeros(3, requires_grad=True)
    with GuidedRectifiers():
        y = F.relu(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [0, 0, 0]


RELATIVES = {
    "relu6": F.relu6,
    "relu6 in place": nn.ReLU6(inplace=True),
    "hardtanh from zero": lambda x: F.hardtanh(x, 0.0, 1.5),
    "hardtanh from zero in place": lambda x: F.hardtanh_(x, 0.0, 1.5),
    "clamp to a range": lambda x: x.clamp(0, 1.5),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "leaky in place": nn.LeakyReLU(0.2, inplace=True),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    "elu": F.elu,
    "elu in place": nn.ELU(inplace=True),
    "selu": F.selu,
    "celu in place": nn.CELU(inplace=True),
    "silu": F.silu,
    "silu in place": nn.SiLU(inplace=True),
    "gelu": F.gelu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardswish in place": nn.Hardswish(inplace=True),
    "softplus": F.softplus,
}


@pytest.mark.parametrize("name", RELATIVES)
def test_similar_activations_pass_positive_gradients_through_their_derivative(name):
    activation = RELATIVES[name]
    x = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(41, dtype=torch.float64)
    expected_output = activation(x * 1)
    (derivative,) = torch.autograd.grad(expected_output, x, torch.ones_like(seed))
    with GuidedRectifiers() as rule:
        inner = x * 1
        output = activation(inner)
    (gradient,) = torch.autograd.grad(output, x, seed)
    torch.testing.assert_close(gradient, derivative * seed.clamp(min=0), rtol=0, atol=1e-15)
    assert torch.equal(output, expected_output)
    assert rule.guided == 1
    # What overwrote its input still does, and nothing else does.
    assert torch.equal(inner, output if "in place" in name else x)


@pytest.mark.parametrize(
    "function",
    [lambda x: x.clamp(min=-1), lambda x: x.clamp(max=1), lambda x: F.hardtanh(x), torch.tanh, torch.sigmoid],
)
def test_clamps_at_other_limits_are_not_rectifiers(function):
    x = torch.randn(5, requires_grad=True)
    with GuidedRectifiers() as rule:
        y = function(x)
    (gradient,) = torch.autograd.grad(y, x, -torch.ones(5))
    (plain,) = torch.autograd.grad(function(x), x, -torch.ones(5))
    assert torch.equal(gradient, plain)
    assert rule.seen == 0


def test_in_place_relu_on_a_view_changes_its_base():
    x = torch.randn(4, 4, requires_grad=True)
    with GuidedRectifiers():
        base = x * 1
        base[:2].relu_()
    (gradient,) = torch.autograd.grad(base.sum(), x)
    expected = torch.ones(4, 4)
    expected[:2] = (x[:2] > 0).float()
    assert torch.equal(gradient, expected)
    assert torch.equal(base[:2], x[:2].clamp(min=0))


def test_nothing_remains_outside_the_context():
    x = torch.tensor([1.0], requires_grad=True)
    with GuidedRectifiers():
        pass
    (gradient,) = torch.autograd.grad(F.relu(x), x, torch.tensor([-1.0]))
    assert gradient.item() == -1


def test_the_rule_applies_to_the_thread_that_entered_it():
    gradients = []

    def work():
        x = torch.tensor([1.0], requires_grad=True)
        plain = F.relu(x)
        with GuidedRectifiers() as own:
            guided = F.relu(x)
        gradients.extend(torch.autograd.grad(y, x, torch.tensor([-1.0]))[0].item() for y in (plain, guided))
        gradients.append(own.guided)

    thread = threading.Thread(target=work)
    with GuidedRectifiers() as rule:
        thread.start()
        thread.join()
    assert gradients == [-1, 0, 1]
    assert rule.seen == 0


def test_inputs_without_a_gradient_are_counted_but_not_guided():
    x = torch.tensor([-1.0, 1.0, 3.0])
    with GuidedRectifiers() as rule:
        results = [F.relu(x), x.clamp(0, 2), x.clamp(min=0, max=2), F.leaky_relu(x, 0.5)]
    assert (rule.seen, rule.guided) == (4, 0)
    assert [result.tolist() for result in results] == [[0, 1, 3], [0, 1, 2], [0, 1, 2], [-0.5, 1, 3]]


def test_batched_gradients_follow_the_rule(vgg):
    x = torch.randn(1, 3, 20, 24, requires_grad=True)
    with GuidedRectifiers():
        output = vgg(x)
    seeds = torch.zeros(3, *output.shape)
    for k in range(3):
        seeds[k, :, k] = 1
    (batched,) = torch.autograd.grad(output, x, seeds, is_grads_batched=True, retain_graph=True)
    for k in range(3):
        (single,) = torch.autograd.grad(output, x, seeds[k], retain_graph=True)
        torch.testing.assert_close(batched[k], single, rtol=1e-5, atol=1e-7)

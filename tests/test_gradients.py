"""Tests of channel maxima of gradients at every kind of layer point, against float64."""

from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from torch import nn

from dcsm_attr.attribution import maps as eq
from dcsm_attr.attribution.gradients import DetachedParameters, LayerPoint, run_forward


def _record(model, x, points, guided=True, reduction=eq.absolute_channel_maximum, arguments=()):
    return run_forward(model, (x,), arguments, points, reduction, guided=guided)


def _points(modules, at_input):
    return [LayerPoint(str(i), module, at_input) for i, module in enumerate(modules)]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("at_input", [True, False])
@pytest.mark.parametrize("class_chunk_size", [1, 2, 3])
def test_channel_maxima_equal_float64_at_every_layer(vgg, guided, at_input, class_chunk_size):
    vgg = vgg.double()
    convolutions = [m for m in vgg.features if isinstance(m, nn.Conv2d)]
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64)
    recording = _record(vgg, x, _points(convolutions, at_input), guided)
    classes = torch.tensor([[0, 2, 3], [3, 1, -1]])
    layers = recording.channel_maxima(classes, class_chunk_size=class_chunk_size)
    assert torch.equal(recording.logits, vgg(x).detach())
    for n in range(2):
        for k in range(3):
            c = int(classes[n, k])
            seed = torch.zeros(recording.logits.shape[1:], dtype=torch.float64)
            if c >= 0:
                seed[c] = 1
            gradients = reference.layer_gradients(vgg, x[n], seed, guided)[0 if at_input else 1]
            for module, maps in zip(convolutions, layers, strict=True):
                expected = np.abs(gradients[module]).max(0)
                assert np.abs(maps[n, k].numpy() - expected).max() <= 1e-10 * max(expected.max(), 1e-300)
                assert (c < 0) == (expected.max() == 0)


def test_signed_reduction_keeps_signs(vgg, images):
    convolution = vgg.features[8]
    recording = _record(vgg, images, [LayerPoint("x", convolution, True)], False, eq.signed_channel_maximum)
    (maps,) = recording.channel_maxima(torch.tensor([[1], [2]]))
    seeds = torch.zeros_like(recording.logits)
    seeds[0, 1], seeds[1, 2] = 1, 1
    for n in range(2):
        expected = reference.layer_gradients(vgg, images[n], seeds[n], guided=False)[0][convolution].max(0)
        np.testing.assert_allclose(maps[n, 0].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_layers_that_share_an_input_have_separate_gradients(images):
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 3, padding=1)

        def forward(self, x):
            x = self.stem(x).relu()
            return (self.left(x) + self.right(x)).relu()

    forked = Forked()
    points = _points([forked.left, forked.right], at_input=True)
    recording = _record(forked, images, points, False, lambda gradient: gradient[:, :1])
    parts = recording.channel_maxima(torch.tensor([[1], [2]]))
    x = images.clone().requires_grad_()
    shared = forked.stem(x).relu()
    output = (forked.left(shared) + forked.right(shared)).relu()
    (whole,) = torch.autograd.grad(output[0, 1].sum() + output[1, 2].sum(), shared)
    torch.testing.assert_close(parts[0] + parts[1], whole[:, :1])
    open_and_weighted = torch.stack([(output[n, c] > 0) * forked.left.weight[c, 0] for n, c in ((0, 1), (1, 2))])
    torch.testing.assert_close(parts[0], open_and_weighted[:, None].detach())


def test_gradients_at_the_images(vgg, images):
    recording = _record(vgg, images, [LayerPoint("images", None, True)], guided=False)
    (maps,) = recording.channel_maxima(torch.tensor([[1], [2]]))
    x = images.clone().requires_grad_()
    output = vgg(x)
    (output[0, 1].sum() + output[1, 2].sum()).backward()
    torch.testing.assert_close(maps[:, 0], x.grad.abs().amax(1), rtol=1e-5, atol=1e-8)


def test_gradients_of_one_position_of_the_score_map(vgg, images):
    recording = _record(vgg, images, [LayerPoint("images", None, True)], guided=False)
    width = recording.logits.shape[3]
    positions = torch.tensor([1 * width + 2, 0])
    (maps,) = recording.channel_maxima(torch.tensor([[1], [2]]), positions)
    x = images.clone().requires_grad_()
    output = vgg(x)
    (output[0, 1, 1, 2] + output[1, 2, 0, 0]).backward()
    torch.testing.assert_close(maps[:, 0], x.grad.abs().amax(1), rtol=1e-5, atol=1e-8)


def _graph_nodes(tensor):
    nodes, stack = [], [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes:
            nodes.append(node)
            stack += [following for following, _ in node.next_functions]
    return nodes


def test_the_graph_starts_at_the_first_layer_and_holds_no_parameters(vgg, images):
    recording = _record(vgg, images, _points([vgg.features[8]], True))
    names = [type(node).__name__ for node in _graph_nodes(recording._output)]
    # From features.8 on: three convolutions, two guided rectifiers, one tap; nothing of the blocks below.
    assert sorted(names) == sorted(
        ["ConvolutionBackward0"] * 3 + ["_GuidedReLUBackward"] * 2 + ["GradientTapBackward", "AccumulateGrad"]
    )


class _NoBatchedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        # Data on the host: what vmap cannot do.
        return gradient * (2.0 if gradient.sum().item() != 0 else 0.0)


def test_operations_without_a_batched_backward_run_class_by_class(vgg, images):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vgg

        def forward(self, x):
            return self.net.classifier(_NoBatchedBackward.apply(self.net.features(x)))

    classes = torch.tensor([[0, 1, 3], [2, 1, 0]])
    point = [LayerPoint("x", vgg.features[5], True)]
    (batched,) = _record(Model(), images, point).channel_maxima(classes, class_chunk_size=3)
    (plain,) = _record(vgg, images, point).channel_maxima(classes)
    torch.testing.assert_close(batched, 2 * plain)


def test_a_forward_pass_is_used_once(vgg, images):
    recording = _record(vgg, images, _points([vgg.features[5]], True))
    recording.channel_maxima(torch.tensor([[0], [1]]))
    with pytest.raises(RuntimeError, match="used and freed"):
        recording.channel_maxima(torch.tensor([[0], [1]]))


def test_gradients_before_and_after_in_place_rectifiers_do_not_disturb_each_other(vgg, images):
    """The output of a convolution is overwritten by the ReLU behind it."""
    points = [LayerPoint("convolution", vgg.features[5], False), LayerPoint("rectifier", vgg.features[6], False)]
    both = _record(vgg, images, points).channel_maxima(torch.tensor([[0], [1]]))
    alone = [_record(vgg, images, [point]).channel_maxima(torch.tensor([[0], [1]]))[0] for point in points]
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0


class _Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        first = self.relu(self.conv(x))
        return self.relu(self.conv(first)).mean((2, 3))


def test_the_last_run_of_a_layer_counts(images):
    model = _Reused()
    (maps,) = _record(model, images, [LayerPoint("conv", model.conv, True)]).channel_maxima(torch.tensor([[0], [1]]))
    first = model.relu(model.conv(images)).detach().requires_grad_()
    with torch.enable_grad():
        output = model.relu(model.conv(first)).mean((2, 3))
    (output[0, 0] + output[1, 1]).backward()
    # The seeds are positive, and so nothing is left for the guided rule to drop above this layer.
    torch.testing.assert_close(maps[:, 0], first.grad.abs().amax(1))


class _TwoInTwoOut(nn.Module):
    def forward(self, a, b):
        return a * 2, b * 3


class _WithTuples(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.pair = _TwoInTwoOut()

    def forward(self, x):
        y = torch.relu(self.conv(x))
        a, b = self.pair(y, y * 5)
        return (a + b).mean((2, 3))


@pytest.mark.parametrize(("at_input", "expected"), [(True, [2.0, 3.0]), (False, [1.0, 1.0])])
def test_a_layer_with_several_tensors_has_a_map_for_each(images, at_input, expected):
    model = _WithTuples()
    recording = _record(model, images, [LayerPoint("pair", model.pair, at_input)])
    maps = recording.channel_maxima(torch.tensor([[0], [0]]))
    assert recording.points == ["pair", "pair"]
    positions = images[0, 0].numel()
    assert [float(m.max()) * positions for m in maps] == pytest.approx(expected)


class _Pair(NamedTuple):
    map: torch.Tensor
    name: str


class _NamedPair(nn.Module):
    def forward(self, x):
        return _Pair(x * 2, "no tensor")


class _WithNamedTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pair = nn.Conv2d(3, 2, 1), _NamedPair()

    def forward(self, x):
        pair = self.pair(torch.relu(self.conv(x)))
        assert pair.name == "no tensor"
        return 3 * pair.map.mean((2, 3))


def test_named_tuples_and_other_values_are_preserved(images):
    model = _WithNamedTuple()
    recording = _record(model, images, [LayerPoint("pair", model.pair, False)])
    (maps,) = recording.channel_maxima(torch.tensor([[0], [0]]))
    torch.testing.assert_close(maps * images[0, 0].numel(), torch.full_like(maps, 3.0))


class _Sequence(nn.Module):
    """A layer between tensors (N, L, C), as of a transformer."""

    def __init__(self):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 2, 1), nn.Identity()

    def forward(self, x):
        return self.inner(torch.relu(self.conv(x)).flatten(2)).mean(2)


@pytest.mark.parametrize(("at_input", "side"), [(True, "input"), (False, "output")])
def test_a_layer_without_a_map_is_named(images, at_input, side):
    model = _Sequence()
    with pytest.raises(RuntimeError, match=rf"'inner' has no map at its {side}: a tensor of shape \(N, C, h, w\)"):
        _record(model, images, [LayerPoint("inner", model.inner, at_input)])


class _FailsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("a fault of its own")


@pytest.mark.parametrize("class_chunk_size", [1, 2])
def test_other_errors_of_the_backward_pass_are_raised(vgg, images, class_chunk_size):
    recording = _record(lambda x: _FailsInBackward.apply(vgg(x)), images, _points([vgg.features[8]], True))
    with pytest.raises(RuntimeError, match="a fault of its own"):
        recording.channel_maxima(torch.tensor([[0, 1], [1, 0]]), class_chunk_size=class_chunk_size)


class _Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).mean((2, 3)))))


def test_a_layer_of_vectors_is_a_map_of_one_position(images):
    model = _Vector()
    (maps,) = _record(model, images, [LayerPoint("fc1", model.fc1, False)]).channel_maxima(torch.tensor([[2], [0]]))
    assert maps.shape == (2, 1, 1, 1)
    hidden = model.fc1(torch.relu(model.conv(images)).mean((2, 3)))
    expected = (model.fc2.weight[2] * (hidden[0] > 0)).clamp(min=0).max()
    assert float(maps[0, 0, 0, 0]) == pytest.approx(expected.item())


def test_layers_that_do_not_run_or_are_not_used_raise(images):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.never, self.unused = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.mode = "normal"

        def forward(self, x):
            self.unused(x)
            if self.mode == "detached":
                return self.conv(x).detach().mean((2, 3))
            return torch.relu(self.conv(x)).mean((2, 3))

    model = Model()
    with pytest.raises(RuntimeError, match="'never' was not reached"):
        _record(model, images, [LayerPoint("never", model.never, True)])
    with pytest.raises(RuntimeError, match="do not depend on layer 'unused'"):
        recording = _record(
            model, images, [LayerPoint("conv", model.conv, True), LayerPoint("unused", model.unused, True)]
        )
        recording.channel_maxima(torch.tensor([[0], [1]]))
    model.mode = "detached"
    with pytest.raises(RuntimeError, match="do not depend on layer 'conv'"):
        _record(model, images, [LayerPoint("conv", model.conv, True)])


def test_detached_parameters_do_not_change_the_parameters():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    with DetachedParameters():
        y = layer(x)
        assert layer.weight.requires_grad
    y.sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 3))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (4, 3)])
@pytest.mark.parametrize("settings", [{}, {"eps": 0.1}, {"affine": False}, {"track_running_stats": False}])
def test_batch_norm_in_evaluation_is_a_scale_and_a_shift(shape, settings):
    """And is left alone where it is none."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    seed = torch.randn(shape, dtype=torch.float64)
    layer = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(3, dtype=torch.float64, **settings).eval()
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(3) + 0.5)
    expected = layer(x)
    (expected_gradient,) = torch.autograd.grad(expected, x, seed)
    with DetachedParameters():
        found = layer(x)
    (gradient,) = torch.autograd.grad(found, x, seed)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
    is_constant = "eps" in settings or not settings
    assert (type(found.grad_fn).__name__ == "AddcmulBackward0") == is_constant


def test_batch_norm_of_another_dtype_is_unchanged():
    layer = nn.BatchNorm2d(3).eval()
    with DetachedParameters():
        found = layer(torch.randn(2, 3, 5, 4, dtype=torch.bfloat16, requires_grad=True))
    assert found.dtype == torch.bfloat16


def test_batch_norm_in_training_updates_its_statistics():
    layer = nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    with DetachedParameters():
        found = layer(x)
    assert "BatchNorm" in type(found.grad_fn).__name__
    assert layer.num_batches_tracked == 1

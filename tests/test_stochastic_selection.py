"""Stochastic hidden unit selection: each form compared with a loop over windows, and the masks."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.stochastic_selection import expanded_convolution, whole_expansion
from dcsm_attr import DistinctClassSaliency
from dcsm_attr.models import stochastic
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork
from dcsm_attr.models.stochastic import (
    StochasticSelection,
    gathered_convolution,
    selected_convolution,
    selection_masks,
    shifted_convolution,
    transpose_masks,
    use_generator,
)

FORMS = [shifted_convolution, gathered_convolution]


def draw(seed, count=2, size=(5, 7), window=3, rate=0.5, **options):
    with use_generator(torch.Generator().manual_seed(seed)):
        return selection_masks(count, size, window, rate, **options)


def problem(seed=0, count=2, channels=4, classes=3, size=(5, 7), window=3, rate=0.5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, *size, dtype=torch.float64, generator=generator)
    weight = torch.randn(classes, channels, window, window, dtype=torch.float64, generator=generator)
    return x, weight, draw(seed, count, size, window, rate)


def window_by_window(x, weight, masks):
    """The definition: each window is copied, its dropped cells are set to zero, and the rest is multiplied."""
    count, channels, height, width = x.shape
    window = weight.shape[-1]
    reach = window // 2
    result = torch.zeros(count, len(weight), height, width, dtype=x.dtype)
    for n in range(count):
        for row in range(height):
            for column in range(width):
                units = torch.zeros(channels, window, window, dtype=x.dtype)
                for i in range(window):
                    for j in range(window):
                        y, z = row + i - reach, column + j - reach
                        if masks[n, i * window + j, row, column] and 0 <= y < height and 0 <= z < width:
                            units[:, i, j] = x[n, :, y, z]
                result[n, :, row, column] = (weight * units).sum(dim=(1, 2, 3))
    return result


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "window"), [((5, 7), 3), ((4, 3), 5), ((1, 1), 3), ((6, 2), 1), ((3, 3), 9)])
def test_each_form_equals_the_loop_over_windows(form, size, window):
    for rate in (0.0, 0.4, 0.9, 1.0):
        x, weight, masks = problem(size=size, window=window, rate=rate)
        torch.testing.assert_close(form(x, weight, masks), window_by_window(x, weight, masks), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 5]), st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_all_forms_agree_for_any_mask_and_size(seed, height, width, window, rate):
    x, weight, masks = problem(seed, size=(height, width), window=window, rate=rate)
    # Also masks that drop a center.
    masks = masks & (torch.rand(masks.shape, generator=torch.Generator().manual_seed(seed)) < 0.8)
    expected = window_by_window(x, weight, masks)
    for form in (*FORMS, lambda *given: selected_convolution(*given, rate)):
        torch.testing.assert_close(form(x, weight, masks), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradients_of_each_form_are_right(form):
    x, weight, masks = problem(size=(3, 4))
    assert torch.autograd.gradcheck(lambda a, b: form(a, b, masks), (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_gathering_computes_only_the_requested_gradient(needed):
    x, weight, masks = problem()
    x.requires_grad_(needed[0])
    weight.requires_grad_(needed[1])
    gradient = {}
    for form in (gathered_convolution, shifted_convolution):
        (gradient[form],) = torch.autograd.grad(form(x, weight, masks).square().sum(), x if needed[0] else weight)
    torch.testing.assert_close(*gradient.values(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("expansion", [whole_expansion, expanded_convolution])
def test_the_paper_s_expansion_gives_the_same(expansion):
    given = problem(window=5)
    torch.testing.assert_close(shifted_convolution(*given), expansion(*given), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_dropped_is_the_padded_convolution_and_all_dropped_the_center(form):
    x, weight, _ = problem(window=5)
    whole = form(x, weight, draw(0, window=5, rate=0.0))
    torch.testing.assert_close(whole, F.conv2d(x, weight, padding=2), rtol=1e-12, atol=1e-12)
    center = form(x, weight, draw(0, window=5, rate=1.0))
    torch.testing.assert_close(center, F.conv2d(x, weight[:, :, 2:3, 2:3]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 150, 10_000])
def test_chunks_give_the_same(chunk_size, monkeypatch):
    x, weight, masks = problem(count=3, classes=4)
    expected = window_by_window(x, weight, masks)
    monkeypatch.setattr(stochastic, "_CHUNK_SIZE", chunk_size)
    torch.testing.assert_close(shifted_convolution(x, weight, masks), expected, rtol=1e-12, atol=1e-12)


def test_transposed_masks_by_hand():
    # A row of three pixels. The window at the right keeps all, the one in the middle its right cell, the left one none.
    masks = torch.zeros(1, 9, 1, 3, dtype=torch.bool)
    masks[0, 3:6, 0, 2] = True
    masks[0, 5, 0, 1] = True
    seen = transpose_masks(masks)
    # As its left cell, the right window keeps the middle pixel; as its center, the right one. The right pixel is kept
    # as right cell by the middle window. The right window's own right cell lies outside.
    assert seen.nonzero().tolist() == [[0, 3, 0, 1], [0, 4, 0, 2], [0, 5, 0, 2]]


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_transposed_mask_tells_which_windows_keep_a_pixel(seed):
    masks = draw(seed, size=(4, 5), window=5)
    seen = transpose_masks(masks)
    for n, cell, row, column in masks.nonzero().tolist():
        y, z = row + cell // 5 - 2, column + cell % 5 - 2
        if 0 <= y < 4 and 0 <= z < 5:
            assert seen[n, cell, y, z]
    inside = F.unfold(torch.ones(1, 1, 4, 5), 5, padding=2).view(1, 25, 4, 5).bool()
    assert seen.sum() == (masks & inside).sum()


# The masks.


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9, 1.0])
def test_the_center_is_never_dropped_and_the_others_at_the_rate(rate):
    masks = draw(1, count=4, size=(41, 41), window=9, rate=rate)
    assert masks[:, 40].all()
    others = torch.cat([masks[:, :40], masks[:, 41:]], dim=1)
    # Five standard deviations of the mean.
    assert abs(others.double().mean().item() - (1 - rate)) <= 5 * math.sqrt(rate * (1 - rate) / others.numel())


def test_ordinary_dropout_drops_centers_too():
    masks = draw(1, count=4, size=(41, 41), rate=0.9, keep_center=False)
    assert 0.06 < masks[:, 4].double().mean() < 0.14


def test_masks_of_windows_and_images_are_independent():
    seen = transpose_masks(draw(0, size=(41, 41), window=9, rate=0.5))
    as_center_of_the_next = torch.cat([seen[:, 39, :, 1:], seen[:, 41, :, :-1]]).double()
    assert 0.45 < as_center_of_the_next.mean() < 0.55
    assert 0.45 < (seen[0, :40] ^ seen[1, :40])[:, 4:-4, 4:-4].double().mean() < 0.55


def test_many_masks_are_those_drawn_one_by_one():
    together = draw(3, count=5)
    with use_generator(torch.Generator().manual_seed(3)):
        apart = torch.cat([selection_masks(1, (5, 7), 3, 0.5) for _ in range(5)])
    assert torch.equal(together, apart)


def test_use_generator_leaves_the_global_generator_unchanged():
    before = torch.get_rng_state()
    draw(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    from_global = selection_masks(1, (3, 3), 3, 0.5)
    torch.manual_seed(7)
    assert torch.equal(selection_masks(1, (3, 3), 3, 0.5), from_global)


def test_the_generator_is_reset_after_an_exception():
    with pytest.raises(KeyError), use_generator(torch.Generator()):
        raise KeyError
    before = torch.get_rng_state()
    selection_masks(1, (3, 3), 3, 0.5)
    assert not torch.equal(torch.get_rng_state(), before)


# The layer.


def test_the_layer_is_the_selection_plus_a_bias():
    layer = StochasticSelection(4, 3, window=3, rate=0.5)
    x = torch.randn(2, 4, 5, 7)
    with use_generator(torch.Generator().manual_seed(0)):
        scores = layer(x)
    expected = window_by_window(x.double(), layer.weight.double(), draw(0)) + layer.bias.double()[:, None, None]
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_it_drops_in_training_and_in_evaluation(training):
    layer = StochasticSelection(4, 3, window=3).train(training)
    x = torch.randn(1, 4, 9, 9)
    assert not torch.equal(layer(x), layer(x))


def test_without_dropout_it_is_an_ordinary_convolution():
    layer = StochasticSelection(4, 3, window=5, rate=0.0)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=2))


@pytest.mark.parametrize("keep_center", [True, False])
def test_the_mean_over_passes_is_the_convolution_with_weights_times_their_probability(keep_center):
    layer = StochasticSelection(2, 1, window=3, rate=0.5, keep_center=keep_center).double()
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    with torch.no_grad(), use_generator(torch.Generator().manual_seed(0)):
        passes = layer(x.expand(4000, -1, -1, -1))
    share = torch.full((3, 3), 0.5, dtype=torch.float64)
    if keep_center:
        share[1, 1] = 1.0
    expected = F.conv2d(x, layer.weight * share, layer.bias, padding=1)[0]
    errors = (passes.mean(dim=0) - expected) / (passes.std(dim=0) / math.sqrt(len(passes)))
    assert errors.abs().max() < 5


def test_the_gradient_of_a_training_step_reaches_weights_bias_and_features():
    for rate in (0.3, 0.9):
        layer = StochasticSelection(3, 2, window=3, rate=rate).double()
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)

        def scores(x, weight, bias, layer=layer):
            with use_generator(torch.Generator().manual_seed(5)):
                return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

        assert torch.autograd.gradcheck(scores, (x, layer.weight, layer.bias))


def test_it_works_under_autocast_and_in_other_number_types():
    x = torch.randn(1, 4, 5, 5)
    for rate in (0.5, 0.9):
        layer = StochasticSelection(4, 3, window=3, rate=rate)
        results = []
        for context, features, module in (
            (torch.autocast("cpu", enabled=False), x, layer),
            (torch.autocast("cpu", torch.bfloat16), x.bfloat16(), layer),
            (torch.autocast("cpu", enabled=False), x.bfloat16(), copy.deepcopy(layer).bfloat16()),
        ):
            with context, use_generator(torch.Generator().manual_seed(0)):
                results.append(module(features).float())
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0.02, atol=0.02)


def test_the_layer_can_be_copied_pickled_and_loaded():
    layer = StochasticSelection(4, 3, window=3, rate=0.7)
    x = torch.randn(1, 4, 5, 5)
    fresh = StochasticSelection(4, 3, window=3, rate=0.7)
    fresh.load_state_dict(layer.state_dict())
    with use_generator(torch.Generator().manual_seed(0)):
        expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        with use_generator(torch.Generator().manual_seed(0)):
            assert torch.equal(other(x), expected)


def test_a_network_with_the_layer_is_explained_like_any_other():
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1))

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = backbone

        def forward(self, x):
            return {"map": self.body(x).relu()}

    network = ScoreMapNetwork(Backbone(), nn.Sequential(StochasticSelection(8, 4, window=3))).eval()
    x = torch.randn(2, 3, 12, 12)
    method = DistinctClassSaliency(network, layer="backbone.body.3", scales=(1.0,))
    with use_generator(torch.Generator().manual_seed(0)):
        first, second = method.class_maps(x, [0, 1, 2]).maps, method.class_maps(x, [0, 1, 2]).maps
    with use_generator(torch.Generator().manual_seed(0)):
        again = method.class_maps(x, [0, 1, 2]).maps
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_bad_arguments():
    with pytest.raises(ValueError, match="window must be odd, so that it has a center; got 4"):
        StochasticSelection(4, 3, window=4)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        StochasticSelection(4, 3, rate=1.5)
    with pytest.raises(ValueError, match="window must be odd"):
        selection_masks(1, (3, 3), 2, 0.5)
    assert "rate=0.9, keep_center=True" in repr(StochasticSelection(4, 3))

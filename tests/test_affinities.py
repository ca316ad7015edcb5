"""Affinities, compared with values by hand, a loop over pairs in float64, and finite differences."""

import math

import pytest
import torch
from affinity_reference import offsets_within
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.comparison import measure_peak_memory
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, pair_mask

FIVE = neighbor_offsets(5)


def by_pairs(features, offsets, mean=False):
    """One pair after the other, in float64."""
    images, channels, height, width = features.shape
    result = torch.zeros(images, len(offsets), height, width, dtype=torch.float64)
    for n in range(images):
        for p, (dy, dx) in enumerate(offsets):
            for y in range(max(0, -dy), min(height, height - dy)):
                for x in range(max(0, -dx), min(width, width - dx)):
                    here, there = features[n, :, y, x].tolist(), features[n, :, y + dy, x + dx].tolist()
                    distance = math.fsum(abs(a - b) for a, b in zip(here, there, strict=True))
                    result[n, p, y, x] = math.exp(-distance / (channels if mean else 1))
    return result


def by_autograd(features, offsets):
    """The same with differences that autograd stores, of rolled maps, masked where the roll wraps around."""
    present = pair_mask(*features.shape[2:], offsets)
    rolled = [features.roll((-dy, -dx), (2, 3)) for dy, dx in offsets]
    distances = torch.stack([(features - other).abs().sum(dim=1) for other in rolled], dim=1)
    return torch.where(present, torch.exp(-distances), 0)


def test_by_hand():
    """Two channels; from the corner 1 + 2 to the right, 0.5 + 0 below."""
    features = torch.tensor([[[[0.0, 1.0], [0.5, 0.0]], [[0.0, -2.0], [0.0, 0.0]]]])
    right, below_left, below, below_right = affinities(features, neighbor_offsets(2))[0]
    torch.testing.assert_close(right, torch.tensor([[math.exp(-3), 0], [math.exp(-0.5), 0]]))
    torch.testing.assert_close(below_left, torch.tensor([[0, math.exp(-2.5)], [0, 0]]))
    torch.testing.assert_close(below, torch.tensor([[math.exp(-0.5), math.exp(-3)], [0, 0]]))
    torch.testing.assert_close(below_right, torch.tensor([[1.0, 0], [0, 0]]))
    of_the_mean = affinities(features, neighbor_offsets(2), norm="mean")
    torch.testing.assert_close(of_the_mean[0, 0, 0, 0].item(), math.exp(-1.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_equals_a_loop_over_pairs(norm):
    features = torch.randn(2, 5, 6, 7)
    result = affinities(features, FIVE, norm)
    assert result.shape == (2, 34, 6, 7)
    expected = by_pairs(features, offsets_within(5), mean=norm == "mean")
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-7)
    exact = affinities(features.double(), FIVE, norm)
    torch.testing.assert_close(exact, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_gradients_are_exact(norm):
    features = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda f: affinities(f, neighbor_offsets(3), norm), features)


def test_gradients_equal_those_of_autograd():
    features = torch.randn(2, 4, 9, 8, dtype=torch.float64, requires_grad=True)
    # Between equal neighbors the derivative is not defined; autograd takes zero.
    with torch.no_grad():
        features[:, :, 3:5, 2:6] = features[:, :, 3:4, 2:3]
    seeds = torch.randn(2, 34, 9, 8, dtype=torch.float64)
    (ours,) = torch.autograd.grad(affinities(features, FIVE), features, seeds)
    (expected,) = torch.autograd.grad(by_autograd(features, FIVE), features, seeds)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_gradients_come_only_from_pairs_inside_the_map():
    features = torch.randn(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    outside = (~pair_mask(4, 6, FIVE)).double()[None]
    (gradient,) = torch.autograd.grad(affinities(features, FIVE), features, outside)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process's memory, not the device's")
def test_training_stores_no_differences():
    """Those of all 34 offsets would be 34 times the features, which are 16 MiB."""
    features = torch.randn(4, 256, 64, 64, requires_grad=True)

    def step():
        affinities(features, FIVE, "mean").sum().backward()

    assert measure_peak_memory(step) < 4 * features.nbytes
    assert features.grad.abs().sum() > 0


def test_features_and_their_graph_are_left_unchanged():
    features = torch.randn(1, 3, 5, 5)
    before, version = features.clone(), features._version
    assert not affinities(features, FIVE).requires_grad
    assert torch.equal(features, before)
    assert features._version == version


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    features = (torch.randn(1, 64, 6, 6) / 100).to(dtype).requires_grad_()
    result = affinities(features, FIVE)
    assert result.dtype == torch.float32
    assert torch.equal(result, affinities(features.float(), FIVE))
    result.sum().backward()
    assert features.grad.dtype == dtype
    assert features.grad.abs().sum() > 0


def test_no_offsets():
    features = torch.randn(2, 3, 4, 5, requires_grad=True)
    result = affinities(features, ())
    assert result.shape == (2, 0, 4, 5)
    result.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


@st.composite
def _features(draw):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    images, channels, height, width = (draw(st.integers(1, most)) for most in (3, 4, 8, 8))
    return torch.randn(images, channels, height, width) * draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e30]))


@given(_features(), st.integers(1, 5), st.sampled_from(["sum", "mean"]))
@settings(max_examples=60, deadline=None)
def test_values_lie_between_zero_and_one(features, radius, norm):
    offsets = neighbor_offsets(radius)
    result = affinities(features, offsets, norm)
    assert ((result >= 0) & (result <= 1)).all(), "NaN is neither"
    assert (result[:, ~pair_mask(*features.shape[2:], offsets)] == 0).all()
    alike = affinities(torch.zeros_like(features), offsets, norm)
    assert torch.equal(alike, pair_mask(*features.shape[2:], offsets).float().expand_as(alike))


@given(_features(), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_images_are_independent(features, radius):
    offsets = neighbor_offsets(radius)
    alone = torch.cat([affinities(image[None], offsets) for image in features])
    assert torch.equal(affinities(features, offsets), alone)


@given(_features())
@settings(max_examples=40, deadline=None)
def test_a_mirrored_map_has_mirrored_affinities(features):
    right, below_left, below, below_right = affinities(features, neighbor_offsets(2)).unbind(1)
    mirrored = affinities(features.flip(3), neighbor_offsets(2)).unbind(1)
    # Of a pair in one row the source becomes the neighbor.
    torch.testing.assert_close(mirrored[0][..., :-1], right.flip(2)[..., 1:])
    for ours, theirs in zip(mirrored[1:], (below_right, below, below_left), strict=True):
        torch.testing.assert_close(ours, theirs.flip(2))


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (torch.rand(3, 4, 5), {}, ValueError, r"\(N, D, h, w\).*got \(3, 4, 5\)"),
        (torch.rand(2, 0, 4, 5), {}, ValueError, "none of them 0"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int64), {}, TypeError, "floating point, got torch.int64"),
        (torch.rand(1, 3, 4, 5), {"norm": "max"}, ValueError, "'sum', 'mean'; got 'max'"),
    ],
)
def test_bad_input(features, options, error, message):
    with pytest.raises(error, match=message):
        affinities(features, FIVE, **options)

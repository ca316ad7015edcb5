"""Tests of Eq. 3, 4, 5 and 7: values by hand, float64 references written from the paper, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.attribution import maps as eq


def _eq4(maps):
    """Eq. 4, term by term, for one image: (K, H, W) float64."""
    total = np.zeros_like(maps)
    for c in range(len(maps)):
        for other in range(len(maps)):
            if other != c:
                total[c] += np.maximum(maps[c] - maps[other], 0)
    return total


def _random_maps(seed, classes, height, width):
    return torch.rand(2, classes, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_subtract_by_hand():
    maps = torch.tensor([[[[3.0]], [[1.0]], [[0.0]]]])
    # 3: (3 - 1) + (3 - 0); 1: (1 - 0); 0: nothing.
    assert eq.subtract(maps).flatten().tolist() == [5.0, 1.0, 0.0]


@pytest.mark.parametrize("classes", [1, 2, 3, 7, eq._SORT_FROM, eq._SORT_FROM + 9])
def test_subtract_equals_eq4(classes):
    maps = _random_maps(classes, classes, 5, 6)
    expected = np.stack([_eq4(one.numpy()) for one in maps])
    np.testing.assert_allclose(eq.subtract(maps).numpy(), expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_both_forms_of_eq4_agree_also_with_ties(seed, classes, ties):
    maps = _random_maps(seed, classes, 4, 3)
    if ties:
        maps = (maps * 4).floor()
    torch.testing.assert_close(eq._contrast_sorted(maps), eq._contrast_pairs(maps), rtol=0, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, eq._SORT_FROM])
def test_subtract_is_exactly_zero_where_maps_agree(classes):
    # 0.1 is not exact in binary: a prefix-sum form leaves rounding residue here, which division by the maximum blows
    # up.
    maps = torch.full((1, classes, 3, 3), 0.1)
    assert eq.subtract(maps).count_nonzero() == 0


@pytest.mark.parametrize("classes", [3, eq._SORT_FROM])
def test_subtract_ignores_unused_slots(classes):
    maps = _random_maps(1, classes, 4, 4)
    valid = torch.ones(2, classes, dtype=torch.bool)
    valid[0, 1] = False
    result = eq.subtract(maps, valid)
    kept = [c for c in range(classes) if c != 1]
    torch.testing.assert_close(result[:1, kept], eq.subtract(maps[:1, kept]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result[1], eq.subtract(maps[1:])[0], rtol=1e-12, atol=1e-12)
    assert result[0, 1].count_nonzero() == 0


@given(st.integers(0, 10_000), st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_subtract_follows_a_permutation_of_the_classes(seed, order):
    maps = _random_maps(seed, 4, 3, 3)
    torch.testing.assert_close(eq.subtract(maps[:, list(order)]), eq.subtract(maps)[:, list(order)], rtol=1e-12, atol=0)


def test_channel_maxima_by_hand():
    gradient = torch.tensor([[[[-5.0, 1.0]], [[2.0, -0.5]]]])
    assert eq.absolute_channel_maximum(gradient).tolist() == [[[[5.0, 1.0]]]]
    assert eq.signed_channel_maximum(gradient).tolist() == [[[[2.0, 1.0]]]]


def test_channel_maxima_of_a_batch_are_those_of_each_image():
    gradient = torch.randn(3, 5, 4, 6)
    for reduction in (eq.absolute_channel_maximum, eq.signed_channel_maximum):
        result = reduction(gradient)
        assert result.shape == (3, 1, 4, 6)
        assert torch.equal(result, torch.cat([reduction(image[None]) for image in gradient]))


def test_reducing_before_upsampling_bounds_the_paper_from_above_and_agrees_on_the_grid():
    gradient = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    before = eq.upsample(eq.absolute_channel_maximum(gradient), (12, 15))
    after = eq.absolute_channel_maximum(eq.upsample(gradient, (12, 15)))
    assert (before - after).min() >= -1e-12
    # With half-pixel centers and a factor of three, every third pixel from the second is a position of the layer.
    torch.testing.assert_close(before[..., 1::3, 1::3], after[..., 1::3, 1::3], rtol=0, atol=1e-12)


def _half_pixel(row, length):
    """Bilinear weights at half-pixel centers, edges repeated: what MATLAB's imresize does when it enlarges."""
    scale = len(row) / length
    result = []
    for i in range(length):
        position = (i + 0.5) * scale - 0.5
        low = math.floor(position)
        weight = position - low
        a, b = (row[min(max(j, 0), len(row) - 1)] for j in (low, low + 1))
        result.append(a * (1 - weight) + b * weight)
    return result


def test_upsample_has_half_pixel_centers():
    row = [0.0, 3.0, 1.0, 7.0]
    result = eq.upsample(torch.tensor(row, dtype=torch.float64).view(1, 1, 1, 4), (1, 9))
    np.testing.assert_allclose(result.flatten().numpy(), _half_pixel(row, 9), atol=1e-12)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 40), st.integers(1, 33))
@settings(max_examples=60, deadline=None)
def test_upsample_from_corner_equals_the_gather_formula(height, width, rows, columns):
    maps = torch.rand(1, 2, height, width, dtype=torch.float64)
    source = maps[0].numpy()
    expected = np.empty((2, rows, columns))
    for y in range(rows):
        for x in range(columns):
            sy, sx = y * height / rows, x * width / columns
            y0, x0 = y * height // rows, x * width // columns
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = source[:, y0, x0] * (1 - (sx - x0)) + source[:, y0, x1] * (sx - x0)
            bottom = source[:, y1, x0] * (1 - (sx - x0)) + source[:, y1, x1] * (sx - x0)
            expected[:, y, x] = top * (1 - (sy - y0)) + bottom * (sy - y0)
    np.testing.assert_allclose(eq.upsample_from_corner(maps, (rows, columns))[0].numpy(), expected, atol=1e-12)


def test_upsample_from_corner_of_a_ramp_is_a_shifted_ramp():
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    result = eq.upsample_from_corner(ramp, (12, 12))[0, 0, 0]
    assert result.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5]


def test_divide_by_maximum_by_hand():
    maps = torch.tensor([[[[2.0, 4.0]], [[0.0, 0.0]], [[-3.0, -1.0]], [[1e-42, 0.0]]]])
    # A map of zeros, a map without a positive value, and one of subnormal numbers become zero.
    assert eq.divide_by_maximum(maps).tolist() == [[[[0.5, 1.0]], [[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]]


@given(st.integers(0, 10_000), st.floats(1e-30, 1e30))
@settings(max_examples=40, deadline=None)
def test_squash_does_not_depend_on_the_scale_of_gradients(seed, factor):
    maps = _random_maps(seed, 3, 4, 4)
    torch.testing.assert_close(eq.squash(maps * factor, 3.0), eq.squash(maps, 3.0), rtol=1e-9, atol=0)
    assert float(eq.squash(maps, 3.0).amax()) == pytest.approx(math.tanh(3.0))


def test_matconvnet_differences_equal_dcsm_m():
    """The release's subtraction, with the guard, in numpy."""
    maps = _random_maps(3, 4, 6, 5)
    maps[0, 2] = maps[0, 0] + 0.5  # Class 0 is nowhere above class 2: its pair must be skipped.
    expected = np.zeros(maps.shape)
    for n, one in enumerate(maps.numpy()):
        for t in range(4):
            for other in range(4):
                if other == t:
                    continue
                difference = one[t] - one[other]
                if difference.max() <= 0:
                    continue
                squashed = np.tanh(3 * difference / difference.max())
                squashed[squashed <= 0] = 1e-20
                expected[n, t] += squashed
    np.testing.assert_allclose(eq.matconvnet_contrast(maps, 3.0).numpy() * 3, expected, rtol=1e-12, atol=1e-25)


def test_the_defect_that_the_matconvnet_guard_removes_is_real():
    """The release divides by a negative maximum: the pair then adds nearly one everywhere."""
    lower, higher = np.full((3, 3), 0.2), np.full((3, 3), 0.9)
    difference = lower - higher
    literal = np.tanh(3 * difference / difference.max())
    assert literal.min() == pytest.approx(math.tanh(3))
    maps = torch.tensor(np.stack([lower, higher]))[None]
    assert eq.matconvnet_contrast(maps, 3.0)[0, 0].count_nonzero() == 0


def test_caffe_differences_equal_the_layers_of_the_release():
    """SubFix, MaxNormalizeFix (prior 3), TanH, SubStackFix, MaxNormalizeFix, TanH, in numpy."""
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    maps[1, 2] = maps[1, 0] + maps[1].abs().max()  # a pair whose maximum is not positive
    expected = np.zeros(maps.shape)
    for n, one in enumerate(maps.numpy()):
        for e in range(3):
            stacked = np.zeros(one[0].shape)
            for other in range(3):
                difference = one[e] - one[other]
                if other != e and difference.max() > 0:
                    stacked += np.tanh(3 * difference / difference.max())
            expected[n, e] = np.tanh(3 * stacked / stacked.max()) if stacked.max() > 0 else 0
    np.testing.assert_allclose(eq.caffe_contrast(maps, 3.0).numpy(), expected, rtol=1e-11, atol=1e-12)


def test_matconvnet_differences_by_hand():
    """One pair of classes; at the last pixel they agree, which is no victory."""
    maps = torch.tensor([[[[4.0, 1.0, 2.0]], [[2.0, 2.0, 2.0]]]], dtype=torch.float64)
    result = eq.matconvnet_contrast(maps, 3.0)
    # Class 0 is ahead by 2, -1 and 0, class 1 by -2, 1 and 0; each is divided by its maximum.
    expected = [math.tanh(3), 1e-20, 1e-20, 1e-20, math.tanh(3), 1e-20]
    assert result.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=0)
    assert eq.matconvnet_contrast(torch.ones(1, 2, 3, 3), 3.0).count_nonzero() == 0


def test_no_tensor_is_created_on_the_default_device():
    maps, many = _random_maps(7, 3, 4, 5), _random_maps(7, eq._SORT_FROM, 4, 5)

    def results():
        return [
            eq.upsample_from_corner(maps, (9, 11)),
            eq.subtract(many),
            eq.matconvnet_contrast(maps, 3.0),
            eq.caffe_contrast(maps, 3.0),
        ]

    expected = results()
    # A device whose tensors hold no values.
    with torch.device("meta"):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("differences", [eq.matconvnet_contrast, eq.caffe_contrast])
def test_pairwise_variants_ignore_unused_slots(differences):
    maps = _random_maps(5, 4, 4, 4)
    valid = torch.tensor([[True, True, False, True], [True] * 4])
    result = differences(maps, 3.0, valid)
    torch.testing.assert_close(result[:1, [0, 1, 3]], differences(maps[:1, [0, 1, 3]], 3.0), rtol=1e-12, atol=1e-25)
    torch.testing.assert_close(result[1:], differences(maps[1:], 3.0), rtol=1e-12, atol=1e-25)


def test_background_by_hand():
    maps = torch.tensor([[[[0.2, 0.9]], [[0.5, 0.1]]]])
    assert eq.background(maps, torch.tensor([[True, True]])).flatten().tolist() == pytest.approx([0.5, 0.1])
    assert eq.background(maps, torch.tensor([[True, False]])).flatten().tolist() == pytest.approx([0.8, 0.1])
    assert eq.background(maps, torch.tensor([[False, False]])).flatten().tolist() == [1.0, 1.0]


# Where m = (1 - m)^g: 2 m = 1; m^2 - 3 m + 1 = 0; m^2 + m - 1 = 0.
@pytest.mark.parametrize(("exponent", "edge"), [(1.0, 0.5), (2.0, (3 - 5**0.5) / 2), (0.5, (5**0.5 - 1) / 2)])
def test_the_exponent_sets_where_the_foreground_begins(exponent, edge):
    maps = torch.tensor([[[[edge - 1e-3, edge, edge + 1e-3]]]], dtype=torch.float64)
    present = torch.tensor([[True]])
    assert eq.background(maps, present, exponent)[..., 1].item() == pytest.approx(edge, abs=1e-12)
    labels = eq.label_probabilities(maps, present, exponent)[0, :, 0]
    assert labels[:, 1].tolist() == pytest.approx([0.5, 0.5])
    assert labels[:, 0].argmax() == 0
    assert labels[:, 2].argmax() == 1


def test_the_background_with_an_exponent_by_hand():
    maps = torch.tensor([[[[0.2, 0.9, 1.0, 0.0]], [[0.5, 0.1, 0.3, 0.0]]]])
    both = torch.tensor([[True, True]])
    assert eq.background(maps, both, 2.0).flatten().tolist() == pytest.approx([0.25, 0.01, 0.0, 1.0])
    assert eq.background(maps, both, 0.5).flatten().tolist() == pytest.approx([0.5**0.5, 0.1**0.5, 0.0, 1.0])
    assert eq.background(maps, torch.tensor([[False, False]]), 4.0).flatten().tolist() == [1.0] * 4
    labels = eq.label_probabilities(maps, both, 2.0)[0, :, 0, 0]
    assert labels.tolist() == pytest.approx([0.25 / 0.95, 0.2 / 0.95, 0.5 / 0.95])


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_an_exponent_of_one_is_eq7_to_the_last_bit(seed):
    maps, flags = _random_maps(seed, 3, 4, 4), torch.tensor([[True, False, True]] * 2)
    expected = 1 - torch.maximum(maps[:, :1], maps[:, 2:])
    assert torch.equal(eq.background(maps, flags), expected)
    assert torch.equal(eq.background(maps, flags, 1.0), expected)
    assert torch.equal(eq.label_probabilities(maps, flags, 1.0), eq.label_probabilities(maps, flags))


@given(st.integers(0, 10_000), st.floats(0.1, 20), st.floats(0.1, 20))
@settings(max_examples=40, deadline=None)
def test_a_larger_exponent_gives_more_foreground(seed, first, second):
    maps, flags = _random_maps(seed, 3, 4, 4), torch.ones(2, 3, dtype=torch.bool)
    smaller, larger = (eq.label_probabilities(maps, flags, g).argmax(1) for g in sorted((first, second)))
    assert torch.equal(larger[smaller > 0], smaller[smaller > 0]), "what is foreground keeps its class"
    assert (larger > 0).sum() >= (smaller > 0).sum()


@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_label_probabilities_are_a_distribution_with_the_same_winner(seed, foreground):
    maps = _random_maps(seed, 3, 4, 4)
    flags = torch.tensor([foreground] * 2)
    labels = eq.label_probabilities(maps, flags)
    torch.testing.assert_close(labels.sum(1), torch.ones(2, 4, 4, dtype=torch.float64))
    assert labels.min() >= 0
    assert labels[:, 1:][~flags].count_nonzero() == 0
    unnormalized = torch.cat([eq.background(maps, flags), maps * flags[:, :, None, None]], dim=1)
    assert torch.equal(labels.argmax(1), unnormalized.argmax(1))

"""The random walk, compared with dense squared matrices in float64 as in the released code, and its properties."""

import math
import warnings

import numpy as np
import pytest
import torch
from affinity_reference import dense_walk, dense_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, pair_mask
from dcsm_attr.wsss import random_walk as module
from dcsm_attr.wsss.random_walk import apply_power, chebyshev_coefficients, random_walk, transition_matrix

FIVE = neighbor_offsets(5)


def smooth(images, height, width, dtype=torch.float64):
    """Affinities of smooth features, like those of real images, and maps."""
    coarse = torch.randn(images, 6, 4, 4, dtype=dtype)
    features = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") / 2
    return torch.rand(images, 3, height, width, dtype=dtype), affinities(features, FIVE)


def dense(matrix, offsets):
    """The public table of probabilities as a matrix, entry by entry."""
    entries, height, width = matrix.shape
    steps = [*((-dy, -dx) for dy, dx in reversed(offsets)), (0, 0), *offsets]
    result = np.zeros((height * width, height * width))
    for k in range(entries):
        dy, dx = steps[k]
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    result[y * width + x, (y + dy) * width + x + dx] += matrix[k, y, x].item()
                else:
                    assert matrix[k, y, x] == 0, "a step out of the map"
    return result


def test_transitions_by_hand():
    """Two positions of affinity a: from each, 1 / (1 + a^beta) to stay."""
    matrix = transition_matrix(torch.tensor([[[[0.5, 0.9]]]]), ((0, 1),), beta=2)
    torch.testing.assert_close(matrix[0, :, 0], torch.tensor([[0, 0.2], [0.8, 0.8], [0.2, 0]]))


@pytest.mark.parametrize("border", ["full", "released"])
def test_transitions_are_those_of_the_symmetric_weights(border):
    _, pairs = smooth(1, 11, 13)
    matrix = transition_matrix(pairs, FIVE, beta=3, border=border)
    assert (matrix.sum(dim=1) - 1).abs().max() < 1e-12
    present = pairs * pair_mask(11, 13, FIVE, border)
    weights = dense_weights(present[0].numpy(), FIVE, beta=3)
    np.testing.assert_allclose(dense(matrix[0], FIVE), weights / weights.sum(axis=1, keepdims=True), rtol=1e-13, atol=0)


@pytest.mark.parametrize("border", ["full", "released"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_dense_squaring(dtype, border):
    maps, pairs = smooth(2, 16, 19)
    maps, pairs = maps.to(dtype), pairs.to(dtype)
    result = random_walk(maps, pairs, FIVE, border=border)
    assert result.dtype == dtype
    present = (pairs * pair_mask(16, 19, FIVE, border)).numpy()
    expected = np.stack([dense_walk(maps[n], present[n], FIVE, 8, squarings=8) for n in range(2)])
    moved = np.abs(expected - maps.numpy()).max()
    assert moved > 0.3
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-7 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("steps", [2, 3, 7, 31, 100])
def test_numbers_of_steps_that_are_no_powers_of_two(steps):
    maps, pairs = smooth(1, 9, 8)
    transitions = dense(transition_matrix(pairs, FIVE, beta=2)[0], FIVE)
    expected = np.linalg.matrix_power(transitions, steps) @ maps[0].flatten(1).T.numpy()
    result = random_walk(maps, pairs, FIVE, beta=2, steps=steps)
    np.testing.assert_allclose(result[0].flatten(1).T, expected, rtol=0, atol=1e-13)


def test_no_steps_and_one():
    maps, pairs = smooth(2, 6, 7, torch.float32)
    assert torch.equal(random_walk(maps, pairs, FIVE, steps=0), maps)
    one = random_walk(maps[:1], pairs[:1], FIVE, steps=1)
    transitions = dense(transition_matrix(pairs[:1].double(), FIVE)[0], FIVE)
    np.testing.assert_allclose(
        one[0].flatten(1).T, transitions @ maps[0].flatten(1).T.double().numpy(), rtol=1e-6, atol=0
    )


def test_without_neighbors_nothing_moves():
    maps = torch.rand(2, 3, 4, 5)
    assert torch.equal(random_walk(maps, torch.rand(2, 0, 4, 5), ()), maps)
    # Too low for any pair of the released code.
    assert torch.equal(random_walk(maps, torch.rand(2, 34, 4, 5), FIVE, border="released"), maps)


def test_entries_below_rounding_are_not_stored():
    """Of two positions with affinity a, a to the eighth is the share that moves in one step."""
    stored = []
    original = module.build_csr_matrix

    def noted(*table):
        stored.append(original(*table))
        return stored[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_csr_matrix", noted)
        for affinity in (1e-1, 1e-2):
            random_walk(torch.rand(1, 1, 1, 2), torch.full((1, 1, 1, 2), affinity), ((0, 1),))
    assert [matrix.values().numel() for matrix in stored] == [4, 2]


def test_weak_affinities_to_a_large_power_vanish():
    maps, pairs = smooth(1, 8, 8, torch.float32)
    assert torch.equal(random_walk(maps, pairs.clamp(max=0.99), FIVE, beta=1e4), maps)


def test_isolated_positions_of_the_released_border_keep_their_values():
    maps, pairs = torch.rand(1, 2, 12, 14), torch.ones(1, 34, 12, 14)
    kept = (random_walk(maps, pairs, FIVE, border="released") == maps).all(dim=1)
    assert kept.sum() == 10
    assert kept[0, 0, 0]
    assert not (random_walk(maps, pairs, FIVE) == maps).any()


def test_blocks_without_affinity_do_not_mix():
    maps = torch.zeros(1, 1, 10, 12)
    maps[..., :6] = torch.rand(1, 1, 10, 6)
    # Far apart in the left and right half: exp(-50) to the eighth.
    features = torch.randn(1, 4, 10, 12) / 10
    features[:, 0, :, 6:] += 50
    result = random_walk(maps, affinities(features, FIVE), FIVE)
    assert (result[..., 6:] == 0).all()
    left = random_walk(maps[..., :6], affinities(features[..., :6], FIVE), FIVE)
    torch.testing.assert_close(result[..., :6], left, rtol=0, atol=1e-6)
    assert result[..., :6].std() < maps[..., :6].std() / 10


def test_perfect_affinities_sharpen_a_blurred_map():
    """An object on a background, with a map that is blurred across the outline and has holes."""
    truth = torch.zeros(24, 28, dtype=torch.bool)
    truth[6:18, 7:20] = True
    blurred = torch.nn.functional.avg_pool2d(truth[None, None].float(), 9, stride=1, padding=4)
    blurred[..., 10:13, 12:15] = 0
    seen = blurred[0, 0] > 0.5
    features = torch.where(truth, 2.0, 0.0)[None, None] + torch.randn(1, 1, 24, 28) / 100
    walked = random_walk(blurred, affinities(features, FIVE), FIVE)[0, 0]

    def iou(labels):
        return ((labels & truth).sum() / (labels | truth).sum()).item()

    assert iou(seen) < 0.8
    assert iou(walked > walked.mean()) == 1
    # The map becomes constant inside the outline: nothing crosses it, and 24 / 2 steps reach every position.
    assert walked[truth].std() < 0.02 * blurred[0, 0][truth].std()


def test_an_images_walk(shared):
    """A smooth image, with which the rounding of float32 products would add up."""
    from PIL import Image

    path = min((shared / "images").glob("*.jpg"))
    with Image.open(path) as image:
        colors = np.asarray(image.convert("RGB").resize((24, 18))) / 64
    features = torch.from_numpy(colors).permute(2, 0, 1)[None].float()
    maps, pairs = torch.rand(1, 2, 18, 24), affinities(features, FIVE)
    expected = dense_walk(maps[0], pairs[0].numpy(), FIVE, 8, squarings=8)
    np.testing.assert_allclose(random_walk(maps, pairs, FIVE)[0], expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_equals_its_values_in_full_precision(dtype):
    maps, pairs = (values.to(dtype) for values in smooth(1, 9, 11, torch.float32))
    result = random_walk(maps, pairs, FIVE)
    assert result.dtype == dtype
    expected = random_walk(maps.double(), pairs.double(), FIVE)
    torch.testing.assert_close(result, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


def test_inputs_are_left_unchanged():
    maps, pairs = smooth(1, 7, 8, torch.float32)
    maps.requires_grad_()
    before, versions = (maps.clone(), pairs.clone()), (maps._version, pairs._version)
    result = random_walk(maps, pairs, FIVE)
    assert not result.requires_grad
    assert torch.equal(maps, before[0])
    assert torch.equal(pairs, before[1])
    assert (maps._version, pairs._version) == versions
    with torch.inference_mode():
        assert torch.equal(random_walk(maps.clone(), pairs.clone(), FIVE), result)


def test_views_give_the_same_as_copies():
    maps, pairs = smooth(2, 10, 8, torch.float32)
    mirrored, transposed = maps.flip(3)[..., ::2], pairs.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)[..., ::2]
    assert not transposed.is_contiguous()
    expected = random_walk(mirrored.clone(), transposed.clone(), FIVE)
    assert torch.equal(random_walk(mirrored, transposed, FIVE), expected)


def test_no_warning_reaches_the_user(monkeypatch):
    """PyTorch warns once per process; here the warning is reset."""
    none = torch.zeros(0, dtype=torch.int32)
    monkeypatch.setattr(module, "_warning_silenced", False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with pytest.warns(UserWarning, match="beta"):
            torch.sparse_csr_tensor(none.new_zeros(1), none, torch.zeros(0), (0, 0), check_invariants=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            filters = list(warnings.filters)
            module._silence_beta_warning()
            assert warnings.filters == filters
            torch.set_warn_always(False)
            maps, pairs = smooth(1, 5, 5, torch.float32)
            random_walk(maps, pairs, FIVE)
    finally:
        torch.set_warn_always(before)


def test_chebyshev_coefficients_by_hand():
    """x^0 = 1; x^1 = x; x^2 = (1 + T_2) / 2; x^3 = (3 x + T_3) / 4; x^4 = (3 + 4 T_2 + T_4) / 8."""
    expected = {0: [1], 1: [1], 2: [1 / 2, 1 / 2], 3: [3 / 4, 1 / 4], 4: [3 / 8, 1 / 2, 1 / 8]}
    for exponent, coefficients in expected.items():
        assert chebyshev_coefficients(exponent, 1e-15) == pytest.approx(coefficients, rel=1e-15)


@given(st.integers(0, 1500), st.sampled_from([1e-3, 1e-7, 1e-15]))
@settings(deadline=None)
def test_coefficients_are_binomial_and_the_tail_is_below_the_tolerance(exponent, tolerance):
    first = exponent % 2
    exact = [
        math.comb(exponent, (exponent - k) // 2) / 2 ** (exponent - 1) / (1 if k else 2)
        for k in range(first, exponent + 1, 2)
    ]
    ours = chebyshev_coefficients(exponent, tolerance)
    assert len(ours) <= len(exact)
    tail = math.fsum(exact[len(ours) :])
    assert tail <= tolerance
    np.testing.assert_allclose(ours, exact[: len(ours)], rtol=tolerance + 1e-12)
    assert math.fsum(ours) == pytest.approx(1, abs=1e-14)
    # No more polynomials than the bound of Sachdeva and Vishnoi, and so about sqrt(t) products.
    assert first + 2 * (len(ours) - 1) <= math.sqrt(2 * exponent * math.log(2 / tolerance)) + 2


@given(st.integers(0, 400), st.sampled_from([1e-4, 1e-7, 1e-14]))
@settings(max_examples=50, deadline=None)
def test_powers_of_numbers(exponent, tolerance):
    """On a diagonal matrix every entry is a power by itself."""
    eigenvalues = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    result = apply_power(lambda values: eigenvalues * values, torch.ones_like(eigenvalues), exponent, tolerance)
    torch.testing.assert_close(result, eigenvalues**exponent, rtol=0, atol=2 * tolerance + 1e-12)


def test_the_products_of_256_steps():
    calls = []

    def product(values):
        calls.append(1)
        return values.clone()

    start = torch.rand(3, dtype=torch.float64)
    torch.testing.assert_close(apply_power(product, start, 256, torch.finfo(torch.float32).eps), start)
    assert len(calls) == 84


@st.composite
def _problems(draw):
    torch.manual_seed(draw(st.integers(0, 10_000)))
    images, labels, height, width = (draw(st.integers(1, most)) for most in (3, 4, 9, 9))
    offsets = neighbor_offsets(draw(st.integers(1, 5)))
    pairs = torch.rand(images, len(offsets), height, width)
    kind = draw(st.sampled_from(["any", "none", "all", "one or none"]))
    if kind != "any":
        pairs = {"none": pairs * 0, "all": pairs * 0 + 1, "one or none": pairs.round()}[kind]
    maps = torch.randn(images, labels, height, width) * draw(st.sampled_from([0.0, 1e-6, 1.0, 1e4]))
    options = {
        "beta": draw(st.sampled_from([0.5, 1.0, 8.0, 100.0])),
        "steps": draw(st.sampled_from([0, 1, 2, 5, 64, 256])),
        "border": draw(st.sampled_from(["full", "released"])),
    }
    return maps, pairs, offsets, options


@given(_problems(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_maps_stay_within_their_range_and_constant_ones_as_they_are(problem, dtype):
    maps, pairs, offsets, options = problem
    maps = maps.to(dtype)
    result = random_walk(maps, pairs, offsets, **options)
    assert (result <= maps.amax(dim=(2, 3), keepdim=True)).all()
    assert (result >= maps.amin(dim=(2, 3), keepdim=True)).all()
    constant = maps.mean(dim=(2, 3), keepdim=True).expand_as(maps)
    assert torch.equal(random_walk(constant, pairs, offsets, **options), constant)


@given(_problems())
@settings(max_examples=40, deadline=None)
def test_the_stationary_mass_is_kept(problem):
    """With W symmetric, the row sums d of W weigh a map so that no step changes its sum."""
    maps, pairs, offsets, options = problem
    maps, pairs = maps.double(), pairs.double()
    result = random_walk(maps, pairs, offsets, **options)
    # T has ones over d on its diagonal.
    stay = transition_matrix(pairs, offsets, beta=options["beta"], border=options["border"])[:, len(offsets)]
    mass = (1 / stay)[:, None]
    scale = (mass * maps.abs()).sum(dim=(2, 3))
    difference = (mass * (result - maps)).sum(dim=(2, 3)).abs()
    assert (difference <= 1e-12 * scale).all()


@given(_problems())
@settings(max_examples=40, deadline=None)
def test_images_are_independent(problem):
    maps, pairs, offsets, options = problem
    alone = [random_walk(maps[n : n + 1], pairs[n : n + 1], offsets, **options) for n in range(len(maps))]
    assert torch.equal(random_walk(maps, pairs, offsets, **options), torch.cat(alone))


@given(_problems())
@settings(max_examples=30, deadline=None)
def test_a_batch_as_one_matrix_gives_the_same(problem):
    """As on an accelerator, where all images are blocks of one matrix."""
    maps, pairs, offsets, options = problem
    expected = random_walk(maps, pairs, offsets, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "device_chunks", lambda batch: [slice(0, len(batch))])
        result = random_walk(maps, pairs, offsets, **options)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-12)


@given(_problems())
@settings(max_examples=30, deadline=None)
def test_the_walk_is_linear_in_the_maps(problem):
    maps, pairs, offsets, options = problem
    maps, pairs = maps.double(), pairs.double()
    result = random_walk(maps, pairs, offsets, **options)
    total = random_walk(maps.sum(dim=1, keepdim=True), pairs, offsets, **options)
    atol = 1e-12 * maps.abs().max().item()
    torch.testing.assert_close(total, result.sum(dim=1, keepdim=True), rtol=0, atol=4 * atol)
    alone = random_walk(maps[:, :1], pairs, offsets, **options)
    torch.testing.assert_close(alone, result[:, :1], rtol=0, atol=atol)


@given(_problems())
@settings(max_examples=30, deadline=None)
def test_two_walks_equal_one_of_the_summed_steps(problem):
    maps, pairs, offsets, options = problem
    maps, pairs, steps = maps.double(), pairs.double(), options.pop("steps")
    once = random_walk(random_walk(maps, pairs, offsets, steps=steps, **options), pairs, offsets, steps=7, **options)
    atol = 1e-12 * maps.abs().max().item()
    torch.testing.assert_close(once, random_walk(maps, pairs, offsets, steps=steps + 7, **options), rtol=0, atol=atol)


MAPS, PAIRS = torch.rand(1, 2, 6, 7), torch.rand(1, 34, 6, 7)


@pytest.mark.parametrize(
    ("maps", "pairs", "options", "error", "message"),
    [
        (MAPS[0], PAIRS, {}, ValueError, r"maps must have shape \(N, L, h, w\).*got \(2, 6, 7\)"),
        (MAPS[:, :0], PAIRS, {}, ValueError, "none of them 0"),
        (MAPS, PAIRS[0], {}, ValueError, r"\(1, P, 6, 7\) to go with maps of \(1, 2, 6, 7\); got \(34, 6, 7\)"),
        (MAPS, PAIRS[..., 1:], {}, ValueError, r"\(1, P, 6, 7\).*got \(1, 34, 6, 6\)"),
        (MAPS, PAIRS.expand(2, -1, -1, -1), {}, ValueError, r"got \(2, 34, 6, 7\)"),
        (MAPS, PAIRS[:, 1:], {}, ValueError, r"P = 34, the number of offsets; got \(1, 33, 6, 7\)"),
        (MAPS.long(), PAIRS, {}, TypeError, "maps must be floating point, got torch.int64"),
        (MAPS, PAIRS > 0, {}, TypeError, "affinities must be floating point, got torch.bool"),
        (MAPS, PAIRS + 0.5, {}, ValueError, r"affinities must lie in \[0, 1\]; got 0.5"),
        (MAPS, -PAIRS, {}, ValueError, r"\[0, 1\]; got -"),
        (MAPS, PAIRS * math.nan, {}, ValueError, r"\[0, 1\]; got nan"),
        (MAPS * math.nan, PAIRS, {}, ValueError, "maps must be finite"),
        (MAPS * math.inf, PAIRS, {}, ValueError, "maps must be finite"),
        (MAPS, PAIRS, {"steps": -1}, ValueError, "steps must not be negative, got -1"),
        (MAPS, PAIRS, {"beta": 0}, ValueError, "beta must be positive, got 0"),
        (MAPS, PAIRS, {"beta": math.inf}, ValueError, "beta must be positive, got inf"),
        (MAPS, PAIRS, {"border": "psa"}, ValueError, "'full', 'released'; got 'psa'"),
    ],
)
def test_bad_input(maps, pairs, options, error, message):
    with pytest.raises(error, match=message):
        random_walk(maps, pairs, FIVE, **options)

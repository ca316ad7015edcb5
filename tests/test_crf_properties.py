"""Properties of the dense CRF for photographs, labels, weights and widths of any size."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr import DenseCRF

_SETTINGS = st.fixed_dictionaries(
    {
        "bilateral_weight": st.sampled_from([0.0, 0.5, 10.0]),
        "bilateral_xy": st.floats(0.3, 200),
        "bilateral_rgb": st.floats(0.5, 200),
        "gaussian_weight": st.sampled_from([0.0, 3.0]),
        "gaussian_xy": st.floats(0.3, 50),
        "iterations": st.integers(0, 4),
    }
)


@st.composite
def _problems(draw):
    """Probabilities and photographs, certain ones and constant ones among them."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    images, labels, height, width = (draw(st.integers(1, most)) for most in (3, 6, 14, 14))
    probabilities = torch.rand(images, labels, height, width)
    kind = draw(st.sampled_from(["random", "certain", "zero", "one"]))
    if kind == "certain":
        probabilities = (probabilities == probabilities.amax(1, keepdim=True)).float()
    elif kind != "random":
        probabilities = torch.full_like(probabilities, 0.0 if kind == "zero" else 1.0)
    pictures = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
    if draw(st.booleans()):
        pictures = torch.full_like(pictures, 77)
    return probabilities.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))), pictures


@given(_problems(), _SETTINGS)
@settings(max_examples=60, deadline=None)
def test_the_result_is_a_distribution_of_the_same_form(problem, options):
    probabilities, pictures = problem
    before = probabilities.clone()
    result = DenseCRF(**options)(probabilities, pictures)
    assert (result.shape, result.dtype) == (probabilities.shape, probabilities.dtype)
    assert ((result >= 0) & (result <= 1)).all(), "NaN is neither"
    rounding = 0.02 if result.dtype == torch.bfloat16 else 1e-5
    assert (result.double().sum(1) - 1).abs().max() <= rounding
    assert torch.equal(probabilities, before)


@given(_problems(), _SETTINGS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_permuting_the_batch_or_the_labels_permutes_the_result(problem, options, random):
    probabilities, pictures = problem
    crf = DenseCRF(**options)
    result = crf(probabilities, pictures)
    images, labels = (random.sample(range(n), n) for n in probabilities.shape[:2])
    assert torch.equal(crf(probabilities[images], pictures[images]), result[images])
    tolerance = 0.02 if result.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(crf(probabilities[:, labels], pictures), result[:, labels], rtol=0, atol=tolerance)


@given(_problems(), _SETTINGS)
@settings(max_examples=30, deadline=None)
def test_labels_that_nothing_tells_apart_stay_alike(problem, options):
    probabilities, pictures = problem
    alike = probabilities[:, :1].expand_as(probabilities)
    result = DenseCRF(**options)(alike, pictures).double()
    expected = torch.full_like(result, 1 / probabilities.shape[1])
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)


@given(_problems())
@settings(max_examples=20, deadline=None)
def test_without_kernels_each_pixel_keeps_its_own_clamped_distribution(problem):
    probabilities, pictures = problem
    result = DenseCRF(bilateral_weight=0, gaussian_weight=0)(probabilities, pictures).double()
    clamped = probabilities.double().clamp(min=1e-5)
    torch.testing.assert_close(result, clamped / clamped.sum(1, keepdim=True), rtol=0, atol=5e-3)

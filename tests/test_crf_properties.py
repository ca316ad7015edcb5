"""Properties of the dense CRF for images, labels, weights and widths of any size."""

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
    """Probabilities and images, including certain probabilities and constant images."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    count, labels, height, width = (draw(st.integers(1, maximum)) for maximum in (3, 6, 14, 14))
    probabilities = torch.rand(count, labels, height, width)
    kind = draw(st.sampled_from(["random", "certain", "zero", "one"]))
    if kind == "certain":
        probabilities = (probabilities == probabilities.amax(1, keepdim=True)).float()
    elif kind != "random":
        probabilities = torch.full_like(probabilities, 0.0 if kind == "zero" else 1.0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    if draw(st.booleans()):
        images = torch.full_like(images, 77)
    return probabilities.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))), images


@given(_problems(), _SETTINGS)
@settings(max_examples=60, deadline=None)
def test_the_result_is_a_distribution(problem, options):
    probabilities, images = problem
    before = probabilities.clone()
    result = DenseCRF(**options)(probabilities, images)
    assert (result.shape, result.dtype) == (probabilities.shape, probabilities.dtype)
    assert ((result >= 0) & (result <= 1)).all(), "also excludes NaN"
    rounding = 0.02 if result.dtype == torch.bfloat16 else 1e-5
    assert (result.double().sum(1) - 1).abs().max() <= rounding
    assert torch.equal(probabilities, before)


@given(_problems(), _SETTINGS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_permuting_the_batch_or_the_labels_permutes_the_result(problem, options, random):
    probabilities, images = problem
    crf = DenseCRF(**options)
    result = crf(probabilities, images)
    batch_order, label_order = (random.sample(range(n), n) for n in probabilities.shape[:2])
    assert torch.equal(crf(probabilities[batch_order], images[batch_order]), result[batch_order])
    tolerance = 0.02 if result.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        crf(probabilities[:, label_order], images), result[:, label_order], rtol=0, atol=tolerance
    )


@given(_problems(), _SETTINGS)
@settings(max_examples=30, deadline=None)
def test_equal_labels_stay_equal(problem, options):
    probabilities, images = problem
    alike = probabilities[:, :1].expand_as(probabilities)
    result = DenseCRF(**options)(alike, images).double()
    expected = torch.full_like(result, 1 / probabilities.shape[1])
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-3)


@given(_problems())
@settings(max_examples=20, deadline=None)
def test_without_kernels_the_result_is_the_clamped_input(problem):
    probabilities, images = problem
    result = DenseCRF(bilateral_weight=0, gaussian_weight=0)(probabilities, images).double()
    clamped = probabilities.double().clamp(min=1e-5)
    torch.testing.assert_close(result, clamped / clamped.sum(1, keepdim=True), rtol=0, atol=5e-3)

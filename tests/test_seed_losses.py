"""Losses of SEC and DSRG, compared with values by hand and explicit sums, and the refinement by the CRF."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.crf import DenseCRF
from dcsm_attr.wsss.losses import (
    DSRG_RATIO_LIMITS,
    balanced_seed_loss,
    boundary_loss,
    expansion_loss,
    floored_softmax,
    seed_loss,
)
from dcsm_attr.wsss.region_growing import TRAINING_CRF, refine_scores

# One image of 2 x 2, three labels: background and two classes.
P = torch.tensor([[[[0.7, 0.2], [0.1, 0.5]], [[0.2, 0.6], [0.1, 0.3]], [[0.1, 0.2], [0.8, 0.2]]]], dtype=torch.float64)
# The background at the top left, the first class at the top right, the second at the bottom left.
SEEDS = torch.tensor([[[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]], dtype=torch.bool)


def random_problem(seed, count=2, labels=4, size=(3, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, labels, *size, dtype=torch.float64, generator=generator)
    seeds = torch.rand(count, labels, *size, generator=generator) < 0.2
    present = torch.rand(count, labels - 1, generator=generator) < 0.5
    return logits, seeds, present


def test_the_floor_by_hand():
    logits = torch.tensor([0.0, math.log(3)], dtype=torch.float64).view(1, 2, 1, 1)
    expected = [(0.25 + 1e-4) / 1.0002, (0.75 + 1e-4) / 1.0002]
    assert floored_softmax(logits).flatten().tolist() == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 10_000), st.floats(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_label_has_at_least_the_floor_and_they_sum_to_one(seed, steepness):
    logits = steepness * torch.randn(1, 21, 3, 3, generator=torch.Generator().manual_seed(seed))
    probabilities = floored_softmax(logits)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(1, 3, 3))
    assert probabilities.min() >= 0.9999 * 1e-4 / (1 + 21e-4)
    assert probabilities.max() < 1


def test_half_precision_logits_are_computed_in_float32():
    logits = torch.tensor([0.0, 12.0]).view(1, 2, 1, 1)
    assert floored_softmax(logits.half()).dtype == torch.float32
    torch.testing.assert_close(floored_softmax(logits.half()), floored_softmax(logits))


def test_the_seed_loss_by_hand():
    assert seed_loss(P, SEEDS).item() == pytest.approx(-(math.log(0.7) + math.log(0.6) + math.log(0.8)) / 3)


def test_the_seed_loss_of_a_batch_is_the_mean_over_images_not_over_seeds():
    one_seed = SEEDS.clone()
    one_seed[0, :2] = False
    both = seed_loss(torch.cat([P, P]), torch.cat([SEEDS, one_seed]))
    assert both.item() == pytest.approx((seed_loss(P, SEEDS) - math.log(0.8)).item() / 2)


def test_the_balanced_loss_by_hand():
    # The background has one seed, the classes two together.
    expected = -math.log(0.7) - (math.log(0.6) + math.log(0.8)) / 2
    assert balanced_seed_loss(P, SEEDS).item() == pytest.approx(expected)


def test_a_mean_over_no_seeds_counts_as_zero():
    background, classes = SEEDS.clone(), SEEDS.clone()
    background[:, 1:], classes[:, 0] = False, False
    assert balanced_seed_loss(P, background).item() == pytest.approx(-math.log(0.7))
    assert balanced_seed_loss(P, classes).item() == pytest.approx(-(math.log(0.6) + math.log(0.8)) / 2)
    logits = P.log().requires_grad_()
    for loss in (seed_loss, balanced_seed_loss):
        value = loss(floored_softmax(logits), torch.zeros_like(SEEDS))
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert gradient.count_nonzero() == 0


def test_the_expansion_loss_by_hand():
    present = torch.tensor([[True, False]])
    q, b = 0.996, 0.999
    # The first class's probabilities in descending order: 0.6, 0.3, 0.2, 0.1; the background's: 0.7, 0.5, 0.2, 0.1.
    first = (0.6 + 0.3 * q + 0.2 * q**2 + 0.1 * q**3) / (1 + q + q**2 + q**3)
    background = (0.7 + 0.5 * b + 0.2 * b**2 + 0.1 * b**3) / (1 + b + b**2 + b**3)
    expected = -math.log(first) - math.log(1 - 0.8) - math.log(background)
    assert expansion_loss(P, present).item() == pytest.approx(expected, rel=1e-12)


def test_present_and_absent_classes_have_separate_means():
    both = expansion_loss(P, torch.tensor([[True, True]]), 1.0, 1.0).item()
    assert both == pytest.approx(-(math.log(0.3) + math.log(0.325)) / 2 - math.log(0.375))
    none = expansion_loss(P, torch.tensor([[False, False]]), 1.0, 1.0).item()
    assert none == pytest.approx(-(math.log(0.4) + math.log(0.2)) / 2 - math.log(0.375))


@pytest.mark.parametrize(("decay", "share"), [(1.0, 0.3), (1e-12, 0.6)])
def test_the_decay_interpolates_between_mean_and_maximum(decay, share):
    loss = expansion_loss(P, torch.tensor([[True, False]]), decay, 1.0).item()
    assert loss == pytest.approx(-math.log(share) - math.log(0.2) - math.log(0.375), rel=1e-9)


def test_a_present_class_may_fill_the_image():
    certain = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    certain[:, 1], certain[:, 0] = 1.0, 0.25
    certain.requires_grad_()
    loss = expansion_loss(certain, torch.tensor([[True]]))
    assert loss.item() == pytest.approx(-math.log(0.25))
    (gradient,) = torch.autograd.grad(loss, certain)
    assert gradient.isfinite().all()


def test_the_boundary_loss_by_hand():
    target = torch.full_like(P, 1 / 3)
    expected = sum(math.log(1 / 3 / p) / 3 for p in P.flatten().tolist()) / 4
    assert boundary_loss(P, target).item() == pytest.approx(expected)
    # Limited to ratios of 0.5 to 2, where 1/3 / 0.7 is 0.476, 1/3 / 0.8 is 0.417, and 1/3 / 0.1 is 3.33.
    ratios = [min(max(1 / 3 / p, 0.5), 2) for p in P.flatten().tolist()]
    limited = sum(math.log(ratio) / 3 for ratio in ratios) / 4
    assert boundary_loss(P, target, (0.5, 2)).item() == pytest.approx(limited)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_boundary_loss_is_zero_at_the_target_and_positive_elsewhere(seed):
    logits, _, _ = random_problem(seed)
    probabilities, target = floored_softmax(logits), floored_softmax(logits.flip(0))
    assert boundary_loss(target, target).item() == pytest.approx(0, abs=1e-15)
    assert boundary_loss(probabilities, target) > 0


def test_learning_moves_the_probabilities_to_the_target():
    """With the sign that the slides print, they would diverge."""
    logits, _, _ = random_problem(0)
    target = floored_softmax(logits.flip(0))
    logits = logits.clone().requires_grad_()
    before = boundary_loss(floored_softmax(logits), target)
    (gradient,) = torch.autograd.grad(before, logits)
    with torch.no_grad():
        after = boundary_loss(floored_softmax(logits - 5 * gradient), target)
    assert after < before


def test_no_gradient_reaches_the_target_or_ratios_beyond_the_limits():
    target = torch.tensor([0.998, 0.001, 0.001], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    probabilities = torch.tensor([0.03, 0.92, 0.05], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_()
    # Ratios 33.3, 0.0011 and 0.02: all beyond the limits of DSRG.
    limited = boundary_loss(probabilities, target, DSRG_RATIO_LIMITS)
    assert limited.item() == pytest.approx(0.998 * math.log(20) + 0.002 * math.log(0.05))
    of_probabilities, of_target = torch.autograd.grad(limited, (probabilities, target), allow_unused=True)
    assert of_probabilities.count_nonzero() == 0
    assert of_target is None


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_all_losses_equal_their_formulas_written_out(seed):
    logits, seeds, present = random_problem(seed)
    p = (np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True) + 1e-4) / (1 + 4e-4)
    target = floored_softmax(logits.flip(0))
    sums = dict.fromkeys(("seed", "balanced", "expansion", "boundary"), 0.0)
    for n in range(len(p)):
        where = [tuple(place) for place in seeds[n].nonzero().tolist()]
        for name, groups in {
            "seed": [where],
            "balanced": [[s for s in where if s[0] == 0], [s for s in where if s[0] > 0]],
        }.items():
            for group in groups:
                sums[name] -= sum(math.log(p[n][s]) for s in group) / max(len(group), 1e-4)
        shares = []
        for label in range(4):
            q = 0.999 if label == 0 else 0.996
            ordered = sorted(p[n, label].ravel(), reverse=True)
            weights = [q**k for k in range(len(ordered))]
            shares.append(sum(w * v for w, v in zip(weights, ordered, strict=True)) / sum(weights))
        there = [c + 1 for c in range(3) if present[n, c]]
        others = [c + 1 for c in range(3) if not present[n, c]]
        sums["expansion"] -= math.log(shares[0])
        if there:
            sums["expansion"] -= sum(math.log(shares[c]) for c in there) / len(there)
        if others:
            sums["expansion"] -= sum(math.log(1 - p[n, c].max()) for c in others) / len(others)
        q = target[n].numpy()
        sums["boundary"] += (q * np.log(q / p[n])).sum() / q[0].size
    probabilities = floored_softmax(logits)
    got = {
        "seed": seed_loss(probabilities, seeds),
        "balanced": balanced_seed_loss(probabilities, seeds),
        "expansion": expansion_loss(probabilities, present),
        "boundary": boundary_loss(probabilities, target),
    }
    assert {name: loss.item() for name, loss in got.items()} == pytest.approx(
        {name: value / len(p) for name, value in sums.items()}, rel=1e-9
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, seeds, present, target: seed_loss(p, seeds),
        lambda p, seeds, present, target: balanced_seed_loss(p, seeds),
        lambda p, seeds, present, target: expansion_loss(p, present),
        lambda p, seeds, present, target: boundary_loss(p, target),
        lambda p, seeds, present, target: boundary_loss(p, target, DSRG_RATIO_LIMITS),
    ],
    ids=["seed", "balanced", "expansion", "boundary", "limited boundary"],
)
def test_the_gradients_are_right(loss):
    logits, seeds, present = random_problem(3)
    target = floored_softmax(logits.flip(0))
    assert torch.autograd.gradcheck(
        lambda x: loss(floored_softmax(x), seeds, present, target), logits.clone().requires_grad_()
    )


# Refinement by the CRF.


def exact_mean_field(scores, image, iterations=10):
    """Both kernels as whole matrices, normalized symmetrically; SEC's constants for a grid of 41 x 41."""
    labels, height, width = scores.shape
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    colors = image.reshape(3, -1).T.astype(float)

    def distances(values):
        return ((values[:, None] - values[None]) ** 2).sum(-1)

    kernels = [
        (10.0, np.exp(-distances(places) / (2 * (80 / 12) ** 2) - distances(colors) / (2 * 13.0**2))),
        (3.0, np.exp(-distances(places) / (2 * (3 / 12) ** 2))),
    ]
    energy = scores.reshape(labels, -1)
    q = np.exp(energy - energy.max(0))
    q /= q.sum(0)
    for _ in range(iterations):
        message = energy.copy()
        for weight, kernel in kernels:
            scale = 1 / np.sqrt(kernel.sum(1))
            message += weight * (q * scale) @ kernel * scale
        q = np.exp(message - message.max(0))
        q /= q.sum(0)
    return q.reshape(scores.shape)


def smooth_problem():
    generator = torch.Generator().manual_seed(0)
    scores = 8 * torch.randn(1, 3, 5, 5, generator=generator)
    image = 255 * torch.rand(1, 3, 5, 5, generator=generator)
    scores, image = (torch.nn.functional.interpolate(field, (41, 41), mode="bilinear") for field in (scores, image))
    return scores, image.to(torch.uint8)


def test_the_training_crf_is_that_of_sec():
    scores, image = smooth_problem()
    expected = exact_mean_field(scores[0].double().numpy(), image[0].numpy())
    result = refine_scores(scores, image)[0].numpy()
    # The lattice approximates the kernels: a few pixels at borders between labels go to the other one.
    assert np.abs(result - expected).mean() < 0.01
    assert np.mean(result.argmax(0) == expected.argmax(0)) > 0.99
    # The scores alone are further away.
    assert np.mean(scores[0].argmax(0).numpy() == expected.argmax(0)) < 0.97


def test_the_training_crf_equals_the_library_that_sec_calls():
    pydensecrf = pytest.importorskip("pydensecrf.densecrf", reason="the reference library of the dense CRF")
    scores, image = smooth_problem()
    reference = pydensecrf.DenseCRF2D(41, 41, 3)
    # SEC's energies are its negative logits.
    reference.setUnaryEnergy(np.ascontiguousarray(-scores[0].numpy().reshape(3, -1)))
    reference.addPairwiseGaussian(sxy=3 / 12, compat=3)
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    reference.addPairwiseBilateral(sxy=80 / 12, srgb=13, rgbim=pixels, compat=10)
    expected = np.maximum(np.array(reference.inference(10)).reshape(3, 41, 41), 1e-4)
    expected /= expected.sum(0)
    assert np.abs(refine_scores(scores, image)[0].numpy() - expected).max() < 2e-3


def test_refined_scores_are_floored_sum_to_one_and_have_no_gradient():
    scores = (20 * torch.randn(2, 4, 6, 6)).requires_grad_()
    result = refine_scores(scores, torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8))
    assert not result.requires_grad
    torch.testing.assert_close(result.sum(dim=1), torch.ones(2, 6, 6))
    assert result.min() >= 0.999 * 1e-4 / (1 + 4e-4)


def test_without_kernels_the_scores_are_unchanged():
    nothing = DenseCRF(bilateral_weight=0, gaussian_weight=0)
    scores = torch.randn(1, 3, 4, 4)
    result = refine_scores(scores, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), nothing)
    torch.testing.assert_close(result, scores.softmax(dim=1), rtol=1e-5, atol=1e-4)


def test_images_are_resized_as_sec_resizes_them():
    zoom = pytest.importorskip("scipy.ndimage", reason="SciPy resizes as SEC's code does").zoom
    seen = []

    class Watching(DenseCRF):
        def __call__(self, probabilities, images):
            seen.append(images)
            return probabilities

    images = torch.randint(0, 256, (1, 3, 30, 23), dtype=torch.uint8)
    refine_scores(torch.zeros(1, 2, 7, 9), images, Watching())
    expected = zoom(images[0].float().numpy(), (1, 7 / 30, 9 / 23), order=1)
    assert np.abs(seen[0][0].numpy() - expected).max() <= 0.5 + 1e-3


def test_the_image_moves_the_boundary():
    """Halves of different colors; the border of the scores is one column too far to the left."""
    image = torch.zeros(1, 3, 10, 10, dtype=torch.uint8)
    image[..., 5:] = 255
    scores = torch.zeros(1, 2, 10, 10)
    scores[:, 0, :, :4], scores[:, 1, :, 4:] = 1.0, 1.0
    labels = refine_scores(scores, image, TRAINING_CRF).argmax(dim=1)
    assert torch.equal(labels[0], (torch.arange(10) >= 5).long().expand(10, 10))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"seeds must have the shape of the probabilities.*got \(1, 2, 2, 2\)"):
        seed_loss(P, SEEDS[:, :2])
    with pytest.raises(ValueError, match="seeds must have the shape"):
        balanced_seed_loss(P, SEEDS[:, :2])
    with pytest.raises(ValueError, match="target must have the shape"):
        boundary_loss(P, P[:, :2])
    with pytest.raises(ValueError, match=r"present must have shape \(N, L - 1\).*got \(1, 3\) and \(1, 3, 2, 2\)"):
        expansion_loss(P, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"background_decay .* must lie in \(0, 1\], got 1.5"):
        expansion_loss(P, torch.ones(1, 2, dtype=torch.bool), background_decay=1.5)

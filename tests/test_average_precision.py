"""Average precision as VOC counts it: by hand, against a reference in fractions, and what must not change it."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcsm_attr.evaluation.metrics import (
    average_precision,
    average_precision_per_class,
    mean_average_precision,
)


def rankings(smallest=1):
    """Scores with many ties, and presence."""
    pair = st.tuples(st.integers(-3, 3), st.booleans())
    return st.lists(pair, min_size=smallest, max_size=14)


def as_tensors(ranking):
    scores, present = zip(*ranking, strict=True)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(present)


def precision_and_recall(ranking, threshold):
    accepted = [present for score, present in ranking if score >= threshold]
    positives = sum(present for _, present in ranking)
    return Fraction(sum(accepted), len(accepted)), Fraction(sum(accepted), positives)


def reference(ranking):
    """For each positive, one step of recall: the best precision of all thresholds that recall as many."""
    points = [precision_and_recall(ranking, threshold) for threshold in {score for score, _ in ranking}]
    positives = sum(present for _, present in ranking)
    steps = [Fraction(k, positives) for k in range(1, positives + 1)]
    return sum(max(precision for precision, recall in points if recall >= step) for step in steps) / positives


@pytest.mark.parametrize(
    ("scores", "present", "expected"),
    [
        ([3, 2, 1], [1, 1, 0], 1),
        ([3, 2, 1], [0, 0, 1], 1 / 3),
        # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1.
        ([3, 2, 1], [1, 0, 1], (1 + 2 / 3) / 2),
        # Precisions at the positives 1/2, 2/3, 3/4: the last is the best at every recall.
        ([4, 3, 2, 1], [0, 1, 1, 1], 3 / 4),
        # The positive and the negative in front come together: 1/2, then 2/3.
        ([2, 2, 1], [1, 0, 1], 2 / 3),
        ([2, 2, 1, 0], [1, 0, 0, 1], 1 / 2),
        ([5, 5, 5, 5], [1, 0, 0, 0], 1 / 4),
        ([0.1], [1], 1),
        ([math.inf, 0.0, -math.inf], [1, 0, 1], (1 + 2 / 3) / 2),
    ],
)
def test_by_hand(scores, present, expected):
    got = average_precision(torch.tensor(scores, dtype=torch.float64), torch.tensor(present, dtype=torch.bool))
    assert got == pytest.approx(expected, abs=1e-15)


@given(rankings())
def test_equals_the_reference(ranking):
    got = average_precision(*as_tensors(ranking))
    if not any(present for _, present in ranking):
        assert math.isnan(got)
    else:
        assert got == pytest.approx(float(reference(ranking)), abs=1e-14)


@given(rankings(), st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(ranking, random):
    shuffled = random.sample(ranking, len(ranking))
    first, second = average_precision(*as_tensors(ranking)), average_precision(*as_tensors(shuffled))
    assert first == second or (math.isnan(first) and math.isnan(second))


@given(rankings())
def test_only_the_order_of_the_scores_matters(ranking):
    scores, present = as_tensors(ranking)
    first, second = average_precision(scores, present), average_precision(scores.exp() / 100 - 7, present)
    assert first == second or (math.isnan(first) and math.isnan(second))


def _steps(precision, recall):
    """Area under scikit-learn's curve, whose recall falls, after interpolation."""
    best, area = 0.0, 0.0
    for p, higher, lower in sorted(zip(precision[:-1], recall[:-1], recall[1:], strict=True), key=lambda s: -s[1]):
        best = max(best, p)
        area += best * (higher - lower)
    return area


@pytest.mark.parametrize("seed", range(20))
def test_beside_scikit_learn(seed):
    """Its average precision does not interpolate: ours is its curve's area once that is done, and never smaller."""
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not needed, only compared with")
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 60, (80,), generator=generator) / 60
    present = torch.rand(80, generator=generator) < 0.2 + 0.5 * scores
    got = average_precision(scores, present)
    precision, recall, _ = metrics.precision_recall_curve(present.numpy(), scores.numpy())
    assert got == pytest.approx(_steps(precision, recall), abs=1e-12)
    assert got >= metrics.average_precision_score(present.numpy(), scores.numpy()) - 1e-12


def test_beside_torchmetrics():
    """Where precision never rises with recall there is nothing to interpolate, and the two are equal."""
    functional = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not needed, only compared with"
    )
    scores = torch.linspace(1, 0, 12)
    present = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]).bool()
    theirs = float(functional.binary_average_precision(scores, present.long()))
    assert average_precision(scores, present) == pytest.approx(theirs, abs=1e-6)


def test_classes_without_a_positive_are_left_out_of_the_mean():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.4, 0.3], [0.7, 0.6, 0.2]])
    present = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 0, 1]]).bool()
    per_class = average_precision_per_class(scores, present)
    assert per_class[[0, 2]].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1 / 2])
    assert per_class[1].isnan()
    assert mean_average_precision(scores, present) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert math.isnan(mean_average_precision(scores, torch.zeros(3, 3).bool()))


def test_no_image():
    assert math.isnan(average_precision(torch.zeros(0), torch.zeros(0).bool()))
    assert math.isnan(mean_average_precision(torch.zeros(0, 4), torch.zeros(0, 4).bool()))


@pytest.mark.parametrize(
    ("scores", "present", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(4).bool(), ValueError, r"same shape \(N,\), got \(3,\) and \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2).bool(), ValueError, r"same shape \(N,\), got \(3, 2\)"),
        (torch.zeros(3), torch.zeros(3), TypeError, "present must be bool, got torch.float32"),
        (torch.tensor([0.0, math.nan]), torch.ones(2).bool(), ValueError, "1 of them are NaN"),
    ],
)
def test_bad_input(scores, present, error, message):
    with pytest.raises(error, match=message):
        average_precision(scores, present)


def test_bad_shape_of_several_classes():
    with pytest.raises(ValueError, match=r"same shape \(N, C\), got \(3,\) and \(3,\)"):
        mean_average_precision(torch.zeros(3), torch.zeros(3).bool())

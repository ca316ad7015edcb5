"""Tests of scores and candidate classes by hand: activations, ties, added classes, unused slots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.attribution.candidates import choose_candidates, class_scores, explicit_candidates, resolve_classes

LOGITS = torch.tensor([[0.0, 1.0, -2.0], [3.0, 3.0, 0.0]])


@pytest.mark.parametrize(
    ("logits", "activation", "expected"),
    [
        (LOGITS, "sigmoid", torch.sigmoid(LOGITS)),
        (LOGITS, "softmax", torch.softmax(LOGITS, 1)),
        (LOGITS, "auto", torch.softmax(LOGITS, 1)),
        # With one class, softmax would be one whatever the score.
        (LOGITS[:, :1], "auto", torch.sigmoid(LOGITS[:, :1])),
        (LOGITS[:, :2], "auto", torch.softmax(LOGITS[:, :2], 1)),
        (LOGITS[..., None, None], "auto", torch.sigmoid(LOGITS)),
        (LOGITS[..., None, None], "softmax", torch.softmax(LOGITS, 1)),
    ],
)
def test_activations(logits, activation, expected):
    scores = class_scores(logits, activation)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)


def test_score_maps_are_pooled_by_their_maximum_by_default():
    logits = torch.tensor([[[[1.0, 3.0]], [[-1.0, -5.0]]]])
    assert torch.equal(class_scores(logits, "sigmoid"), torch.sigmoid(torch.tensor([[3.0, -1.0]])))
    assert torch.equal(class_scores(logits, "sigmoid", "average"), torch.sigmoid(torch.tensor([[2.0, -3.0]])))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_scores_raise(bad):
    message = "^the model's scores contain NaN or infinite values: check its weights and the range of the inputs.$"
    with pytest.raises(ValueError, match=message):
        class_scores(torch.tensor([[0.0, bad]]), "softmax")


def _flags(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_detected_come_first_then_the_best_of_the_others():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.4, 0.3, 0.2, 0.1]])
    chosen = choose_candidates(scores, _flags([1, 0, 1, 0], [0, 0, 0, 0]), 3)
    assert chosen.classes.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert chosen.detected.tolist() == [[True, True, False], [False] * 3]


def test_required_classes_are_candidates_but_not_detected():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8]])
    chosen = choose_candidates(scores, _flags([0, 0, 1, 0]), 2, _flags([1, 0, 0, 0]))
    assert chosen.classes.tolist() == [[2, 0]]
    assert chosen.detected.tolist() == [[True, False]]


def test_images_with_fewer_candidates_have_unused_slots():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    chosen = choose_candidates(scores, _flags([1, 1, 1, 0], [0, 0, 1, 0]), 1)
    assert chosen.classes.tolist() == [[0, 1, 2], [2, -1, -1]]
    assert chosen.detected.tolist() == [[True, True, True], [True, False, False]]


def test_a_model_with_fewer_classes_than_the_minimum_gives_all():
    assert choose_candidates(torch.tensor([[0.1, 0.2]]), _flags([0, 0]), 5).classes.tolist() == [[1, 0]]


def test_equal_scores_keep_the_order_of_the_classes():
    # Sorts that are not stable mix up equal values from a few dozen on.
    scores = torch.zeros(2, 200)
    detected = torch.zeros(2, 200, dtype=torch.bool)
    detected[:, 150:] = True
    chosen = choose_candidates(scores, detected, 200)
    assert chosen.classes.tolist() == [[*range(150, 200), *range(150)]] * 2


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_candidates_do_not_depend_on_the_other_images(seed, classes, images, minimum):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, classes, generator=generator)
    detected, required = torch.rand(2, images, classes, generator=generator) > 0.6
    together = choose_candidates(scores, detected, minimum, required)
    for n in range(images):
        alone = choose_candidates(scores[n : n + 1], detected[n : n + 1], minimum, required[n : n + 1])
        held = together.classes[n] >= 0
        assert together.classes[n][held].tolist() == alone.classes[0].tolist()
        assert together.detected[n][held].tolist() == alone.detected[0].tolist()
        chosen = set(alone.classes[0].tolist())
        assert (detected[n] | required[n]).nonzero().flatten().tolist() == sorted(
            chosen & set((detected[n] | required[n]).nonzero().flatten().tolist())
        )
        assert len(chosen) == alone.classes.shape[1] >= min(minimum, classes)
        assert alone.detected[0].sum() == detected[n].sum()


def test_no_tensor_is_created_on_the_default_device():
    scores, detected = torch.rand(3, 5), torch.rand(3, 5) > 0.5
    expected = choose_candidates(scores, detected, 2), resolve_classes([[1], [0, 2], [3]], 3, 5, "classes")
    # A device whose tensors hold no values.
    with torch.device("meta"):
        found = choose_candidates(scores, detected, 2), resolve_classes([[1], [0, 2], [3]], 3, 5, "classes")
    assert torch.equal(found[0].classes, expected[0].classes)
    assert torch.equal(found[0].detected, expected[0].detected)
    assert torch.equal(found[1], expected[1])


def test_given_candidates_are_unchanged():
    classes = torch.tensor([[2, 0, -1], [1, -1, -1]])
    chosen = explicit_candidates(classes, _flags([1, 0, 1], [1, 0, 0]))
    assert chosen.classes is classes
    # Class 0 of the second image is detected, but no candidate: an empty slot does not stand for it.
    assert chosen.detected.tolist() == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([1, 3], [[1, 3], [1, 3]]),
        ((1, 3), [[1, 3], [1, 3]]),
        ([[1], [0, 3]], [[1, -1], [0, 3]]),
        (([1], (0, 3)), [[1, -1], [0, 3]]),
        ([[1, -1], [0, 3]], [[1, -1], [0, 3]]),
        (torch.tensor([[1, 2], [0, 3]], dtype=torch.int32), [[1, 2], [0, 3]]),
        (range(2), [[0, 1], [0, 1]]),
    ],
)
def test_classes_by_name(classes, expected):
    rows = resolve_classes(classes, 2, 4, "classes")
    assert rows.dtype == torch.int64
    assert rows.tolist() == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], r"^classes must be integers of shape \(K,\) or \(N, K\), got torch\.\w+ of shape \(0,\)\.$"),
        ([[], []], r"got torch\.\w+ of shape \(2, 0\)\.$"),
        (5, r"got torch.int64 of shape \(\)\.$"),
        (torch.zeros(2, 2, 2, dtype=torch.int64), r"of shape \(2, 2, 2\)\.$"),
        ([[1], [2], [3]], "^classes must have a row for each of the 2 images, got 3.$"),
        ([4], r"^classes must lie between 0 and 3 \(the model has 4 classes\), got \[\[4\], \[4\]\]\.$"),
        ([0, -2], r"between 0 and 3"),
        ([-1], r"^classes must name at least one class for each image, and none twice; got \[-1\]\.$"),
        ([[1, 1], [0, 2]], r"none twice; got \[1, 1\]\.$"),
        ("dog", r"^classes must be integers of shape \(K,\), or a row of them for each image; got 'dog'\.$"),
        ([["dog"], ["cat"]], "a row of them for each image; got"),
        ([[1], None], "a row of them for each image; got"),
    ],
)
def test_malformed_classes_raise(classes, message):
    with pytest.raises(ValueError, match=message):
        resolve_classes(classes, 2, 4, "classes")

"""Mean IoU as VOC counts it: by hand, against counting pixel by pixel, and with bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcsm_attr.evaluation.metrics import confusion_matrix, iou_per_class, mean_iou


def test_by_hand():
    truth = torch.tensor([[0, 0, 1, 1], [0, 2, 2, 255]])
    prediction = torch.tensor([[0, 1, 1, 1], [0, 2, 0, 2]])
    confusion = confusion_matrix(prediction, truth, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    iou = iou_per_class(confusion)
    assert iou[:3].tolist() == pytest.approx([2 / 4, 2 / 3, 1 / 2])
    assert math.isnan(iou[3]), "a class that nobody has seen has no IoU"
    assert mean_iou(confusion) == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)


def test_void_pixels_do_not_count_whatever_was_predicted_there():
    truth = torch.tensor([0, 1, 255, 255])
    assert mean_iou(confusion_matrix(torch.tensor([0, 1, 7, -3]), truth, 2)) == 1.0
    assert confusion_matrix(torch.tensor([0, 1, 0, 1]), truth, 2).sum() == 2
    assert math.isnan(mean_iou(confusion_matrix(torch.tensor([0]), torch.tensor([255]), 2)))


@given(st.data())
def test_equals_counting_pixel_by_pixel(data):
    classes = data.draw(st.integers(1, 5))
    pixels = data.draw(st.integers(1, 40))
    labels = st.lists(st.integers(0, classes - 1), min_size=pixels, max_size=pixels)
    prediction = data.draw(labels)
    truth = [data.draw(st.sampled_from([label, label, 255])) for label in data.draw(labels)]
    expected = []
    for c in range(classes):
        seen = [(p == c, t == c) for p, t in zip(prediction, truth, strict=True) if t != 255]
        union = sum(p or t for p, t in seen)
        if union:
            expected.append(sum(p and t for p, t in seen) / union)
    got = mean_iou(confusion_matrix(torch.tensor(prediction), torch.tensor(truth), classes))
    assert got == pytest.approx(sum(expected) / len(expected)) if expected else math.isnan(got)


def test_matrices_of_images_add_up():
    truth, prediction = torch.randint(0, 3, (2, 4, 9, 9))
    together = confusion_matrix(prediction, truth, 3)
    assert torch.equal(together, sum(confusion_matrix(p, t, 3) for p, t in zip(prediction, truth, strict=True)))


@pytest.mark.parametrize(
    ("prediction", "truth", "classes", "error", "message"),
    [
        (torch.zeros(3).long(), torch.zeros(4).long(), 2, ValueError, r"same shape, got \(3,\) and \(4,\)"),
        (torch.zeros(3), torch.zeros(3).long(), 2, TypeError, "prediction must hold integer labels, got torch.float32"),
        (torch.zeros(3).long(), torch.zeros(3).bool(), 2, TypeError, "truth must hold integer labels, got torch.bool"),
        (torch.tensor([0, 2]), torch.zeros(2).long(), 2, ValueError, "prediction must be between 0 and 1 .*0 to 2"),
        (torch.zeros(2).long(), torch.tensor([0, -1]), 2, ValueError, "truth must be between 0 and 1 .*-1 to 0"),
        (torch.zeros(2).long(), torch.zeros(2).long(), 0, ValueError, "classes must be at least 1, got 0"),
    ],
)
def test_bad_labels(prediction, truth, classes, error, message):
    with pytest.raises(error, match=message):
        confusion_matrix(prediction, truth, classes)


def test_a_confusion_matrix_is_square():
    with pytest.raises(ValueError, match=r"shape \(L, L\), got \(2, 3\)"):
        iou_per_class(torch.zeros(2, 3))

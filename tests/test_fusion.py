"""Tests of heat maps and of products of the maps of two methods, by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr import ClassActivationMaps, ClassMaps, DistinctClassSaliency, FusedSaliency, Segmenter, Simonyan
from dcsm_attr.attribution.fusion import fuse_maps, heat_maps
from dcsm_attr.datasets.preprocess import Preprocess


def test_heat_maps_by_hand():
    # Sigmoids 1/2, 3/4, 1/5 and 1/10; the largest becomes one.
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(4), -math.log(9)]]]])
    heat = heat_maps(logits, (2, 2))
    assert heat.flatten().tolist() == pytest.approx([2 / 3, 1.0, 4 / 15, 2 / 15])


def test_probabilities_are_resized_not_scores():
    # Sigmoids 1/2 and 9/10 at half-pixel centers: 1/2, 3/4 + 1/4 of the way, 9/10.
    heat = heat_maps(torch.tensor([[[[0.0, math.log(9)]]]]), (1, 4))
    assert heat.flatten().tolist() == pytest.approx([0.5 / 0.9, 0.6 / 0.9, 0.8 / 0.9, 1.0])


def test_heat_maps_of_missed_classes_are_positive():
    heat = heat_maps(torch.tensor([[[[-30.0, -31.0]]]]), (1, 2))
    assert heat.flatten().tolist() == pytest.approx([1.0, math.exp(-1)])


def test_fusion_by_hand():
    heat = torch.tensor([[[[1.0, 0.5]], [[0.2, 1.0]]]])
    saliency = torch.tensor([[[[0.4, 1.0]], [[0.5, 0.0]]]])
    # Products 0.4, 0.5 and 0.1, 0, each divided by the larger.
    assert fuse_maps(heat, saliency).flatten().tolist() == pytest.approx([0.8, 1.0, 1.0, 0.0])


def test_maps_without_a_common_pixel_give_zero():
    heat = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    saliency = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]])
    assert fuse_maps(heat, saliency).count_nonzero() == 0


@given(st.integers(0, 10_000), st.floats(0.1, 30.0))
@settings(max_examples=40, deadline=None)
def test_the_range_and_where_it_can_be_positive(seed, steepness):
    generator = torch.Generator().manual_seed(seed)
    logits = steepness * torch.randn(1, 2, 3, 4, generator=generator)
    saliency = (torch.rand(1, 2, 7, 9, generator=generator) - 0.5).clamp(min=0) * 2
    heat = heat_maps(logits, (7, 9))
    product = fuse_maps(heat, saliency)
    for maps in (heat, product):
        assert maps.min() >= 0
        assert maps.amax(dim=(2, 3)).flatten().tolist() == pytest.approx([1.0, 1.0])
    assert product[saliency == 0].count_nonzero() == 0
    # What both agree on stays the order.
    assert fuse_maps(heat, torch.ones_like(heat)).equal(heat)


class _Given:
    """A method with maps that are known: class c has c + 1 in the left column and 1 in the right one."""

    def __init__(self, candidates, subtracted=False, turned=False):
        self.candidates, self.subtracted, self.turned = candidates, subtracted, turned
        self.asked = []
        self.settings = {"method": "given", "candidates": candidates}

    def class_maps(self, inputs, classes=None, *, raw=False):
        self.asked.append(classes.tolist() if isinstance(classes, torch.Tensor) else classes)
        rows = torch.tensor(self.candidates)
        maps = torch.stack([rows + 1.0, torch.ones(rows.shape)], dim=-1)[:, :, None] * (rows >= 0)[:, :, None, None]
        maps = maps.flip(-1) if self.turned else maps
        scores = torch.full((len(rows), 5), 0.1 if self.turned else 0.2)
        subtracted = torch.full((len(rows),), self.subtracted)
        return ClassMaps(maps, rows, rows % 2 == 1, scores, subtracted, maps**2 if raw else None)


@pytest.mark.parametrize("raw", [True, False])
def test_two_methods_by_hand(raw):
    first = _Given([[3, 1], [2, -1]])
    second = _Given([[1, 0, 3], [4, 2, -1]], subtracted=True, turned=True)
    result = FusedSaliency(first, second).class_maps(torch.zeros(2, 3, 1, 2), [[3, 1], [2]], raw=raw)
    # Left (c + 1), right 1 times left 1, right (c + 1): the same in both columns.
    assert result.maps.tolist() == [[[[1, 1]], [[1, 1]]], [[[1, 1]], [[0, 0]]]]
    assert result.classes.tolist() == [[3, 1], [2, -1]]
    assert result.detected.tolist() == [[True, True], [False, True]]
    assert result.scores.unique().tolist() == pytest.approx([0.2])
    assert result.subtracted.tolist() == [True, True]
    assert (result.raw is not None) == raw
    # The second is asked for the classes of the first, whatever was known.
    assert first.asked == [[[3, 1], [2]]]
    assert second.asked == [[[3, 1], [2, -1]]]


def test_columns_of_two_methods_by_hand():
    # (c + 1)^2 left and 1 right, divided by the maximum.
    result = FusedSaliency(_Given([[3, 1]]), _Given([[1, 3]])).class_maps(torch.zeros(1, 3, 1, 2), raw=True)
    assert result.maps.tolist() == [[[[1, 1 / 16]], [[1, 1 / 4]]]]
    assert result.raw.tolist() == [[[[1, 1 / 256]], [[1, 1 / 16]]]]
    assert result.subtracted.tolist() == [False]


@pytest.mark.parametrize("classes", [None, [[1], [0, 2]]])
def test_class_activation_maps_times_distinct_maps(vgg, images, classes):
    vgg.classifier[2].bias.data += torch.tensor([3.0, -3, 3, -3])
    cam, dcsm = ClassActivationMaps(vgg), DistinctClassSaliency(vgg)
    result = FusedSaliency(cam, dcsm).class_maps(images, classes)
    expected = cam.class_maps(images, classes)
    assert torch.equal(result.classes, expected.classes)
    assert torch.equal(result.detected, expected.detected)
    assert torch.equal(result.scores, expected.scores)
    assert result.subtracted.all()
    distinct = dcsm.class_maps(images, classes)
    for i in range(2):
        for slot, c in enumerate(expected[i].classes[0].tolist()):
            product = expected.maps[i, slot] * distinct[i].select(torch.tensor([c]))[0, 0]
            assert product.max() > 0
            torch.testing.assert_close(result.maps[i, slot], product / product.max())


def test_the_second_method_uses_the_classes_of_the_first(vgg, images):
    """DCSM fills its candidates up; the others alone would give the known one."""
    result = FusedSaliency(DistinctClassSaliency(vgg), Simonyan(vgg)).class_maps(images, [2])
    assert result.classes.shape == (2, 3)
    assert result.detected.sum(dim=1).tolist() == [1, 1]
    assert (result.maps.amax((2, 3)) == 1).all()


def test_a_segmenter_accepts_two_methods_as_one(cnn):
    image_array = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    saliency = FusedSaliency(ClassActivationMaps(cnn), DistinctClassSaliency(cnn, "conv2"))
    segmenter = Segmenter(cnn, saliency=saliency, preprocess=Preprocess(size=40))
    result = segmenter.segment(image_array, [1, 2], raw=True)
    assert set(result.classes) == {1, 2}
    assert result.settings["saliency"] == {
        "method": "Fused Saliency",
        "first": saliency.first.settings,
        "second": saliency.second.settings,
    }
    assert result.class_maps.raw.shape == result.class_maps.maps.shape

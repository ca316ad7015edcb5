"""Heat maps of class scores and their product with saliency: values by hand, and their range."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.segmentation.fusion import fused, heat_maps


def test_heat_maps_by_hand():
    # Sigmoids 1/2, 3/4, 1/5 and 1/10; the largest becomes one.
    logits = torch.tensor([[[[0.0, math.log(3)], [-math.log(4), -math.log(9)]]]])
    heat = heat_maps(logits, (2, 2))
    assert heat.flatten().tolist() == pytest.approx([2 / 3, 1.0, 4 / 15, 2 / 15])


def test_probabilities_are_resized_not_scores():
    # Sigmoids 1/2 and 9/10 at half-pixel centres: 1/2, 3/4 + 1/4 of the way, 9/10.
    heat = heat_maps(torch.tensor([[[[0.0, math.log(9)]]]]), (1, 4))
    assert heat.flatten().tolist() == pytest.approx([0.5 / 0.9, 0.6 / 0.9, 0.8 / 0.9, 1.0])


def test_a_class_that_the_classifier_missed_still_has_a_place():
    heat = heat_maps(torch.tensor([[[[-30.0, -31.0]]]]), (1, 2))
    assert heat.flatten().tolist() == pytest.approx([1.0, math.exp(-1)])


def test_fusion_by_hand():
    heat = torch.tensor([[[[1.0, 0.5]], [[0.2, 1.0]]]])
    saliency = torch.tensor([[[[0.4, 1.0]], [[0.5, 0.0]]]])
    # Products 0.4, 0.5 and 0.1, 0, each divided by the larger.
    assert fused(heat, saliency).flatten().tolist() == pytest.approx([0.8, 1.0, 1.0, 0.0])


def test_maps_without_a_common_pixel_give_zero():
    heat = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    saliency = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]])
    assert fused(heat, saliency).count_nonzero() == 0


@given(st.integers(0, 10_000), st.floats(0.1, 30.0))
@settings(max_examples=40, deadline=None)
def test_the_range_and_where_it_can_be_positive(seed, steepness):
    generator = torch.Generator().manual_seed(seed)
    logits = steepness * torch.randn(1, 2, 3, 4, generator=generator)
    saliency = (torch.rand(1, 2, 7, 9, generator=generator) - 0.5).clamp(min=0) * 2
    heat = heat_maps(logits, (7, 9))
    product = fused(heat, saliency)
    for maps in (heat, product):
        assert maps.min() >= 0
        assert maps.amax(dim=(2, 3)).flatten().tolist() == pytest.approx([1.0, 1.0])
    assert product[saliency == 0].count_nonzero() == 0
    # What both agree on stays the order.
    assert fused(heat, torch.ones_like(heat)).equal(heat)

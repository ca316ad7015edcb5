"""Tests that channels last is used on the CPU if the model supports it, without effect on results."""

import pytest
import torch
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.attribution.inputs import channels_last


class Views(nn.Module):
    """Flattens by a view, which the usual order in memory alone allows."""

    def __init__(self, flatten):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)
        self.flatten = flatten
        self.formats = []

    def forward(self, x):
        self.formats.append(x.is_contiguous(memory_format=torch.channels_last))
        x = self.second(self.convolution(x).relu()).relu()
        return self.linear(self.flatten(x).unflatten(1, (8, -1)).square().mean(2))


def views(x):
    return x.view(len(x), -1)


def flattens(x):
    return x.flatten(1)


def model_of(flatten):
    torch.manual_seed(0)
    return Views(flatten).double().eval()


def test_the_model_gets_channels_last_and_the_images_are_unchanged():
    model, images = model_of(flattens), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    before = images.clone()
    maps = DistinctClassSaliency(model, "second", scales=(1.0,)).class_maps(images, candidates=[0, 1]).maps
    assert model.formats == [True]
    assert maps.is_contiguous()
    assert images.is_contiguous()
    assert torch.equal(images, before)


def test_a_model_that_calls_view_gets_the_contiguous_format():
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    viewing = model_of(views)
    method = DistinctClassSaliency(viewing, "convolution")
    found = method.class_maps(images, candidates=[0, 1, 2]).maps
    assert viewing.formats == [True, False, False, False], "one attempt for all scales"
    again = method.class_maps(images, candidates=[0, 1, 2]).maps
    assert viewing.formats[4:] == [False] * 3
    expected = DistinctClassSaliency(model_of(flattens), "convolution").class_maps(images, candidates=[0, 1, 2]).maps
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(again, found)


def test_other_errors_are_not_retried():
    def fails(x):
        raise RuntimeError("something else")

    model = model_of(fails)
    with pytest.raises(RuntimeError, match="something else"):
        DistinctClassSaliency(model, "second", scales=(1.0,)).attribute(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert model.formats == [True]


def test_other_devices_keep_the_memory_format():
    meta = torch.empty(1, 3, 4, 4, device="meta")
    assert channels_last((meta,))[0] is meta

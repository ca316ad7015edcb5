"""Tests of half precision, autocast and memory formats on networks with batch norm and smooth activations."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from dcsm_attr import DistinctClassSaliency

NAMES = ["mobilenet_v3_small", pytest.param("resnet18", marks=pytest.mark.slow), "squeezenet1_1"]
CANDIDATES = [0, 1, 2]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    """With statistics of batch norm as after training; without them the activations of deep layers vanish."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, weights=None, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 96, 96))
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    """Smooth, as natural images are."""
    coarse = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, (96, 96), mode="bicubic")


def maps_of(model, x):
    return DistinctClassSaliency(model, subtract=False).class_maps(x, candidates=CANDIDATES)


def check_near(result, expected, tolerance):
    assert result.maps.dtype == torch.float32
    assert result.maps.isfinite().all()
    assert result.classes.tolist() == expected.classes.tolist()
    assert (result.maps - expected.maps).abs().mean() < tolerance


# Mean differences of the maps, which lie in [0, 1]: two to three times the largest seen.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.02)])
def test_autocast_stays_near_float32(model, inputs, dtype, tolerance):
    expected = maps_of(model, inputs)
    with torch.autocast("cpu", dtype):
        assert model(inputs).dtype == dtype
        result = maps_of(model, inputs)
    check_near(result, expected, tolerance)


def test_a_bfloat16_model_stays_near_float32(model, inputs):
    expected = maps_of(model, inputs)
    half = copy.deepcopy(model).bfloat16()
    check_near(maps_of(half, inputs.bfloat16()), expected, 0.06)


def test_a_channels_last_model_gives_equal_maps(model, inputs):
    expected = maps_of(model, inputs)
    result = maps_of(model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last))
    torch.testing.assert_close(result.maps, expected.maps, rtol=0, atol=1e-3)
    model.to(memory_format=torch.contiguous_format)

"""Half precision, autocast and orders in memory, on networks with batch norms, smooth activations and many layers."""

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
    """Batch norms know their inputs, as after training: without that the activations of deep layers vanish."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, weights=None, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 96, 96))
    return model.eval()


@pytest.fixture(scope="module")
def photographs():
    """Smooth, as photographs are."""
    coarse = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, (96, 96), mode="bicubic")


def maps_of(model, x):
    return DistinctClassSaliency(model, subtract=False).class_maps(x, candidates=CANDIDATES)


def check_near(result, expected, max_images):
    assert result.maps.dtype == torch.float32
    assert result.maps.isfinite().all()
    assert result.classes.tolist() == expected.classes.tolist()
    assert (result.maps - expected.maps).abs().mean() < max_images


# Mean differences of the maps, which lie in [0, 1]: two to three times the largest seen.
@pytest.mark.parametrize(("dtype", "max_images"), [(torch.bfloat16, 0.06), (torch.float16, 0.02)])
def test_autocast_stays_near_float32(model, photographs, dtype, max_images):
    expected = maps_of(model, photographs)
    with torch.autocast("cpu", dtype):
        assert model(photographs).dtype == dtype
        result = maps_of(model, photographs)
    check_near(result, expected, max_images)


def test_a_bfloat16_model_stays_near_float32(model, photographs):
    expected = maps_of(model, photographs)
    half = copy.deepcopy(model).bfloat16()
    check_near(maps_of(half, photographs.bfloat16()), expected, 0.06)


def test_a_channels_last_model_gives_the_same(model, photographs):
    expected = maps_of(model, photographs)
    result = maps_of(model.to(memory_format=torch.channels_last), photographs.to(memory_format=torch.channels_last))
    torch.testing.assert_close(result.maps, expected.maps, rtol=0, atol=1e-3)
    model.to(memory_format=torch.contiguous_format)

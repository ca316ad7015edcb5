"""Tests that the last linear layer is found behind every form of pooling, and that other heads raise errors."""

import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import PooledCNN
from torch import nn

from dcsm_attr.attribution.linear_head import find_cam_features
from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.models.fully_convolutional import fully_convolutional


class _Net(nn.Module):
    """One convolution with a rectifier, then whatever a test puts behind it."""

    def __init__(self, head, width=6, **layers):
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.head = head
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images):
        return self.head(self, self.convolution(images).relu())


def _found(model, images):
    with torch.no_grad():
        return find_cam_features(model.eval(), (images,))


@pytest.fixture
def images():
    return torch.randn(2, 3, 12, 16)


POOLS = {
    "mean": lambda x: x.mean((2, 3)),
    "mean, dimensions from the end": lambda x: torch.mean(x, dim=[-1, -2], keepdim=True).flatten(1),
    "rows, then columns": lambda x: x.mean(3).mean(2),
    "mean of the flattened": lambda x: x.flatten(2).mean(-1),
    "sum over positions": lambda x: x.sum(dim=(2, 3)) / x[0, 0].numel(),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).view(len(x), -1),
    "adaptive, squeezed": lambda x: nn.AdaptiveAvgPool2d(1)(x).squeeze(-1).squeeze(-1),
    "window": lambda x: F.avg_pool2d(x, x.shape[2:])[:, :, 0, 0],
    "by name": lambda x: F.adaptive_avg_pool2d(input=x, output_size=1).flatten(start_dim=1),
    "with dropout": lambda x: F.dropout(F.dropout2d(x, training=False).mean((2, 3)), 0.5, training=False),
    "rectified again": lambda x: x.mean((2, 3)).relu(),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("bias", [True, False])
def test_every_form_of_average_pooling(images, pool, bias):
    model = _Net(lambda net, x: net.fc(pool(x)), fc=nn.Linear(6, 5, bias=bias))
    evidence = _found(model, images)
    with torch.no_grad():
        torch.testing.assert_close(evidence.features, model.convolution(images).relu(), rtol=0, atol=0)
        assert torch.equal(evidence.logits, model(images))
    assert evidence.weights.data_ptr() == model.fc.weight.data_ptr(), "a copy"


AFTER = {
    "dictionary": lambda scores: {"out": scores},
    "temperature": lambda scores: scores / 0.7,
    "learned temperature": lambda scores: scores * nn.Parameter(torch.tensor(0.7)).exp() + torch.zeros(5).sigmoid(),
    "logarithm of softmax": lambda scores: F.log_softmax(scores, dim=1),
    "in place": lambda scores: scores.relu_(),
    "in a list, and back": lambda scores: torch.stack([scores, scores])[0],
}


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
def test_operations_after_the_layer_do_not_hide_it(images, after):
    model = _Net(lambda net, x: after(net.fc(x.mean((2, 3)))), fc=nn.Linear(6, 5))
    evidence = _found(model, images)
    assert evidence.features.shape == (2, 6, 6, 8)
    assert evidence.weights.data_ptr() == model.fc.weight.data_ptr()


CONVOLUTIONS = {
    "score maps": lambda net, x: net.last(x),
    "rectified": lambda net, x: F.relu(net.last(x), inplace=True),
    "pooled": lambda net, x: F.relu(net.last(x), inplace=True).mean((2, 3)),
    "enlarged": lambda net, x: F.interpolate(net.last(x), scale_factor=2.0, mode="bilinear"),
    "as a function": lambda net, x: F.conv2d(x, weight=net.last.weight, bias=net.last.bias, padding="valid"),
}


@pytest.mark.parametrize("head", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_to_the_classes(images, head):
    model = _Net(head, last=nn.Conv2d(6, 5, 1))
    evidence = _found(model, images)
    with torch.no_grad():
        features = model.convolution(images).relu()
        expected = model.last(features) - model.last.bias[:, None, None]
    torch.testing.assert_close(evidence.features, features, rtol=0, atol=0)
    torch.testing.assert_close(
        evidence.maps(torch.tensor([[4, 0], [1, 3]])),
        expected[[0, 1]].gather(1, torch.tensor([[4, 0], [1, 3]])[:, :, None, None].expand(-1, -1, 6, 8)),
    )


def test_maps_by_hand():
    model = _Net(lambda net, x: net.fc(x.mean((2, 3))), width=2, fc=nn.Linear(2, 3))
    model.convolution = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        model.convolution.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]])[..., None, None])
        model.fc.weight.copy_(torch.tensor([[1.0, -1], [-1, 2], [0.5, 0]]))
    images = torch.tensor([[[[1.0, 2], [0, 3]], [[2, 0], [1, 0]], [[9, 9], [9, 9]]]])
    maps = _found(model, images).maps(torch.tensor([[2, 0, -1]]))
    # A / 2 and A - B.
    assert maps[0, :2].tolist() == [[[0.5, 1], [0, 1.5]], [[-1, 2], [-1, 3]]]


@pytest.mark.parametrize("convert", [False, True])
def test_scores_of_squeezenet_after_their_rectifier(convert):
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=7)
    evidence = _found(fully_convolutional(model) if convert else model, torch.randn(1, 3, 64, 96))
    maps = evidence.maps(torch.arange(7)[None]) + model.classifier[1].bias[:, None, None]
    scores = evidence.logits if evidence.logits.ndim == 2 else pool_score_maps(evidence.logits, "average")
    torch.testing.assert_close(maps.relu().mean((2, 3)), scores)
    assert (maps < 0).any(), "nothing would be rectified"


def test_an_auxiliary_head_that_runs_later_is_ignored():
    model = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    )
    evidence = _found(model, torch.randn(1, 3, 32, 32))
    assert evidence.weights.data_ptr() == model.classifier[4].weight.data_ptr()
    assert evidence.features.shape[1] == 512


@pytest.mark.parametrize("side", [8, 32])
def test_a_map_of_one_position_is_its_own_mean(side):
    model = torchvision.models.resnet18(weights=None, num_classes=5)
    evidence = _found(model, torch.randn(2, 3, side, side))
    assert evidence.features.shape == (2, 512, 1, 1)
    maps = evidence.maps(torch.arange(5).expand(2, -1))
    torch.testing.assert_close(maps[:, :, 0, 0] + model.fc.bias, evidence.logits)


def test_of_two_maps_with_one_mean_the_last_counts(images):
    model = _Net(lambda net, x: net.fc(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1)), fc=nn.Linear(6, 5))
    evidence = _found(model, images)
    with torch.no_grad():
        assert torch.equal(evidence.features, F.avg_pool2d(model.convolution(images).relu(), 2))


def test_lower_precision_of_the_pool(images):
    model = _Net(lambda net, x: net.fc(x.mean((2, 3))), fc=nn.Linear(6, 5)).bfloat16()
    evidence = _found(model, images.bfloat16())
    assert evidence.features.dtype == torch.bfloat16
    maps = evidence.maps(torch.arange(5).expand(2, -1))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.mean((2, 3)) + model.fc.bias, evidence.logits.float(), rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        lower = _found(model.float(), images)
    torch.testing.assert_close(lower.features, evidence.features, rtol=0.02, atol=0.02)


NOT_A_MEAN = "inputs are not the mean over positions of a map"
NO_LAYER = "do not come from a single linear layer or convolution"
REFUSED = {
    "flattened": (lambda net, x: net.fc(x.flatten(1)), {"fc": nn.Linear(6 * 48, 5)}, NOT_A_MEAN),
    "maximum": (lambda net, x: net.fc(x.amax((2, 3))), {"fc": nn.Linear(6, 5)}, NOT_A_MEAN),
    "one position": (lambda net, x: net.fc(x[:, :, 0, 0]), {"fc": nn.Linear(6, 5)}, NOT_A_MEAN),
    "generalized mean": (
        lambda net, x: net.fc(x.pow(3).mean((2, 3)).pow(1 / 3)),
        {"fc": nn.Linear(6, 5)},
        NOT_A_MEAN,
    ),
    "mean and maximum": (
        lambda net, x: net.fc(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)),
        {"fc": nn.Linear(12, 5)},
        NOT_A_MEAN,
    ),
    "normalized after pooling": (
        lambda net, x: net.fc(F.layer_norm(x.mean((2, 3)), (6,))),
        {"fc": nn.Linear(6, 5)},
        NOT_A_MEAN,
    ),
    "hidden layer": (
        lambda net, x: net.fc(net.hidden(x.mean((2, 3))).relu()),
        {"hidden": nn.Linear(6, 6), "fc": nn.Linear(6, 5)},
        NOT_A_MEAN,
    ),
    "hidden convolution after pooling": (
        lambda net, x: net.fc(net.hidden(x.mean((2, 3), keepdim=True)).relu().flatten(1)),
        {"hidden": nn.Conv2d(6, 8, 1), "fc": nn.Linear(8, 5)},
        NOT_A_MEAN,
    ),
    "window": (lambda net, x: net.fc(x), {"fc": nn.Conv2d(6, 5, 3)}, "is not pointwise"),
    "stride": (lambda net, x: net.fc(x), {"fc": nn.Conv2d(6, 5, 1, stride=2)}, "is not pointwise"),
    "padding": (lambda net, x: net.fc(x), {"fc": nn.Conv2d(6, 5, 1, padding=1)}, "is not pointwise"),
    "groups": (lambda net, x: net.fc(x), {"fc": nn.Conv2d(6, 6, 1, groups=2)}, "is not pointwise"),
    "two heads": (
        lambda net, x: net.one(x) + net.two(x),
        {"one": nn.Conv2d(6, 5, 1), "two": nn.Conv2d(6, 5, 1)},
        NO_LAYER,
    ),
    "product": (
        lambda net, x: x.mean((2, 3)) @ net.fc.weight.T,
        {"fc": nn.Linear(6, 6)},
        NO_LAYER,
    ),
    "some classes": (lambda net, x: net.fc(x.mean((2, 3)))[:, :3], {"fc": nn.Linear(6, 5)}, NO_LAYER),
    "another order": (lambda net, x: net.fc(x.mean((2, 3)))[:, [1, 0, 2]], {"fc": nn.Linear(6, 3)}, NO_LAYER),
    "another order, selected": (
        lambda net, x: net.fc(x.mean((2, 3))).index_select(1, torch.tensor([1, 0, 2])),
        {"fc": nn.Linear(6, 3)},
        NO_LAYER,
    ),
    "reversed": (lambda net, x: torch.flip(net.fc(x), (1,)), {"fc": nn.Conv2d(6, 5, 1)}, NO_LAYER),
    "two heads, joined": (
        lambda net, x: torch.cat([net.one(x), net.two(x)], 1),
        {"one": nn.Conv2d(6, 2, 1), "two": nn.Conv2d(6, 2, 1)},
        NO_LAYER,
    ),
    "nothing": (lambda net, x: torch.zeros(2, 5), {}, NO_LAYER),
}


@pytest.mark.parametrize(("head", "layers", "message"), REFUSED.values(), ids=REFUSED)
def test_scores_without_a_linear_layer_raise(images, head, layers, message):
    with pytest.raises(ValueError, match=message) as raised:
        _found(_Net(head, **layers), images)
    assert "fully_convolutional(model) makes such a network" in str(raised.value)


def test_networks_with_other_heads_raise_until_made_fully_convolutional():
    model, image = torchvision.models.mobilenet_v3_small(weights=None, num_classes=5), torch.randn(1, 3, 96, 64)
    with pytest.raises(ValueError, match=NOT_A_MEAN):
        _found(model, image)
    network = fully_convolutional(model)
    evidence = _found(network, image)
    maps = evidence.maps(torch.arange(5)[None]) + network.head[-1].bias[:, None, None]
    torch.testing.assert_close(maps, evidence.logits)
    assert maps.ndim == 4


def test_outputs_that_are_not_scores_raise(images):
    with pytest.raises(ValueError, match=r"N = 2; it returned \(2, 5, 1\)"):
        _found(_Net(lambda net, x: net.fc(x.mean((2, 3)))[..., None], fc=nn.Linear(6, 5)), images)
    with pytest.raises(TypeError, match="must return a tensor of scores"):
        _found(_Net(lambda net, x: [x.mean((2, 3))]), images)


class _Gated(nn.Module):
    """Two blocks with squeeze and excitation; tells which of the maps before a point are still alive there."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6))
        self.squeeze = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(2))
        self.excite = nn.ModuleList(nn.Conv2d(2, 6, 1) for _ in range(2))
        self.fc = nn.Linear(6, 5)
        self.alive = []

    def forward(self, x):
        seen = []
        for convolution, squeeze, excite in zip(self.convolutions, self.squeeze, self.excite, strict=True):
            x = convolution(x).relu()
            seen.append(weakref.ref(x))
            pooled = F.adaptive_avg_pool2d(x, 1).relu_()
            seen.append(weakref.ref(pooled))
            x = excite(squeeze(pooled).relu_()).sigmoid() * x
            pooled = None
            seen.append(weakref.ref(x))
        scores = self.fc(x.mean((2, 3)))
        self.alive = [reference() is not None for reference in seen]
        return scores


def test_only_what_is_needed_is_kept_alive(images):
    model = _Gated()
    _found(model, images)
    # The map before the pool alone; of the first block nothing.
    assert model.alive == [False, False, False, False, False, True]


def test_nan_features_are_reported_by_the_scores(images):
    model = PooledCNN()
    with torch.no_grad():
        model.conv3.bias[0] = torch.nan
    assert _found(model, images).logits.isnan().all()

"""Classifiers as score map networks: the same scores at the trained size, and maps at any other size."""

import inspect

import pytest
import torch
import torchvision
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.models.backbone import copy_backbone
from dcsm_attr.models.fully_convolutional import fully_convolutional, linear_to_convolution, rectified_head

# One model of each family of torchvision, and its training size.
FAMILIES = [
    ("alexnet", 224),
    ("vgg11_bn", 224),
    ("squeezenet1_1", 224),
    ("resnet18", 224),
    ("resnext50_32x4d", 224),
    ("regnet_y_400mf", 224),
    ("densenet121", 224),
    ("googlenet", 224),
    ("inception_v3", 299),
    ("mobilenet_v2", 224),
    ("mnasnet0_5", 224),
    ("shufflenet_v2_x0_5", 224),
    ("efficientnet_b0", 224),
]
NOT_LINEAR = ["mobilenet_v3_small", "convnext_tiny"]


def model_named(name, classes=6):
    builder = torchvision.models.get_model_builder(name)
    options = {"init_weights": False} if "init_weights" in inspect.signature(builder).parameters else {}
    if name == "alexnet" or name.startswith("vgg"):
        return narrow(builder, classes, **options).eval()
    return builder(weights=None, num_classes=classes, **options).eval()


def narrow(builder, classes, **options):
    """An AlexNet or VGG with an eighth of the channels: the same modules in the same order, with few weights."""
    with torch.device("meta"):
        model = builder(weights=None, num_classes=classes, **options)
    last = model.classifier[-1]
    for part in (model.features, model.classifier):
        for i, layer in enumerate(part):
            if isinstance(layer, nn.Conv2d):
                sizes = max(3, layer.in_channels // 8), layer.out_channels // 8
                part[i] = nn.Conv2d(*sizes, layer.kernel_size, layer.stride, layer.padding)
            elif isinstance(layer, nn.BatchNorm2d):
                part[i] = nn.BatchNorm2d(layer.num_features // 8)
            elif isinstance(layer, nn.Linear):
                part[i] = nn.Linear(layer.in_features // 8, classes if layer is last else layer.out_features // 8)
    return model


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_the_same_function_at_the_trained_size_and_maps_at_others(name, size):
    model = model_named(name)
    network = fully_convolutional(model)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        expected = model(x)
        maps = network(x)
        assert network(torch.randn(1, 3, 130, 170)).shape[:2] == (1, 6)
    assert (maps.mean(dim=(2, 3)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    if name in ("alexnet", "vgg11_bn"):
        assert maps.shape[2:] == (1, 1)
    else:
        assert min(maps.shape[2:]) >= 7


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_heads_that_are_not_linear_work_at_each_position(name):
    model = model_named(name)
    network = fully_convolutional(model)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = network.backbone(x)["map"]
        maps = network(x)
        position = features[:, :, 2:3, 4:5]
        expected = model.classifier(position.flatten(1) if name.startswith("mobilenet") else position)
    assert maps.shape[2:] == features.shape[2:]
    assert torch.allclose(maps[:, :, 2, 4], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["vgg11", "squeezenet1_0", "googlenet", "mobilenet_v3_small"])
def test_new_classes_replace_the_last_layer_alone(name):
    model = model_named(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    network = fully_convolutional(model, 9)
    assert network(torch.randn(2, 3, 96, 96)).shape[:2] == (2, 9)
    backbone = network.backbone.state_dict()
    assert backbone
    assert all(torch.equal(value, before[key]) for key, value in backbone.items())
    for parameter in network.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_squeezenets_scores_may_be_negative_with_new_classes():
    network = fully_convolutional(model_named("squeezenet1_1"), 5)
    assert (network(torch.randn(1, 3, 64, 64)) < 0).any()
    assert not (fully_convolutional(model_named("squeezenet1_1"))(torch.randn(1, 3, 64, 64)) < 0).any()


@pytest.mark.parametrize("head", ["linear", "rectified"])
def test_a_network_cut_after_a_stage(head):
    model = model_named("resnet18")
    network = fully_convolutional(model, 4, cut="layer3", head=head)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(network.backbone(x)["map"], nn.Sequential(*list(model.children())[:7])(x))
    assert network(x).shape == (1, 4, 4, 6)
    assert not any("layer4" in name for name in network.state_dict())
    assert sum(isinstance(m, nn.ReLU) for m in network.head) == (2 if head == "rectified" else 0)


def test_a_model_that_is_not_torchvisions():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
            self.end = nn.Linear(8, 3)

        def forward(self, x):
            return self.end(self.stem(x).mean((2, 3)))

    assert fully_convolutional(Mine(), 5, cut="stem", head="linear")(torch.randn(1, 3, 33, 33)).shape == (1, 5, 16, 16)
    with pytest.raises(ValueError, match="where the backbone of Mine ends is not known"):
        fully_convolutional(Mine(), 5)


def test_mode_and_precision_are_those_of_the_model():
    model = model_named("resnet18").double()
    assert not fully_convolutional(model).training
    assert fully_convolutional(model.train()).training
    assert {p.dtype for p in fully_convolutional(model).parameters()} == {torch.float64}


def test_dcsm_works_on_the_network():
    network = fully_convolutional(model_named("vgg11"), 4)
    dcs = DistinctClassSaliency(network)
    assert all("backbone.features" in name for name in dcs.layers)
    found = dcs.class_maps(torch.randn(1, 3, 96, 96))
    assert found.maps.shape == (1, 3, 96, 96)
    assert found.subtracted.all()
    assert found.maps.amax(dim=(2, 3)).min() > 0.3


def test_a_linear_layer_over_a_map_as_a_convolution():
    linear = nn.Linear(2 * 3 * 3, 5)
    convolution = linear_to_convolution(linear, 2)
    maps = torch.randn(4, 2, 3, 3)
    assert torch.allclose(convolution(maps)[:, :, 0, 0], linear(maps.flatten(1)), atol=1e-6)
    assert convolution(torch.randn(1, 2, 5, 6)).shape == (1, 5, 3, 4)
    small = torch.randn(1, 2, 1, 2)
    padded = torch.zeros(1, 2, 3, 3)
    padded[:, :, 1:2, :2] = small
    assert torch.equal(convolution(small), convolution(padded))
    with pytest.raises(ValueError, match=r"4 \* k \* k features; it takes 18"):
        linear_to_convolution(linear, 4)


def test_the_rectified_head_by_hand():
    head = rectified_head(2, 3, width=4, dropout=0.0)
    x = torch.randn(1, 2, 5, 5)
    first = torch.relu(torch.nn.functional.conv2d(x, head[0].weight, head[0].bias, padding=1))
    second = torch.relu(torch.nn.functional.conv2d(first, head[3].weight, head[3].bias))
    assert torch.allclose(head(x), torch.nn.functional.conv2d(second, head[6].weight, head[6].bias), atol=1e-6)


@pytest.fixture(scope="module")
def small():
    return model_named("resnet18")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cut": "layer3"}, "removes the model's own head"),
        ({"head": "linear"}, "is a new head, which needs num_classes"),
        ({"head": "extended"}, "is a new head, which needs num_classes"),
        ({"head": "extended", "num_classes": 3, "cut": "layer3"}, "removes the model's own head"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"head": "deep", "num_classes": 3}, "head must be one of 'own', .*'fickle'; got 'deep'"),
        (
            {"num_classes": 3, "cut": "layer9", "head": "linear"},
            "'layer9' is not a place where ResNet can be cut; its stages: .*layer4",
        ),
    ],
)
def test_bad_arguments(small, arguments, message):
    with pytest.raises(ValueError, match=message):
        fully_convolutional(small, **arguments)


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "vgg11"])
def test_the_extended_head_uses_the_models_own_scores(name):
    model = model_named(name)
    network = fully_convolutional(model, 5, head="extended")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        own = torch.relu(fully_convolutional(model)(x))
        expected = torch.nn.functional.conv2d(own, network.head[-1].weight, network.head[-1].bias)
        assert torch.allclose(network(x), expected, atol=1e-5)
    assert sum(isinstance(layer, nn.ReLU) for layer in network.head) == (3 if name == "vgg11" else 1)


def test_a_copied_backbone_changes_its_mode_and_shares_no_memory():
    network = fully_convolutional(model_named("resnet18"), 2, head="linear").eval()
    copied = copy_backbone(network.backbone)
    images = torch.randn(2, 3, 64, 64)
    before = network.backbone(images)["map"]
    assert torch.equal(copied.train().eval()(images)["map"], before)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(network.backbone(images)["map"], before)

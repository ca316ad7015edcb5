"""Tests of the choice of layers, whose gradients must vary between positions."""

import pytest
import torch
import torchvision
from conftest import TinyVGG
from torch import nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.attribution.layers import (
    RandomlyGatedRectifiers,
    default_layers,
    is_constant,
    layer_blocks,
    probe_image,
    vgg_blocks,
)


def _model(name):
    if name.startswith("vgg"):
        # Known, and therefore not run: without the weights, of which there are hundreds of megabytes.
        with torch.device("meta"):
            return torchvision.models.get_model(name, weights=None)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


def test_vgg16_has_conv3_1_to_conv5_3():
    # In torchvision's numbering of VGG-16: blocks end at the pools 4, 9, 16, 23, 30.
    assert default_layers(_model("vgg16")) == [f"features.{i}" for i in (10, 12, 14, 17, 19, 21, 24, 26, 28)]
    assert len(default_layers(_model("vgg19_bn"))) == 12


def test_vgg16_has_five_blocks():
    numbers = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    assert layer_blocks(_model("vgg16")) == [[f"features.{i}" for i in block] for block in numbers]
    # With batch norms a convolution takes three places; a VGG-11 has 1, 1, 2, 2, 2 of them.
    assert vgg_blocks(_model("vgg11_bn")) == [
        [f"features.{i}" for i in block] for block in ([0], [4], [8, 11], [15, 18], [22, 25])
    ]


BLOCKS = {
    # Five inputs at 56 x 56 positions, four at 28 x 28 and 14 x 14, three at 7 x 7; the first, the middle and the last.
    "resnet18": [
        ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"],
        ["layer2.0.conv2", "layer2.1.conv2", "layer3.0.conv1"],
        ["layer3.0.conv2", "layer3.1.conv2", "layer4.0.conv1"],
        ["layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"],
    ],
    # The inputs of fires; of four at the last resolution, the first, the third and the fourth.
    "squeezenet1_1": [
        ["features.3.squeeze", "features.4.squeeze"],
        ["features.6.squeeze", "features.7.squeeze"],
        ["features.9.squeeze", "features.11.squeeze", "features.12.squeeze"],
    ],
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_known_families(name):
    assert layer_blocks(_model(name)) == BLOCKS[name]


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "resnet18", "squeezenet1_1"])
def test_the_default_layers_are_the_last_three_blocks(name):
    model = _model(name)
    blocks = layer_blocks(model)
    assert default_layers(model) == [name for block in blocks[-3:] for name in block]
    assert len({layer for block in blocks for layer in block}) == sum(map(len, blocks))


EXPECTED = {
    "alexnet": ["features.3", "features.6", "features.8", "features.10"],
    "resnet18": [
        *("layer2.0.conv2", "layer2.1.conv2", "layer3.0.conv1"),
        *("layer3.0.conv2", "layer3.1.conv2", "layer4.0.conv1"),
        *("layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"),
    ],
    "squeezenet1_1": [f"features.{i}.squeeze" for i in (3, 4, 6, 7, 9, 11, 12)],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_known_families(name):
    assert default_layers(_model(name)) == EXPECTED[name]


FAMILIES = ["densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5"]
FAMILIES += ["efficientnet_b0", "convnext_tiny", "regnet_y_400mf", "resnet50", "inception_v3"]


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_every_family_have_varying_gradients(name):
    model = _model(name).eval()
    layers = default_layers(model)
    assert 4 <= len(layers) <= 9
    assert len(set(layers)) == len(layers)
    resolutions = set()

    def note(module, inputs):
        resolutions.add(tuple(inputs[0].shape[2:]))

    handles = [model.get_submodule(layer).register_forward_pre_hook(note) for layer in layers]
    with torch.no_grad():
        model(probe_image(model))
    for handle in handles:
        handle.remove()
    assert len(resolutions) in (2, 3)
    assert max(resolutions) <= (56, 56)


class _PooledTail(nn.Module):
    """The last convolution has nothing between it and the pool that gates by position: its gradient is constant."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(self.conv3(x).mean((2, 3)))


def test_a_convolution_with_a_constant_gradient_is_not_chosen():
    assert default_layers(_PooledTail()) == ["conv2"]


def test_the_classification_head_is_not_chosen():
    assert default_layers(TinyVGG()) == ["features.2", "features.5", "features.8"]


def test_one_wider_tensor_does_not_change_the_width_of_a_stage():
    # block4-0 widens from 208 to 440 channels before it strides; block 3 is a stage all the same.
    block = "trunk_output.block3.block3-"
    assert default_layers(_model("regnet_y_400mf"))[3:6] == [
        f"{block}0.f.c.0",
        f"{block}3.f.b.0",
        "trunk_output.block4.block4-0.f.b.0",
    ]


def _calibrated(model):
    """Batch norms that know their inputs, as after training: activations on both sides of zero, in every layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 224, 224))
    return model.eval()


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_layers_are_the_same_before_and_after_training(name):
    model = _model(name)
    before = default_layers(model)
    assert default_layers(_calibrated(model)) == before
    if name == "efficientnet_b0":
        assert before[-1] == "features.7.0.block.3.0"


def test_random_gates_mark_rectifiers_for_any_input():
    x = torch.full((1, 2, 3, 4), 1e-6, requires_grad=True)
    scale = torch.full((1, 2, 1, 1), 1e-6, requires_grad=True)
    with RandomlyGatedRectifiers():
        y = nn.functional.silu(x)
        z = y * nn.functional.relu(scale)
    assert torch.equal(y, nn.functional.silu(x))
    at_y, at_x = torch.autograd.grad(z.sum(), [y, x])
    assert is_constant(at_y).all(), "a gate of channels is none of positions"
    assert not is_constant(at_x).any()
    ratio = at_x / (scale / 2)
    assert ratio.min() > 0.49
    assert ratio.max() < 1.51


def test_the_last_run_of_a_convolution_counts():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x):
            x = torch.relu(self.conv(torch.relu(self.stem(x))))
            x = torch.relu(self.conv(nn.functional.max_pool2d(x, 2)))
            return self.fc(x.mean((2, 3)))

    model = Shared().eval()
    assert layer_blocks(model) == [["conv"]]
    assert DistinctClassSaliency(model).attribute(torch.randn(1, 3, 32, 32), 1).max() > 0.5


class _SeveralInputs(nn.Module):
    """An image, an image of depth, and how much the latter counts."""

    def __init__(self):
        super().__init__()
        self.color, self.depth = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.conv, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, color, depth, weight):
        x = torch.relu(self.color(color) + weight[:, None, None, None] * self.depth(depth))
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def test_layers_of_a_model_with_several_inputs_and_arguments():
    model, weight = _SeveralInputs().eval(), torch.tensor([0.0, 2.0])
    inputs = (torch.randn(2, 3, 20, 24), torch.randn(2, 1, 20, 24))
    dcs = DistinctClassSaliency(model)
    with pytest.raises(RuntimeError, match=r"shape \(1, 3, 224, 224\).*after the first call"):
        _ = dcs.layers
    color, depth = dcs.attribute(inputs, 1, additional_forward_args=weight)
    assert dcs.layers == ("conv",)
    assert torch.equal(color, depth)
    other = dcs.attribute((inputs[0], inputs[1] + 1), 1, additional_forward_args=weight)[0]
    assert torch.equal(other[0], color[0]), "the depth of the first image counts nothing"
    assert not torch.equal(other[1], color[1])


def test_errors_of_a_model_on_its_own_images_are_raised(images):
    class Broken(TinyVGG):
        def forward(self, x):
            raise TypeError("something of its own")

    with pytest.raises(TypeError, match="something of its own"):
        DistinctClassSaliency(Broken()).attribute(images, 1)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_half_precision_changes_no_layer(name):
    model = _model(name)
    expected = default_layers(model)
    assert default_layers(model.to(torch.bfloat16)) == expected


def test_probing_changes_nothing_and_is_reproducible(cnn):
    state = {name: value.clone() for name, value in cnn.train().state_dict().items()}
    torch.manual_seed(5)
    random = torch.get_rng_state()
    assert default_layers(cnn) == default_layers(cnn)
    assert torch.equal(torch.get_rng_state(), random)
    assert cnn.training
    assert all(torch.equal(value, state[name]) for name, value in cnn.state_dict().items())
    assert all(p.grad is None for p in cnn.parameters())


def test_layers_of_a_half_precision_model_with_four_channels():
    # The last convolution gives the scores: behind it nothing gates its gradient by position.
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    assert default_layers(model.to(torch.bfloat16)) == ["3"]


def test_is_constant_by_hand():
    maps = torch.stack([torch.full((2, 2), 0.3), torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [1.0, 1.1]])])
    assert is_constant(maps).tolist() == [True, False, False]


def test_default_layers_are_chosen_once(vgg, images):
    calls = []
    handle = vgg.register_forward_pre_hook(lambda *_: calls.append(1))
    dcs = DistinctClassSaliency(vgg, scales=(1.0,))
    for _ in range(3):
        dcs.attribute(images, 1)
    handle.remove()
    assert len(calls) == 1 + 3


def test_models_without_convolution_modules_need_named_layers():
    class Functional(TinyVGG):
        def forward(self, x):
            return nn.functional.conv2d(x, self.features[0].weight, self.features[0].bias)

    with pytest.raises(ValueError, match="no convolution of Functional has an input.*layer="):
        default_layers(Functional())

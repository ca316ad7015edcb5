"""Backbones without their last strides, compared with torchvision's dilated ResNets and with the undilated maps."""

import pytest
import torch
from torch import nn
from torchvision.models import get_model, resnet50

from dcsm_attr.models.backbone import replace_stride_with_dilation
from dcsm_attr.models.checkpoint import Architecture, build_classifier, load_classifier, save_network
from dcsm_attr.models.fully_convolutional import fully_convolutional


def geometry(network):
    return [(m.stride, m.dilation, m.padding) for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]


def test_a_bottleneck_resnet_equals_torchvisions_dilated_one():
    model = resnet50(weights=None).eval()
    with torch.device("meta"):
        theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(model.state_dict(), assign=True)
    ours = fully_convolutional(model, 2, head="linear", output_stride=8)
    expected = fully_convolutional(theirs, 2, head="linear")
    images = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.backbone(images)["map"], expected.backbone(images)["map"], rtol=1e-3, atol=1e-3)
    assert geometry(ours) == geometry(expected)
    # The model itself keeps its strides.
    assert model.layer4[0].conv2.stride == (2, 2)


class Chain(nn.Module):
    """Strided convolutions."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, 1, 1)
        )

    def forward(self, x):
        return self.features(x)


def test_every_other_position_is_unchanged():
    model = Chain().double().eval()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    coarse = fully_convolutional(model, 2, cut="features", head="linear").backbone
    fine = fully_convolutional(model, 2, cut="features", head="linear", output_stride=2).backbone
    with torch.no_grad():
        found, before = fine(images)["map"], coarse(images)["map"]
    assert found.shape == (1, 6, 16, 16)
    # Except at the right and lower edge, which are padded with two positions instead of one.
    assert torch.allclose(found[..., ::2, ::2][..., :-1, :-1], before[..., :-1, :-1], atol=1e-12)


def test_vgg_is_dilated_as_in_deeplab():
    with torch.device("meta"):
        model = get_model("vgg11", weights=None)
    network = fully_convolutional(model, 2, head="linear", output_stride=8)
    layers = list(dict(network.backbone.named_modules())["features"].children())
    pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
    assert [(pool.kernel_size, pool.stride) for pool in pools] == [(2, 2), (2, 2), (2, 2), (3, 1), (3, 1)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.dilation[0] for layer in convolutions] == [1, 1, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5"])
def test_other_families(name):
    model = get_model(name, weights=None).eval()
    network = fully_convolutional(model, 2, head="linear", output_stride=8).eval()
    with torch.no_grad():
        side = network.backbone(torch.zeros(1, 3, 160, 160))["map"].shape[-1]
    assert side in (19, 20)


def test_networks_that_cannot_be_dilated():
    model = get_model("inception_v3", weights=None, init_weights=False).eval()
    with pytest.raises(ValueError, match="this network cannot have output_stride=8"):
        fully_convolutional(model, 2, head="linear", output_stride=8)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        fully_convolutional(Chain(), 2, cut="features", head="linear", output_stride=0)
    with pytest.raises(TypeError, match="traced backbone.*Chain"):
        replace_stride_with_dilation(Chain(), 8)


def test_a_classifiers_file_contains_its_stride(tmp_path):
    architecture = Architecture("squeezenet1_1", 2, "features.7", "linear", output_stride=4)
    built = build_classifier(architecture, None, ("a", "b"))
    save_network(built, tmp_path / "net.safetensors")
    found = load_classifier(tmp_path / "net.safetensors")
    assert found.architecture == architecture
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.network(images), built.network.eval()(images))
        assert found.network(images).shape[-1] == 15

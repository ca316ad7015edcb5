"""CNNs of timm, whose code shares nothing with torchvision's: the same promises."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.model_zoo import count_rectifiers
from dcsm_attr import DistinctClassSaliency, GuidedRectifiers, Segmenter
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.fully_convolutional import fully_convolutional

timm = pytest.importorskip("timm", reason="needs timm, the extra of its name")

CLASSES = 6
# These take multiples of 32 only, which 160 is at the scales 0.8 and 1.2 too.
SIZES = {"dla34": 160, "hrnet_w18_small": 160}
# With the place where the backbone ends.
MODELS = {
    "convnextv2_atto": "stages",
    "cspresnet50": "stages",
    "densenet121": "features",
    "dla34": "level5",
    "efficientnet_lite0": "bn2",
    "eca_nfnet_l0": "final_act",
    "ghostnet_100": "blocks",
    "hrnet_w18_small": "final_layer",
    "mobilenetv4_conv_small": "blocks",
    "regnetx_002": "final_conv",
    "res2net50_14w_8s": "layer4",
    "resnet26d": "layer4",
}
FAST = ["convnextv2_atto", "mobilenetv4_conv_small", "regnetx_002"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in MODELS]
)
def test_the_same_promises(name):
    size = SIZES.get(name, 96)
    model = timm.create_model(name, pretrained=False, num_classes=CLASSES).train()
    # timm begins with residual branches that give zero, and so have no gradient; trained ones do not.
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)
    x = torch.randn(1, 3, size, size)
    dcs = DistinctClassSaliency(model)
    maps = dcs.class_maps(x, [0, 1, 2]).maps
    assert maps.isfinite().all()
    assert 0 <= maps.min() < maps.max() <= 1
    assert 4 <= len(dcs.layers) <= 9
    assert model.training
    image_array = np.random.default_rng(0).integers(0, 256, (size - 20, size, 3), dtype=np.uint8)
    segmentation = Segmenter(model, preprocess=Preprocess(size=size)).segment(image_array, [2])
    assert segmentation.labels.shape == image_array.shape[:2]
    in_graph = count_rectifiers(model.eval()(x.clone().requires_grad_())).total()
    with GuidedRectifiers() as rule:
        model(x.clone().requires_grad_())
    assert rule.guided == rule.seen == in_graph > 0
    with pytest.raises(ValueError, match="is not known: name the module with cut=..., and choose a new head"):
        fully_convolutional(model)
    network = fully_convolutional(model, CLASSES, cut=MODELS[name], head="linear")
    assert DistinctClassSaliency(network, scales=(1.0,)).class_maps(x, [0, 1]).maps.isfinite().all()


def test_a_model_that_takes_multiples_of_32_only_says_which_sizes_will_do():
    model = timm.create_model("dla34", pretrained=False, num_classes=CLASSES)
    with pytest.raises(RuntimeError, match=r"at another scale, \(1, 3, 77, 77\) from \(1, 3, 96, 96\).*images of 160"):
        DistinctClassSaliency(model).attribute(torch.randn(1, 3, 96, 96))

"""What is promised for every CNN of torchvision, with no argument beside it; and what is said about other models."""

import inspect

import numpy as np
import pytest
import torch
import torchvision
from torch import fx, nn

from benchmarks.model_zoo import count_rectifiers
from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, GuidedRectifiers, Segmenter
from dcsm_attr.attribution.gradients import LayerPoint, run_forward
from dcsm_attr.attribution.linear_head import find_cam_features
from dcsm_attr.attribution.maps import absolute_channel_maximum
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.fully_convolutional import fully_convolutional

NAMES = torchvision.models.list_models(module=torchvision.models)
TRANSFORMERS = [name for name in NAMES if name.startswith(("maxvit", "swin", "vit"))]
CONVOLUTIONAL = [name for name in NAMES if name not in TRANSFORMERS]
# The smallest of each family, and how many rectifiers it has.
FAMILIES = {
    "alexnet": 7,
    "convnext_tiny": 18,
    "densenet121": 121,
    "efficientnet_b0": 49,
    "googlenet": 57,
    "inception_v3": 94,
    "mnasnet0_5": 35,
    "mobilenet_v2": 35,
    "mobilenet_v3_small": 33,
    "regnet_y_400mf": 65,
    "resnet18": 17,
    "shufflenet_v2_x0_5": 37,
    "squeezenet1_1": 26,
    "vgg11": 10,
}
# Their linear layers take something else than the mean of a map.
WITHOUT_CLASS_ACTIVATION_MAPS = (
    torchvision.models.AlexNet,
    torchvision.models.ConvNeXt,
    torchvision.models.MobileNetV3,
    torchvision.models.VGG,
)
SIZE = 96
CLASSES = 6
MODULES = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish)
FUNCTIONS = ("relu", "relu_", "silu", "gelu", "hardswish", "hardtanh", "relu6")


def built(name, **options):
    builder = torchvision.models.get_model_builder(name)
    if "init_weights" in inspect.signature(builder).parameters:
        options["init_weights"] = False
    return builder(weights=None, num_classes=CLASSES, **options)


def rectifiers_in_trace(model):
    """Rectifiers that the code of a model calls, found without running it."""
    traced = fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    return sum(
        isinstance(modules[node.target], MODULES)
        if node.op == "call_module"
        else node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in FUNCTIONS
        for node in traced.graph.nodes
    )


def check_promises(model, size):
    """Attribution, class maps, score maps and segmentation by default; every rectifier guided."""
    x = torch.randn(1, 3, size, size)
    training = {name: module.training for name, module in model.named_modules()}
    dcs = DistinctClassSaliency(model)
    attribution = dcs.attribute(x)
    assert attribution.shape == (1, 1, size, size)
    assert attribution.isfinite().all()
    maps = DistinctClassSaliency(model, dcs.layers, scales=(1.0,)).class_maps(x, [1, 4]).maps
    assert maps.shape == (1, 3, size, size)
    assert maps.isfinite().all()
    # With weights that were just drawn one class may lie below the others everywhere.
    assert (maps.amax((2, 3)) > maps.amin((2, 3))).any()
    assert 4 <= len(dcs.layers) <= 12
    image_array = np.random.default_rng(0).integers(0, 256, (size - 20, size, 3), dtype=np.uint8)
    segmentation = Segmenter(model, preprocess=Preprocess(size=size)).segment(image_array)
    assert segmentation.labels.shape == image_array.shape[:2]
    assert set(segmentation.labels.unique().tolist()) <= {0, *(c + 1 for c in segmentation.classes)}
    assert training == {name: module.training for name, module in model.named_modules()}
    network = fully_convolutional(model.eval())
    assert network(x).shape[:2] == (1, CLASSES)
    assert DistinctClassSaliency(network, scales=(1.0,)).class_maps(x, [0, 1]).maps.isfinite().all()
    check_every_rectifier(model, dcs.layers, x)
    check_class_activation_maps(model, network, x)


def check_class_activation_maps(model, network, x):
    """Found in the model as it is, or refused with how to make score maps of it; in these they are found always."""
    if isinstance(model, WITHOUT_CLASS_ACTIVATION_MAPS):
        with pytest.raises(ValueError, match=r"not the mean over positions.*fully_convolutional\(model\)"):
            ClassActivationMaps(model).attribute(x)
        models = [network]
    else:
        models = [model, network]
    for one in models:
        with torch.no_grad():
            evidence = find_cam_features(one, (x,))
            last = [module for module in one.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]
            maps = evidence.maps(torch.arange(CLASSES)[None]) + last.bias[:, None, None]
            # SqueezeNet rectifies its scores.
            maps = maps.relu() if isinstance(model, torchvision.models.SqueezeNet) else maps
        found = maps.mean((2, 3)) if evidence.logits.ndim == 2 else maps
        torch.testing.assert_close(found, evidence.logits, rtol=1e-4, atol=1e-5)
        assert ClassActivationMaps(one, scales=(1.0, 1.25)).class_maps(x, [1, 4]).maps.isfinite().all()


def check_every_rectifier(model, layers, x):
    in_graph = count_rectifiers(model(x.clone().requires_grad_())).total()
    with GuidedRectifiers() as rule:
        model(x.clone().requires_grad_())
    points = [LayerPoint(name, model.get_submodule(name), at_input=True) for name in layers]
    recording = run_forward(model, (x,), (), points, absolute_channel_maximum, guided=True)
    assert rule.guided == rule.seen == in_graph == rectifiers_in_trace(model) == recording.num_rectifiers
    assert 0 < recording.num_guided_rectifiers <= in_graph
    return in_graph


def test_every_family_of_torchvision_is_represented():
    with torch.device("meta"):
        families = {type(built(name)) for name in FAMILIES if not name.startswith("regnet")}
    builders = [torchvision.models.get_model_builder(name) for name in CONVOLUTIONAL]
    assert {builder.__module__ for builder in builders} == {
        torchvision.models.get_model_builder(name).__module__ for name in FAMILIES
    }
    assert len(CONVOLUTIONAL) >= 68
    assert len(families) == 13


# VGG's linear layers alone take as long as all others together; AlexNet's half of that, and the next are wide.
SLOW = ("alexnet", "convnext_tiny", "densenet121", "inception_v3", "vgg11")
FAST = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAMILIES]


@pytest.mark.parametrize("name", FAST)
def test_each_family_works_with_no_argument(name):
    model = built(name).train()
    check_promises(model, SIZE)
    assert rectifiers_in_trace(model) == FAMILIES[name]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONAL if name not in FAMILIES])
def test_every_model_works_with_no_argument(name):
    check_promises(built(name).train(), SIZE)


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_auxiliary_heads_take_no_part(name):
    torch.manual_seed(0)
    model = built(name, aux_logits=True)
    without = built(name, aux_logits=False)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k in without.state_dict()})
    x = torch.randn(2, 3, SIZE, SIZE)
    dcs = DistinctClassSaliency(model.train())
    assert not isinstance(model(torch.randn(2, 3, 299, 299)), torch.Tensor), "in training it returns several outputs"
    # That forward pass moved the batch norms' statistics.
    model.load_state_dict(model.state_dict() | without.state_dict())
    assert dcs.layers == DistinctClassSaliency(without).layers
    assert torch.equal(dcs.attribute(x, 1), DistinctClassSaliency(without).attribute(x, 1))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_refused_with_what_to_use_instead(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    said = f"{type(model).__name__} is a transformer: its class evidence travels through attention.*Use a CNN; or take"
    for refused in (DistinctClassSaliency, Segmenter):
        with pytest.raises(ValueError, match=said):
            refused(model)
    with pytest.raises(ValueError, match="is a transformer.*no backbone of convolutions.*Use a CNN"):
        fully_convolutional(model)


SEGMENTATION = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("fcn_resnet50", "deeplabv3_resnet50")),
    *("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
]


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_models_are_score_map_networks(name):
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    builder = torchvision.models.get_model_builder(name)
    model = builder(weights=None, weights_backbone=None, num_classes=CLASSES, **options).train()
    x = torch.randn(1, 3, SIZE, SIZE)
    dcs = DistinctClassSaliency(model)
    assert all(layer.startswith("backbone.") for layer in dcs.layers)
    assert {layer.split(".")[1] for layer in dcs.layers} & {"layer4", "15", "14"}, "up to the end of the backbone"
    result = dcs.class_maps(x, [1, 2])
    assert result.scores.shape == (1, CLASSES)
    assert result.maps.isfinite().all()
    assert (result.maps.amax((2, 3)) > 0.1).any()
    with torch.no_grad():
        maps = model.eval()(x)["out"]
    assert torch.allclose(result.scores, maps.amax((2, 3)).sigmoid(), atol=1e-5)
    image_array = np.random.default_rng(0).integers(0, 256, (64, SIZE, 3), dtype=np.uint8)
    assert Segmenter(model, preprocess=Preprocess(size=SIZE)).segment(image_array, [1]).labels.shape == (64, SIZE)
    with pytest.raises(ValueError, match="gives score maps already"):
        fully_convolutional(model)


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"]
)
def test_detection_models_are_refused_with_what_to_use_instead(name):
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None)
    with pytest.raises(TypeError, match="is a detection model: it returns boxes.*Use a classifier or a segmentation"):
        DistinctClassSaliency(model)

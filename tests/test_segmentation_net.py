"""Segmentation networks: heads by hand, files, and segmentation over several scales."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from untouched import changes, snapshot, untouched

from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.evaluation.evaluate import evaluate
from dcsm_attr.models.checkpoint import (
    Architecture,
    TrainedSegmentationNet,
    build_classifier,
    load_segmentation_net,
    save_network,
)
from dcsm_attr.models.segmentation_net import FieldOfViewHead, SegmentationNet, segmentation_head
from dcsm_attr.models.weights import WeightsError
from dcsm_attr.pipelines.label_files import write_pseudo_labels
from dcsm_attr.wsss.network_segmenter import NetworkSegmenter, SegmentationNetSaliency, label_probabilities
from dcsm_attr.wsss.region_growing import TEST_CRF, crf_for_canvas

NAMES = ("red", "green")
CANVAS = Preprocess("caffe", 32)
ARCHITECTURE = Architecture("squeezenet1_1", 2, "features.4", "linear")


def net(head="fcn", output_stride=None, seed=3):
    torch.manual_seed(seed)
    backbone = build_classifier(ARCHITECTURE, None, NAMES, CANVAS).network.backbone
    network = SegmentationNet(backbone, 2, head, output_stride)
    return TrainedSegmentationNet(network, ARCHITECTURE, head, output_stride, NAMES, CANVAS, "sec, cam")


def test_the_large_field_of_view_by_hand():
    head = FieldOfViewHead(2, 3, (1, 4), width=5, dropout=0.0).double()
    maps = torch.randn(2, 2, 9, 8, dtype=torch.float64)
    expected = 0
    for branch, dilation in zip(head.branches, (1, 4), strict=True):
        fc6, fc7, fc8 = (layer for layer in branch if isinstance(layer, nn.Conv2d))
        hidden = F.conv2d(maps, fc6.weight, fc6.bias, padding=dilation, dilation=dilation).relu()
        expected = expected + fc8(fc7(hidden).relu())
    assert torch.allclose(head(maps), expected, atol=1e-12)


@pytest.mark.parametrize(("name", "dilations"), [("largefov", [12]), ("aspp", [6, 12, 18, 24])])
def test_published_dilations(name, dilations):
    head = segmentation_head(name, 4, 3)
    assert [branch[0].dilation[0] for branch in head.branches] == dilations
    assert all(branch[0].out_channels == branch[3].in_channels == 1024 for branch in head.branches)
    # All labels are about equally probable at first.
    assert head.eval()(torch.rand(1, 4, 5, 5)).softmax(dim=1).sub(1 / 3).abs().max() < 0.3


def test_torchvisions_heads():
    assert isinstance(segmentation_head("deeplab", 8, 3), DeepLabHead)
    assert isinstance(segmentation_head("fcn", 8, 3), FCNHead)
    with pytest.raises(ValueError, match="'deeplab', 'fcn', 'largefov', 'aspp'; got 'unet'"):
        segmentation_head("unet", 8, 3)


@pytest.mark.parametrize("head", ["deeplab", "fcn", "largefov", "aspp"])
def test_one_map_of_logits_per_label(head):
    network = net(head).network.eval()
    images = torch.rand(2, 3, 40, 32)
    with torch.no_grad():
        logits = network(images)
        assert torch.equal(logits, network.head(network.backbone(images)["map"]))
    assert logits.shape == (2, 3, 9, 7)


def test_the_backbone_is_a_copy_with_its_own_stride():
    torch.manual_seed(0)
    classifier = build_classifier(Architecture("resnet18", 2, head="linear"), None, NAMES, CANVAS).network.eval()
    images = torch.rand(1, 3, 64, 64)
    before = snapshot(classifier)
    network = SegmentationNet(classifier.backbone, 2, "fcn", output_stride=8).eval()
    with torch.no_grad():
        assert network(images).shape == (1, 3, 8, 8)
        for parameter in network.parameters():
            parameter.zero_()
    # The head is initialized from the global generator.
    assert changes(before, snapshot(classifier)) == ["random"]
    assert classifier.backbone(images)["map"].shape[-1] == 2


@pytest.mark.parametrize(
    ("harmed", "message"),
    [
        (lambda d: d.pop("preprocess"), "KeyError"),
        (lambda d: d.update(head="unet"), "ValueError: head must be one of"),
        (lambda d: d["architecture"].update(depth=3), "TypeError"),
        (lambda d: d.update(output_stride=0), "ValueError: output_stride must be at least 1"),
        (lambda d: d.update(class_names=["red"]), "does not fit"),
    ],
)
def test_an_incomplete_description(tmp_path, harmed, message):
    path = tmp_path / "net.safetensors"
    save_network(net(), path)
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
    description = json.loads(text)
    harmed(description["config"])
    save_file(load_file(path), path, {key: json.dumps(description)})
    with pytest.raises(WeightsError, match=message):
        load_segmentation_net(path)


class Position(nn.Module):
    """Logits that depend on the size of the image and on the column: at half the resolution."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.0, 3.0, -2.0]))

    def forward(self, images):
        brightness = F.avg_pool2d(images.mean(dim=1, keepdim=True), 2)
        columns = torch.linspace(0, 1, brightness.shape[-1]).expand_as(brightness)
        return self.gain[:, None, None] * (brightness + columns)


def test_probabilities_are_the_mean_over_scales_and_mirrors():
    network, images = Position().eval(), torch.rand(2, 3, 16, 24)
    found = label_probabilities(network, images, (0.5, 1.0))
    expected = torch.zeros(2, 3, 16, 24)
    with torch.no_grad():
        for size in ((8, 12), (16, 24)):
            resized = F.interpolate(images, size, mode="bilinear", antialias=True)
            straight = network(resized)
            turned = network(resized.flip(3)).flip(3)
            assert not torch.allclose(straight, turned, atol=0.1)
            for logits in (straight, turned):
                enlarged = F.interpolate(logits, (16, 24), mode="bilinear")
                expected += enlarged.exp() / enlarged.exp().sum(dim=1, keepdim=True) / 4
    assert torch.allclose(found, expected, atol=1e-6)
    with torch.no_grad():
        alone = F.interpolate(network(images), (16, 24), mode="bilinear").softmax(dim=1)
    assert torch.allclose(label_probabilities(network, images, (1.0,), mirrored=False), alone, atol=1e-6)
    with pytest.raises(ValueError, match="scales must be ratios"):
        label_probabilities(network, images, ())


def test_the_network_is_left_unchanged():
    network, images = net("deeplab").network.train(), torch.rand(1, 3, 32, 32)
    with untouched(network, images):
        label_probabilities(network, images)

    class Failing(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.dropout = nn.Dropout()

        def forward(self, x):
            self.inner(self.dropout(x))
            raise RuntimeError("in the middle")

    failing = Failing(network)
    with untouched(failing, images), pytest.raises(RuntimeError, match="in the middle"):
        label_probabilities(failing, images)


class Stub(nn.Module):
    """Gives fixed probabilities, whatever the image."""

    def __init__(self, probabilities):
        super().__init__()
        self.logits = nn.Parameter(probabilities.log())

    def forward(self, images):
        return F.interpolate(self.logits[None], images.shape[2:], mode="nearest").expand(len(images), -1, -1, -1)


def stub(columns, **settings):
    """Build a segmenter with one list of probabilities per column, of background, red and green."""
    trained = replace(net(), network=Stub(torch.tensor(columns).T[:, None, :]), preprocess=Preprocess("caffe", 4))
    return NetworkSegmenter(trained, scales=(1.0,), mirrored=False, **{"crf": None, **settings})


@pytest.mark.parametrize(("side", "widths"), [(500, (80, 13, 3)), (250, (40, 13, 1.5)), (1000, (160, 13, 6))])
def test_the_crf_is_scaled_to_the_canvas(side, widths):
    trained = replace(net(), preprocess=Preprocess(size=side))
    crf = NetworkSegmenter(trained).crf
    assert (crf.bilateral_xy, crf.bilateral_rgb, crf.gaussian_xy) == pytest.approx(widths)
    assert (crf.bilateral_weight, crf.gaussian_weight, crf.iterations) == (10, 3, 10)
    assert NetworkSegmenter(trained, crf=TEST_CRF).crf is TEST_CRF
    with pytest.raises(ValueError, match="side must be at least 1, got 0"):
        crf_for_canvas(0)


COLUMNS = [[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3], [0.5, 0.1, 0.4]]
IMAGE_ARRAY = np.full((4, 4, 3), 128, dtype=np.uint8)


def test_all_classes_compete_if_none_is_known():
    result = stub(COLUMNS).segment(IMAGE_ARRAY)
    assert result.labels.tolist() == [[0, 2, 1, 0]] * 4
    assert result.names == NAMES
    assert torch.allclose(result.probabilities[:, 0].T, torch.tensor(COLUMNS), atol=1e-5)
    assert not result.fallback


def test_known_classes_exclude_the_others():
    result = stub(COLUMNS).segment(IMAGE_ARRAY, ["red"])
    assert result.labels.tolist() == [[0, 1, 1, 0]] * 4
    expected = torch.tensor([[0.6, 0.3], [0.1, 0.3], [0.3, 0.4], [0.5, 0.1]])
    expected = expected / expected.sum(dim=1, keepdim=True)
    assert torch.allclose(result.probabilities[:, 0].T, expected, atol=1e-5)
    with pytest.raises(ValueError, match="classes must be in 0 to 1, got 5"):
        stub(COLUMNS).segment(IMAGE_ARRAY, [5])
    with pytest.raises(ValueError, match="one entry for each image: got 2 for 1"):
        SegmentationNetSaliency(Stub(torch.tensor(COLUMNS).T[:, None, :])).class_maps(
            torch.rand(1, 3, 4, 4), [[0], [1]]
        )


def test_an_image_of_background_alone():
    result = stub([[0.9, 0.06, 0.04]] * 4).segment(IMAGE_ARRAY)
    assert result.labels.tolist() == [[0] * 4] * 4
    assert result.fallback


def test_the_crf_refines_the_probabilities():
    crf = DenseCRF(bilateral_xy=3, iterations=3)
    result = stub(COLUMNS, crf=crf).segment(IMAGE_ARRAY)
    expected = crf(result.unrefined[None], torch.from_numpy(IMAGE_ARRAY).permute(2, 0, 1)[None])[0]
    assert torch.allclose(result.probabilities, expected, atol=1e-5)
    assert not torch.allclose(result.probabilities, result.unrefined, atol=1e-2)
    assert result.settings["saliency"] == {"method": "segmentation network", "scales": [1.0], "mirrored": False}
    assert result.settings["architecture"]["learned_from"] == "sec, cam"


def test_evaluation_with_image_labels_and_without(tmp_path):
    mask = np.array([[0, 2, 1, 1]] * 4, dtype=np.uint8)
    Image.fromarray(IMAGE_ARRAY).save(tmp_path / "p.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    collection = Collection(NAMES, (LabeledImage("p", tmp_path / "p.png", (0,), tmp_path / "m.png"),))
    detected = evaluate(stub(COLUMNS), collection, "detected", progress=False)
    # Truth 0 2 1 1, found 0 2 1 0: of the background 1 of 2, of red 1 of 2, of green all.
    assert detected.refined.mean_iou == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    known = evaluate(stub(COLUMNS), collection, "known", progress=False)
    # Found 0 1 1 0: of the background 1 of 2, of red 1 of 3, of green none.
    assert known.refined.mean_iou == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    write_pseudo_labels(stub(COLUMNS), collection, tmp_path / "l", progress=False)
    assert np.array(Image.open(tmp_path / "l" / "p.png")).tolist() == [[0, 1, 1, 0]] * 4

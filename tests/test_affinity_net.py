"""AffinityNet: the stages of any backbone, features, files, training, and the random walk."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model
from torchvision.models.vgg import cfgs, make_layers
from untouched import untouched

import dcsm_attr.training.affinity as module
from dcsm_attr import Segmenter
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.models.affinity_net import AffinityNet, affinities, neighbor_offsets
from dcsm_attr.models.backbone import find_stages, multi_stage_backbone
from dcsm_attr.models.checkpoint import (
    Architecture,
    TrainedAffinityNet,
    build_classifier,
)
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.training.affinity import SCHEDULES, train_affinity_net
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.optimizer import Schedule
from dcsm_attr.wsss.random_walk import SemanticWalk

NAMES = ("red", "green")
CANVAS = Preprocess(size=64)
SCHEDULE = Schedule(
    "adamw", "onecycle", 1e-3, 5.0, 1e-2, batch_size=2, steps=6, head_only_steps=2, scale_range=(1.0, 1.2)
)
SETTINGS = TrainingSettings(SCHEDULE, validate_every=2)


def test_stages_end_where_the_resolution_falls():
    def found(backbone):
        return [(stage.node, stage.channels, stage.stride) for stage in find_stages(backbone)]

    vgg = make_layers(cfgs["A"], batch_norm=False).eval()
    assert found(vgg) == [("1", 64, 1), ("4", 128, 2), ("9", 256, 4), ("14", 512, 8), ("19", 512, 16)]
    # In a bottleneck the resolution falls in the middle; its first maps are narrower than those of the block before.
    resnet = fully_convolutional(get_model("resnet50", weights=None).eval(), 2, cut="layer2", head="linear").backbone
    assert found(resnet) == [("relu", 64, 2), ("layer1.2.relu_2", 256, 4), ("layer2.3.relu_2", 512, 8)]
    squeezenet = fully_convolutional(get_model("squeezenet1_1", weights=None).eval(), 2).backbone
    assert found(squeezenet) == [("features.1", 64, 2), ("cat_1", 128, 4), ("cat_3", 256, 8), ("cat_7", 512, 17)]


def test_find_stages_leaves_the_backbone_unchanged():
    backbone = fully_convolutional(get_model("resnet18", weights=None), 2, cut="layer1", head="linear").train().backbone
    backbone.get_submodule("bn1").eval()
    with untouched(backbone):
        assert [stage.stride for stage in find_stages(backbone)] == [2, 4]


def test_the_maps_of_stages_are_those_of_the_model():
    model = get_model("resnet18", weights=None).eval()
    backbone = fully_convolutional(model, 2).backbone
    images = torch.rand(2, 3, 64, 96)
    seen = []
    for layer in (model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        model(images)
        maps = list(multi_stage_backbone(backbone, find_stages(backbone)[-3:])(images).values())
    assert all(torch.equal(one, other) for one, other in zip(maps, seen, strict=True))


def net(norm="sum", seed=3):
    torch.manual_seed(seed)
    classifier = build_classifier(Architecture("squeezenet1_1", 2, "features.7", "linear"), None, NAMES, CANVAS)
    network = AffinityNet(classifier.network.backbone, norm)
    return TrainedAffinityNet(network, classifier.architecture, CANVAS, norm, "cam")


@pytest.mark.parametrize("size", [(64, 64), (57, 90), (33, 17)])
def test_one_position_for_every_eight_pixels(size):
    network = net().network.eval()
    with torch.no_grad():
        features = network(torch.rand(2, 3, *size))
    assert features.shape == (2, 448, -(-size[0] // 8), -(-size[1] // 8))
    assert features.min() > -1


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_initial_affinities_are_neither_zero_nor_one(norm):
    network = net(norm).network.eval()
    with torch.no_grad():
        seen = affinities(network(torch.rand(2, 3, 96, 96)), neighbor_offsets(3), norm)
    assert 0.02 < float(seen[seen > 0].median()) < 0.98


def test_the_backbone_is_a_copy():
    classifier = build_classifier(Architecture("squeezenet1_1", 2, "features.7", "linear"), None, NAMES, CANVAS)
    before = parameters_digest(classifier.network)
    network = AffinityNet(classifier.network.backbone)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert parameters_digest(classifier.network) == before


def labeled_images(folder, count):
    """Images with halves of different colors, and their label maps with an unknown strip between the halves."""
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(count):
        generator = np.random.default_rng(i)
        middle = 16 + 8 * (i % 5)
        pixels = generator.integers(0, 60, (64, 64, 3)).astype(np.uint8)
        pixels[:, :middle, i % 2] += 180
        labels = np.zeros((64, 64), dtype=np.uint8)
        labels[:, :middle] = 1 + i % 2
        labels[:, middle - 2 : middle + 2] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        label_image(labels).save(folder / "labels" / f"{i}.png")
        items.append(LabeledImage(str(i), folder / f"{i}.png", (i % 2,)))
    return Collection(NAMES, tuple(items))


def train(folder, collection, labels, settings=SETTINGS, start=None, **options):
    return train_affinity_net(
        start or net(), collection, labels, folder, settings, workers=0, progress=False, radius=3, **options
    )


@pytest.mark.parametrize("norm", ["sum", "mean"])
def test_it_learns_where_objects_end(tmp_path, norm):
    collection = labeled_images(tmp_path / "p", 10)
    schedule = replace(SCHEDULE, steps=45, head_only_steps=5, batch_size=4)
    trained = train(tmp_path / "out", collection, tmp_path / "p" / "labels", TrainingSettings(schedule), net(norm))
    image = CANVAS(Image.open(tmp_path / "p" / "3.png")).tensor
    offsets = neighbor_offsets(2)
    seen = SemanticWalk(trained, radius=2).affinities(image)[0, offsets.index((0, 1))]
    # The object of image 3 ends at column 40: between the fifth position and the sixth.
    across, within = seen[:, 4].mean(), torch.cat([seen[:, :3], seen[:, 5:7]], dim=1).mean()
    assert within > 0.6
    assert across < within - 0.3


def test_an_interrupted_run_resumes_exactly(tmp_path, monkeypatch):
    collection = labeled_images(tmp_path / "p", 7)
    labels = tmp_path / "p" / "labels"
    whole = train(tmp_path / "whole", collection, labels)
    calls, original = [], module.affinity_loss

    def failing(values, known):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(values, known)

    monkeypatch.setattr(module, "affinity_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", collection, labels)
    monkeypatch.setattr(module, "affinity_loss", original)
    resumed = train(tmp_path / "cut", collection, labels)
    assert parameters_digest(resumed.network) == parameters_digest(whole.network)
    assert parameters_digest(whole.network) != parameters_digest(net().network)
    with (tmp_path / "cut" / "log.csv").open() as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["2", "4", "6"]
    with pytest.raises(ValueError, match=r"a training with other settings: norm \(sum before, mean now\)"):
        train(tmp_path / "cut", collection, labels, start=net("mean"))


def test_missing_and_broken_labels_are_skipped(tmp_path):
    collection = labeled_images(tmp_path / "p", 6)
    labels = tmp_path / "p" / "labels"
    (labels / "2.png").unlink()
    (labels / "4.png").write_bytes(b"broken")
    Image.fromarray(np.full((64, 64), 77, dtype=np.uint8)).save(labels / "5.png")
    train(tmp_path / "out", collection, labels)
    failures = (tmp_path / "out" / "unreadable.json").read_text()
    assert "2.png" in failures
    assert "4.png" in failures
    assert "labels must be 0 (background), 1 to 2 (classes) or 255 (void); got 77" in failures


def test_no_images():
    with pytest.raises(ValueError, match="empty"):
        train_affinity_net(net(), Collection(NAMES, ()), "labels", "nowhere", SETTINGS)


def test_the_schedule_of_the_paper_is_what_the_release_does():
    paper = SCHEDULES["paper"]
    assert (paper.optimizer, paper.policy, paper.learning_rate, paper.batch_size) == ("sgd", "poly", 0.1, 8)
    # Eight epochs of 10,582 images; the release's "weight decay" is its momentum.
    assert (paper.steps, paper.momentum, paper.weight_decay) == (10_582, 5e-4, 0.0)


class Colors(nn.Module):
    """Perfect features: the mean color of each position."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images):
        return self.scale * nn.functional.avg_pool2d(images, 8)


def oracle(scale=20.0):
    return TrainedAffinityNet(Colors(scale), Architecture("squeezenet1_1", 2), CANVAS, "sum")


def test_the_walk_sharpens_a_blurred_map():
    pixels = np.zeros((60, 68, 3), dtype=np.uint8)
    pixels[16:40, 24:48] = (250, 30, 30)
    prepared = Preprocess(size=68)(Image.fromarray(pixels))
    truth = torch.zeros(60, 68)
    truth[16:40, 24:48] = 1
    blurred = torch.zeros(60, 68)
    blurred[:, 36:60] = 0.25
    blurred[18:32, 26:44] = 1
    scores = torch.stack([(1 - blurred) ** 4, blurred])
    walked = SemanticWalk(oracle(), beta=4, steps=128)(scores, prepared.crop(prepared.tensor))
    assert walked.shape == scores.shape
    overlaps = []
    # At the center of each position: between positions, resizing blurs.
    truth = truth[4::8, 4::8]
    for labels in (one.argmax(dim=0)[4::8, 4::8] for one in (scores, walked)):
        both = ((labels == 1) & (truth == 1)).sum() / ((labels == 1) | (truth == 1)).sum()
        overlaps.append(float(both))
    assert overlaps[0] < 0.5
    assert overlaps[1] > 0.95


def test_the_walk_equals_dense_squaring_in_float64():
    generator = torch.Generator().manual_seed(2)
    image, scores = torch.rand(3, 44, 51, generator=generator), torch.rand(3, 44, 51, generator=generator)
    walk = SemanticWalk(oracle(2.0), radius=3, beta=2.0, steps=16)
    height, width = 6, 7
    padded = torch.zeros(3, 48, 56)
    padded[:, :44, :51] = image
    colors = 2.0 * padded.double().view(3, height, 8, width, 8).mean(dim=(2, 4)).flatten(1).T
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    near = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2 < 9
    weights = torch.exp(-(colors[:, None] - colors).abs().sum(dim=2)) ** 2 * near
    transition = weights / weights.sum(dim=1, keepdim=True)
    grid = torch.stack(
        [
            scores[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].double().mean(dim=(1, 2))
            for y in range(height)
            for x in range(width)
        ]
    )
    walked = torch.linalg.matrix_power(transition, 16) @ grid
    expected = nn.functional.interpolate(walked.T.view(1, 3, height, width), size=(48, 56), mode="bilinear")
    assert torch.allclose(walk(scores, image).double(), expected[0, :, :44, :51], atol=1e-5)


def test_refine_all_equals_single_calls():
    generator = torch.Generator().manual_seed(4)
    image, scores = torch.rand(3, 40, 40, generator=generator), torch.rand(2, 3, 40, 40, generator=generator)
    walk = SemanticWalk(oracle(), steps=8)
    together = walk.refine_all(scores, walk.affinities(image))
    assert torch.allclose(together, torch.stack([walk(one, image) for one in scores]), atol=1e-6)


def test_the_network_of_a_walk_is_left_unchanged():
    trained = net()
    trained.network.train()
    before = parameters_digest(trained.network)
    scores, image = torch.rand(2, 40, 48), torch.rand(3, 40, 48)
    state = torch.get_rng_state()
    SemanticWalk(trained)(scores, image)
    assert parameters_digest(trained.network) == before
    assert all(parameter.grad is None for parameter in trained.network.parameters())
    assert all(layer.training for layer in trained.network.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_segmenter_with_a_walk(vgg):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8))
    walk = SemanticWalk(oracle(), steps=4)
    settings = {"preprocess": CANVAS, "crf": None, "background_exponent": 2.0}
    plain = Segmenter(vgg, **settings).segment(image, [0, 2])
    walked = Segmenter(vgg, **settings, walk=walk).segment(image, [0, 2])
    prepared = CANVAS(image)
    maps = plain.class_maps.maps[0, [plain.candidates.index(c) for c in plain.classes]]
    scores = torch.cat([(1 - maps.amax(dim=0, keepdim=True)) ** 2, maps])
    expected = walk(scores, prepared.crop(prepared.tensor))
    assert torch.allclose(walked.probabilities, expected / expected.sum(dim=0), atol=1e-5)
    assert not torch.allclose(walked.probabilities, plain.probabilities, atol=1e-2)
    assert "walk" not in plain.settings
    assert walked.settings["walk"] == walk.settings

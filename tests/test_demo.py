"""The demo: the shipped network, and the effect of each step of the method."""

from importlib.resources import files

import pytest
import torch

from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.demo import STEPS, TEST_SCENE_SEED, run_demo, scene_segmenter, step_labels
from dcsm_attr.evaluation.metrics import mean_iou
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.training.scenes import train_scene_net


@pytest.fixture(scope="module")
def result():
    return run_demo(load_scene_net(), 60, shown=3, progress=False)


def test_the_checkpoint_is_small_and_loading_keeps_the_random_state():
    shipped = files("dcsm_attr") / "assets" / "scene_net.safetensors"
    assert len(shipped.read_bytes()) < 2_000_000
    before = torch.get_rng_state()
    network = load_scene_net()
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.classifier[-1].out_channels == len(CLASS_NAMES)


def test_the_network_detects_its_classes():
    segmenter = scene_segmenter(load_scene_net())
    scenes = [generate_scene(i, seed=77) for i in range(60)]
    inputs = torch.stack([segmenter.preprocess(read_image(scene.image)).tensor for scene in scenes])
    with torch.no_grad():
        detected = segmenter.model(inputs).amax(dim=(2, 3)) > 0
    present = torch.stack([scene.present for scene in scenes])
    assert (detected == present).float().mean() > 0.98


def test_each_step_improves_mean_iou_by_three_points(result):
    """On 60 scenes here; ``dcsm-attr demo`` measures 200."""
    raw, distinct, refined = result.mean_iou
    assert raw > 0.3
    assert distinct > raw + 0.03
    assert refined > distinct + 0.03
    assert len(STEPS) == 3


def test_mean_iou_follows_from_the_confusion_matrices(result):
    for value, confusion in zip(result.mean_iou, result.confusions, strict=True):
        assert confusion.sum() == 60 * 128**2
        assert value == pytest.approx(mean_iou(confusion))
    truths = [confusion.sum(dim=1) for confusion in result.confusions]
    assert torch.equal(truths[0], truths[1])
    assert torch.equal(truths[1], truths[2])


def test_the_figure_shows_the_scenes_with_the_most_classes(result):
    counts = sorted((int(generate_scene(i, TEST_SCENE_SEED).present.sum()) for i in range(60)), reverse=True)
    assert [int(one.scene.present.sum()) for one in result.shown] == counts[:3]


def test_the_labels_of_each_step():
    scene = generate_scene(0, seed=3)
    segmentation = scene_segmenter(load_scene_net()).segment(scene.image, raw=True)
    raw, distinct, refined = step_labels(segmentation)
    assert torch.equal(refined, segmentation.labels)
    slots = segmentation.class_maps.foreground[0]
    for labels, maps in ((raw, segmentation.class_maps.raw), (distinct, segmentation.class_maps.maps)):
        candidates = maps[0, slots]
        background = 1 - candidates.amax(dim=0)
        expected = torch.cat([background[None], candidates]).argmax(dim=0)
        values = torch.tensor([0, *(c + 1 for c in segmentation.classes)])
        assert (labels == values[expected]).float().mean() > 0.999


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_again_gives_an_equally_good_network(tmp_path):
    """Uses the seed of the shipped network."""
    network = train_scene_net(tmp_path / "net.safetensors")
    raw, distinct, refined = run_demo(network, 200, progress=False).mean_iou
    assert distinct > raw + 0.03
    assert refined > distinct + 0.03

"""Generated scenes: reproducible, varied, with image-level labels that match their masks."""

import pytest
import torch

from dcsm_attr.datasets.scenes import CLASS_NAMES, MIN_VISIBLE_SHARE, Scenes, generate_scene
from dcsm_attr.demo import TEST_SCENE_SEED
from dcsm_attr.training.scenes import FIRST_TRAINING_SEED


@pytest.fixture(scope="module")
def scenes():
    return [generate_scene(i, seed=5, size=96) for i in range(150)]


def test_a_scene_depends_only_on_index_and_seed(scenes):
    again = generate_scene(17, seed=5, size=96)
    assert torch.equal(again.image, scenes[17].image)
    assert torch.equal(again.labels, scenes[17].labels)
    assert not torch.equal(generate_scene(17, seed=6, size=96).image, again.image)
    assert len({scene.image.numpy().tobytes() for scene in scenes}) == len(scenes)


def test_drawing_keeps_the_random_state():
    before = torch.get_rng_state()
    generate_scene(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_image_level_labels_match_the_mask(scenes):
    for scene in scenes:
        assert scene.image.shape == (3, 96, 96)
        assert scene.image.dtype == torch.uint8
        assert scene.labels.shape == (96, 96)
        shown = torch.bincount(scene.labels.flatten(), minlength=1 + len(CLASS_NAMES))[1:] / 96**2
        assert torch.equal(scene.present, shown >= MIN_VISIBLE_SHARE)
        assert shown.sum() < 0.9, "there is always some background"


def test_most_scenes_show_several_classes_and_every_class_is_common(scenes):
    present = torch.stack([scene.present for scene in scenes])
    assert (present.sum(dim=1) >= 2).float().mean() > 0.7
    assert (present.sum(dim=1) <= 4).all()
    assert (present.float().mean(dim=0) > 0.15).all()


def test_the_hue_does_not_reveal_the_class(scenes):
    """Without lightness, mean colors of objects vary far more within a class than between classes."""
    colors = [[] for _ in CLASS_NAMES]
    for scene in scenes:
        for c in scene.present.nonzero()[:, 0].tolist():
            color = scene.image[:, scene.labels == c + 1].float().mean(dim=1)
            colors[c].append(color - color.mean())
    within = torch.stack([torch.stack(one).var(dim=0).mean() for one in colors]).mean()
    between = torch.stack([torch.stack(one).mean(dim=0) for one in colors]).var(dim=0).mean()
    assert between < 0.05 * within


def test_objects_occlude_each_other(scenes):
    """Where two classes' objects touch, pixels of one border pixels of the other."""
    touching = 0
    for scene in scenes:
        left, right = scene.labels[:, :-1], scene.labels[:, 1:]
        touching += bool(((left != right) & (left > 0) & (right > 0)).any())
    assert touching > len(scenes) / 3


def test_the_training_set_has_no_masks():
    dataset = Scenes(3, seed=9, size=64)
    assert len(dataset) == 3
    items = list(dataset)
    assert len(items) == 3
    for number, (image, present) in enumerate(items):
        scene = generate_scene(number, 9, 64)
        assert torch.equal(image, scene.image)
        assert torch.equal(present, scene.present.float())
    with pytest.raises(IndexError, match="scene 3 of 3"):
        dataset[3]


def test_the_demo_and_training_use_different_scenes():
    assert TEST_SCENE_SEED < FIRST_TRAINING_SEED


@pytest.mark.parametrize("size", [32, 47, 200])
def test_any_size(size):
    scene = generate_scene(0, seed=1, size=size)
    assert scene.image.shape == (3, size, size)
    assert scene.present.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": -1}, "must not be negative, got index=-1, seed=0"),
        ({"index": 0, "seed": -2}, "must not be negative, got index=0, seed=-2"),
        ({"index": 0, "size": 31}, "at least 32 pixels, got 31"),
    ],
)
def test_rejects_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scene(**arguments)

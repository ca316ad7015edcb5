"""The generated scenes: reproducible, varied, and their image-level labels true to their masks."""

import pytest
import torch

from dcsm_attr.datasets.scenes import CLASS_NAMES, MIN_VISIBLE_SHARE, Scenes, generate_scene
from dcsm_attr.demo import TEST_SCENE_SEED
from dcsm_attr.training.scenes import FIRST_TRAINING_SEED


@pytest.fixture(scope="module")
def drawn():
    return [generate_scene(i, seed=5, size=96) for i in range(150)]


def test_a_scene_depends_on_its_number_and_seed_alone(drawn):
    again = generate_scene(17, seed=5, size=96)
    assert torch.equal(again.image, drawn[17].image)
    assert torch.equal(again.labels, drawn[17].labels)
    assert not torch.equal(generate_scene(17, seed=6, size=96).image, again.image)
    assert len({scene.image.numpy().tobytes() for scene in drawn}) == len(drawn)


def test_drawing_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    generate_scene(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_labels_of_the_image_say_what_its_mask_shows(drawn):
    for scene in drawn:
        assert scene.image.shape == (3, 96, 96)
        assert scene.image.dtype == torch.uint8
        assert scene.labels.shape == (96, 96)
        shown = torch.bincount(scene.labels.flatten(), minlength=1 + len(CLASS_NAMES))[1:] / 96**2
        assert torch.equal(scene.present, shown >= MIN_VISIBLE_SHARE)
        assert shown.sum() < 0.9, "there is always some background"


def test_most_scenes_hold_several_classes_and_every_class_is_common(drawn):
    present = torch.stack([scene.present for scene in drawn])
    assert (present.sum(dim=1) >= 2).float().mean() > 0.7
    assert (present.sum(dim=1) <= 4).all()
    assert (present.float().mean(dim=0) > 0.15).all()


def test_the_hue_does_not_give_the_class_away(drawn):
    """Lightness taken out, the mean colors of objects differ far more within a class than between classes."""
    colors = [[] for _ in CLASS_NAMES]
    for scene in drawn:
        for c in scene.present.nonzero()[:, 0].tolist():
            color = scene.image[:, scene.labels == c + 1].float().mean(dim=1)
            colors[c].append(color - color.mean())
    within = torch.stack([torch.stack(one).var(dim=0).mean() for one in colors]).mean()
    between = torch.stack([torch.stack(one).mean(dim=0) for one in colors]).var(dim=0).mean()
    assert between < 0.05 * within


def test_objects_hide_each_other(drawn):
    """Where two classes' objects touch, pixels of one border pixels of the other."""
    touching = 0
    for scene in drawn:
        left, right = scene.labels[:, :-1], scene.labels[:, 1:]
        touching += bool(((left != right) & (left > 0) & (right > 0)).any())
    assert touching > len(drawn) / 3


def test_the_training_set_has_no_masks():
    scenes = Scenes(3, seed=9, size=64)
    assert len(scenes) == 3
    items = list(scenes)
    assert len(items) == 3
    for number, (image, present) in enumerate(items):
        scene = generate_scene(number, 9, 64)
        assert torch.equal(image, scene.image)
        assert torch.equal(present, scene.present.float())
    with pytest.raises(IndexError, match="scene 3 of 3"):
        scenes[3]


def test_the_demo_draws_other_scenes_than_training():
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
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_scene(**arguments)

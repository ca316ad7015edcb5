"""Training on the generated scenes: what it computes, what it repeats, and what it leaves behind."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dcsm_attr.attribution.model import pool_score_maps
from dcsm_attr.datasets.scenes import CLASS_NAMES, Scenes
from dcsm_attr.models.scene_net import SceneNet, load_scene_net
from dcsm_attr.models.weights import WeightsError
from dcsm_attr.training import scenes as training
from dcsm_attr.training.classifier import multi_label_loss
from dcsm_attr.training.scenes import hide_patches, train_scene_net

SHORT = {"steps": 4, "size": 32, "workers": 0, "progress": False}


def test_the_loss_is_cross_entropy_of_each_class_at_its_maximum():
    score_maps = torch.full((1, 2, 3, 3), -5.0)
    score_maps[0, 0, 1, 2] = 2.0
    score_maps[0, 1, 0, 0] = -1.0
    logits = pool_score_maps(score_maps)
    loss = multi_label_loss(logits, torch.tensor([[1.0, 0.0]]))
    expected = -math.log(1 / (1 + math.exp(-2.0))) - math.log(1 - 1 / (1 + math.exp(1.0)))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    both = multi_label_loss(logits.repeat(2, 1), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert both.item() == pytest.approx(expected, rel=1e-6)


def test_hidden_cells_have_the_mean_color_and_others_stay():
    images = torch.randn(4, 3, 64, 48)
    hidden = hide_patches(images, 0.8)
    changed = (hidden != images).any(dim=1)
    means = images.mean(dim=(2, 3))
    for image in range(4):
        assert torch.allclose(hidden[image][:, changed[image]], means[image][:, None], atol=1e-6)
    share = changed.float().mean()
    assert 0.1 < share < 0.8
    assert torch.equal(hide_patches(images, 0.0), images)


def test_the_scaled_network_starts_with_unit_variance():
    network = SceneNet(8)
    images = training._normalize(torch.stack([image for image, _ in Scenes(16, 3, 64)]))
    training._scale_weights(network, images)
    with torch.no_grad():
        for module in network.features:
            images = module(images)
            if isinstance(module, torch.nn.Conv2d):
                assert torch.allclose(images.std(dim=(0, 2, 3)), torch.ones(images.shape[1]), atol=1e-3)


def test_the_rate_warms_up_and_ends_at_zero():
    rates = [training._learning_rate_factor(i / 100) for i in range(101)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0)
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)
    assert rates[-1] == pytest.approx(0.0)
    assert rates[0] > 0


def test_the_same_seed_gives_the_same_network_and_leaves_the_random_state_alone(tmp_path):
    before = torch.get_rng_state()
    first = train_scene_net(tmp_path / "a.safetensors", seed=3, **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    train_scene_net(tmp_path / "b.safetensors", seed=3, **SHORT)
    train_scene_net(tmp_path / "c.safetensors", seed=4, **SHORT)
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["features.0.weight"], c["features.0.weight"])
    assert not first.training
    assert torch.equal(first.state_dict()["features.0.weight"], a["features.0.weight"].float())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"seed": "3", "steps": "4", "classes": ",".join(CLASS_NAMES)}


def test_it_learns():
    """A few scenes shown again and again are told apart soon."""
    images, present = (torch.stack(column) for column in zip(*Scenes(6, 2, 64), strict=True))
    network = SceneNet(len(CLASS_NAMES))
    training._scale_weights(network, training._normalize(images))
    training._run_steps(network, tqdm([(images, present)] * 120, disable=True), 120)
    with torch.no_grad():
        logits = network(training._normalize(images)).amax(dim=(2, 3))
    assert torch.equal(logits > 0, present > 0)


def test_an_interrupted_training_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "multi_label_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        train_scene_net(tmp_path / "net.safetensors", **SHORT)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_found_out_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("it trained first"))
    with pytest.raises(OSError, match="missing"):
        train_scene_net(tmp_path / "missing" / "net.safetensors", **SHORT)


def test_no_steps():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        train_scene_net("net.safetensors", steps=0)


@pytest.mark.parametrize("harm", ["other network", "half a file", "no file"])
def test_a_checkpoint_that_does_not_fit(tmp_path, harm):
    path = tmp_path / "net.safetensors"
    save_file({name: tensor.half() for name, tensor in SceneNet(3).state_dict().items()}, path)
    if harm == "other network":
        save_file({"classifier.4.weight": torch.zeros(3, 1)}, path)
    elif harm == "half a file":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.unlink()
    with pytest.raises(WeightsError):
        load_scene_net(path)

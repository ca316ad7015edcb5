"""A head with batch norms: its function by hand, and training with frozen batch norms of the backbone."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.checkpoint import Architecture, build_classifier, load_classifier
from dcsm_attr.models.fully_convolutional import fully_convolutional, normalized_head
from dcsm_attr.training.classifier import train_classifier
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.optimizer import ClassifierSchedule

NAMES = ("red", "green")
SCHEDULE = ClassifierSchedule(
    "adamw",
    "constant",
    1e-3,
    5.0,
    1e-2,
    batch_size=3,
    steps=4,
    head_only_steps=2,
    pooling="max",
    scale_range=(1.0, 1.0),
)


def normalized(x, norm):
    """Subtract the running mean, divide by the running deviation, scale and shift, per channel."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def test_by_hand():
    head = normalized_head(2, 3, width=4, dropout=0.5)
    norms = [layer for layer in head if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.1, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    first, second, last = (layer for layer in head if isinstance(layer, nn.Conv2d))
    x = torch.randn(2, 2, 5, 6)
    hidden = torch.relu(normalized(F.conv2d(x, first.weight, padding=1), norms[0]))
    hidden = torch.relu(normalized(F.conv2d(hidden, second.weight, padding=1), norms[1]))
    torch.testing.assert_close(head.eval()(x), F.conv2d(hidden, last.weight, last.bias))
    assert first.bias is None
    assert second.bias is None
    assert torch.allclose(head.train()(x), head(x)) is False, "there is dropout"


def test_the_head_on_a_cut_network():
    import torchvision

    network = fully_convolutional(torchvision.models.resnet18(weights=None), 4, cut="layer1", head="normalized")
    assert network(torch.randn(2, 3, 32, 48)).shape == (2, 4, 8, 12)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in network.head) == 2


@pytest.fixture
def training(tmp_path):
    """Six images with a bright red or green half."""
    items = []
    for i in range(6):
        pixels = torch.randint(0, 60, (32, 32, 3), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
        pixels[8:24, 8:24, i % 2] = 250
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels.numpy()).save(path)
        items.append(LabeledImage(str(i), path, (i % 2,)))
    return Collection(NAMES, tuple(items))


@pytest.mark.parametrize("head_only_steps", [0, 4])
@pytest.mark.parametrize("frozen", [True, False])
def test_its_batch_norms_learn_while_the_backbones_are_frozen(training, tmp_path, frozen, head_only_steps):
    torch.manual_seed(1)
    start = build_classifier(Architecture("resnet18", 2, "layer1", "normalized"), None, NAMES, Preprocess(size=32))
    before = {name: value.clone() for name, value in start.network.state_dict().items()}
    settings = TrainingSettings(
        replace(SCHEDULE, head_only_steps=head_only_steps), frozen_batch_norm=frozen, validate_every=4
    )
    train_classifier(start, training, training, tmp_path / "out", settings, workers=0, progress=False)
    after = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["network"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for norm in ("head.1", "head.4"):
        assert {f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")} <= changed
    backbone = {name for name in changed if name.startswith("backbone.") and ".bn" in name}
    assert bool(backbone) == (not frozen and head_only_steps == 0)
    assert ("backbone.conv1.weight" in changed) == (head_only_steps == 0)
    # The file contains the statistics of the head.
    best = load_classifier(tmp_path / "out" / "best.safetensors").network.state_dict()
    assert all(torch.equal(best[name], after[name]) for name in best)

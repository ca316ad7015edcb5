"""A small VGG for the generated scenes, whose weights ship with the package."""

from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from dcsm_attr.models.fully_convolutional import ScoreMapNetwork
from dcsm_attr.models.weights import load_weights, read_weights

__all__ = ["MEAN", "SCENE_NET", "STD", "SceneNet", "load_scene_net", "scene_score_maps"]


#: Name of the network, used like those of torchvision's models.
SCENE_NET = "scene_net"

#: Mean and standard deviation of the normalization, for pixel values in [0, 1].
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)

# Channels of the convolutions of each block; between blocks the resolution is halved.
_BLOCKS = ((16,), (32, 32), (64, 64), (96, 96))
_HEAD = 128


class SceneNet(nn.Module):
    """Four blocks of 3 x 3 convolutions, and a rectified convolutional head like VGG's fc6, fc7 and fc8.

    Like VGG, it has no batch normalization. With batch normalization, the maps of different classes on these scenes
    are already distinct without contrast, so that a demonstration of the contrast would show nothing.

    Attributes:
        features: the blocks; a map of 96 channels at an eighth of the resolution.
        classifier: the head, from features to score maps.
    """

    def __init__(self, classes: int) -> None:
        """Build the network with Kaiming initialization.

        Args:
            classes: C, number of score maps.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, block in enumerate(_BLOCKS):
            if i:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, _HEAD, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD, _HEAD, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HEAD, classes, 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Compute score maps, whose global maximum is the logit of a class.

        Args:
            images: ``(N, 3, H, W)``, normalized by :data:`MEAN` and :data:`STD`, at least 8 x 8.

        Returns:
            ``(N, C, H // 8, W // 8)``.
        """
        scores: Tensor = self.classifier(self.features(images))
        return scores


def scene_score_maps(network: SceneNet) -> ScoreMapNetwork:
    """Convert the network to a backbone and a head, which share its parameters."""
    backbone = create_feature_extractor(network, {"features": "map"}, suppress_diff_warning=True)
    return ScoreMapNetwork(backbone, network.classifier)


def load_scene_net(path: str | Path | None = None) -> SceneNet:
    """Load a trained network.

    Args:
        path: a checkpoint written by :func:`dcsm_attr.training.scenes.train_scene_net`. None: the one that ships with
            the package.

    Returns:
        The network in evaluation mode, float32, with as many classes as the checkpoint has.

    Raises:
        WeightsError: if the file is missing, incomplete, or of another network.
    """
    if path is None:
        with as_file(files("dcsm_attr") / "assets" / "scene_net.safetensors") as shipped:
            return load_scene_net(shipped)
    tensors = read_weights(path)
    last = tensors.get("classifier.4.weight")
    with torch.random.fork_rng([]):
        network = SceneNet(1 if last is None or not last.ndim else len(last))
    load_weights(network, tensors, str(path))
    return network.eval()

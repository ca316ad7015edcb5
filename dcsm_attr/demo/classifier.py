"""The shipped network as a trained classifier, for commands that take one."""

from torchvision.models.feature_extraction import create_feature_extractor

from dcsm_attr.backbones.classifier import Architecture, Classifier
from dcsm_attr.backbones.convolutional import ScoreMapNetwork
from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.backbones.scene_net import MEAN, STD, load_scene_net
from dcsm_attr.datasets.scenes import CLASS_NAMES

__all__ = ["scene_classifier"]

_SIDE = 128


def scene_classifier() -> Classifier:
    """The network of the demo, in evaluation mode.

    Returns:
        With the names of the scenes' classes and the canvas of the demo. Its architecture names no network of
        torchvision, so that it cannot be built anew.
    """
    network = load_scene_net()
    trunk = create_feature_extractor(network, {"features": "map"}, suppress_diff_warning=True)
    return Classifier(
        ScoreMapNetwork(trunk, network.classifier).eval(),
        Architecture("the demo's network", len(CLASS_NAMES), head="rectified"),
        CLASS_NAMES,
        Preprocess(size=_SIDE, mean=MEAN, std=STD),
    )

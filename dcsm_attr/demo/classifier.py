"""The shipped network as a trained classifier, for commands that take one."""

from dcsm_attr.backbones.classifier import Architecture, Classifier
from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.backbones.scene_net import MEAN, SCENE_NET, STD, load_scene_net, scene_score_maps
from dcsm_attr.datasets.scenes import CLASS_NAMES

__all__ = ["SCENE_CANVAS", "scene_classifier"]

#: The canvas of the demo: a scene as it is drawn.
SCENE_CANVAS = Preprocess(size=128, mean=MEAN, std=STD)


def scene_classifier() -> Classifier:
    """The network of the demo, in evaluation mode.

    Returns:
        With the names of the scenes' classes and the canvas of the demo.
    """
    return Classifier(
        scene_score_maps(load_scene_net()).eval(),
        Architecture(SCENE_NET, len(CLASS_NAMES), head="rectified"),
        CLASS_NAMES,
        SCENE_CANVAS,
    )

"""Builds classifiers, methods and segmenters from options."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsm_attr.cli.options import MethodOptions, ModelOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcsm_attr.attribution.candidates import Activation
    from dcsm_attr.attribution.class_maps import Saliency
    from dcsm_attr.attribution.model import PoolingName
    from dcsm_attr.models.checkpoint import Classifier
    from dcsm_attr.segmentation import Segmenter

__all__ = [
    "build_classifier_segmenter",
    "build_saliency",
    "build_segmenter",
    "load_trained_classifier",
    "model_arguments",
    "parse_classes",
    "resolve_device",
]

_DEMO = "demo"


def build_segmenter(model: ModelOptions, method: MethodOptions, **settings: Any) -> "Segmenter":
    """Load the model and build a segmenter from it.

    Args:
        model: selects the model. A file written by ``dcsm-attr train`` or ``train-seg``, and the network of the
            generated scenes, contain their own model and class names.
        method: selects how class maps are computed.
        **settings: passed to :class:`dcsm_attr.Segmenter`.

    Raises:
        ValueError: if an option is unknown, or the options contradict each other.
    """
    from dcsm_attr.models.checkpoint import network_kind
    from dcsm_attr.models.weights import load_class_names, load_model
    from dcsm_attr.segmentation import Segmenter

    if network_kind(model.weights) == "segmentation_net":
        return _build_network_segmenter(model, method, settings)
    if _contains_model(model.weights):
        classifier = load_trained_classifier(model.weights)
        classifier.network.to(resolve_device(model.device))
        return build_classifier_segmenter(classifier, method, **settings)
    names = load_class_names(model.class_names)
    network = load_model(model.model, model.weights, resolve_device(model.device))
    activation: Activation = "sigmoid" if model.class_names == "voc" else "auto"
    saliency = build_saliency(network, method, activation=activation, pooling="max")
    return Segmenter(network, saliency=saliency, class_names=names, **{**_preset_settings(method), **settings})


def build_classifier_segmenter(classifier: "Classifier", method: MethodOptions, **settings: Any) -> "Segmenter":
    """Build a segmenter from a trained classifier, on the classifier's device.

    Args:
        classifier: its class names, preprocessing and pooling are used.
        method: selects how class maps are computed.
        **settings: passed to :class:`dcsm_attr.Segmenter`.

    Raises:
        ValueError: if the method does not support the network.
    """
    from dcsm_attr.segmentation import Segmenter

    network = classifier.network
    saliency = build_saliency(network, method, activation="auto", pooling=classifier.pooling)
    of_classifier = {"preprocess": classifier.preprocess, "architecture": classifier.architecture.to_dict()}
    settings = {**_preset_settings(method), **of_classifier, **settings}
    return Segmenter(network, saliency=saliency, class_names=classifier.class_names, **settings)


def build_saliency(
    network: "nn.Module", options: MethodOptions, *, activation: "Activation", pooling: "PoolingName"
) -> "Saliency":
    """Build the method that the options select.

    Args:
        network: returns scores or score maps.
        options: the method and its preset.
        activation: how its scores become probabilities.
        pooling: how score maps become scores.

    Raises:
        ValueError: if the method does not support the network.
    """
    from dcsm_attr.attribution import ClassActivationMaps, DistinctClassSaliency, Simonyan
    from dcsm_attr.attribution.fusion import FusedSaliency
    from dcsm_attr.segmentation.presets import PRESETS

    if options.method == "simonyan":
        return Simonyan(network, activation=activation, pooling=pooling)
    cam = ClassActivationMaps(network, activation=activation, pooling=pooling)
    if options.method == "cam":
        return cam
    preset = PRESETS[options.preset]
    dcsm = DistinctClassSaliency(
        network,
        activation=activation,
        pooling=pooling,
        min_candidates=preset.min_candidates,
        deepest=preset.num_deepest_layers,
    )
    return FusedSaliency(cam, dcsm) if options.method == "fusion" else dcsm


def _preset_settings(method: MethodOptions) -> dict[str, Any]:
    from dcsm_attr.segmentation.presets import PRESETS

    preset = PRESETS[method.preset]
    return {"crf": preset.crf, "background_exponent": preset.background_exponent}


def _build_network_segmenter(model: ModelOptions, method: MethodOptions, settings: dict[str, Any]) -> "Segmenter":
    from dcsm_attr.models.checkpoint import load_segmentation_net
    from dcsm_attr.wsss.network_segmenter import NetworkSegmenter

    of_maps = {"walk": "--walk", "background_exponent": "--background"}
    unused = [*method.arguments(), *(option for name, option in of_maps.items() if name in settings)]
    if unused:
        raise ValueError(
            f"{Path(model.weights).name} is a segmentation network, which computes no class maps: leave out "
            f"{', '.join(unused)}."
        )
    trained = load_segmentation_net(model.weights)
    trained.network.to(resolve_device(model.device))
    return NetworkSegmenter(trained, **settings)


def model_arguments(model: ModelOptions) -> dict[str, str]:
    """The options that select the model, by name; only the weights if the file contains its own model."""
    if _contains_model(model.weights):
        return {"weights": model.weights}
    return {"weights": model.weights, "model": model.model, "class_names": model.class_names}


def _contains_model(weights: str) -> bool:
    from dcsm_attr.models.checkpoint import network_kind

    return weights == _DEMO or network_kind(weights) in ("classifier", "segmentation_net")


def load_trained_classifier(weights: str) -> "Classifier":
    """Load the trained classifier that ``--weights`` names: ``demo``, or a file.

    Raises:
        WeightsError: if the file is missing, incomplete, or not a classifier of this package.
    """
    from dcsm_attr.demo import scene_classifier
    from dcsm_attr.models.checkpoint import load_classifier

    return scene_classifier() if weights == _DEMO else load_classifier(weights)


def resolve_device(name: str) -> "torch.device":
    """The device that ``--device`` names.

    Raises:
        ValueError: if a GPU is requested and there is none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds no GPU. --device auto uses one only if there is one.")
    return torch.device(name)


def parse_classes(text: str | None) -> list[int | str] | None:
    """Parse ``--classes``: names or numbers, separated by commas.

    Raises:
        ValueError: if there is none.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ValueError(f"--classes must contain names or numbers, separated by commas; got {text!r}.")
    return [int(item) if item.isdecimal() else item for item in items]

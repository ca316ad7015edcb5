"""From the options of a command to a segmenter."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcsm_attr.segmentation import Segmenter

__all__ = ["build_segmenter", "chosen_device", "parsed_classes"]


def build_segmenter(model: str, weights: str, labels: str, device: str, **settings: Any) -> "Segmenter":
    """Load the model and put a segmenter around it.

    Args:
        model: as the option of that name. A classifier that ``dcsm-attr train`` wrote brings its own, and its labels.
        weights: as the option of that name.
        labels: as the option of that name.
        device: as the option of that name.
        **settings: passed to :class:`dcsm_attr.Segmenter`.

    Raises:
        ValueError: if one of them is not known or they do not fit each other.
    """
    from dcsm_attr.attribution import DistinctClassSaliency
    from dcsm_attr.backbones.classifier import is_classifier, load_classifier
    from dcsm_attr.backbones.loading import class_names, load_model
    from dcsm_attr.segmentation import Segmenter

    network: nn.Module
    if is_classifier(weights):
        classifier = load_classifier(weights)
        network, names = classifier.network.to(chosen_device(device)), classifier.class_names
        saliency = DistinctClassSaliency(network, pooling=classifier.pooling)
        settings = {"preprocess": classifier.preprocess, **settings}
    else:
        names = class_names(labels)
        network = load_model(model, weights, chosen_device(device))
        saliency = DistinctClassSaliency(network, activation="sigmoid" if labels == "voc" else "auto")
    return Segmenter(network, saliency=saliency, class_names=names, **settings)


def chosen_device(name: str) -> "torch.device":
    """The device that the option names.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here; --device auto takes one only if there is one.")
    return torch.device(name)


def parsed_classes(text: str | None) -> list[int | str] | None:
    """Read ``--classes``: names or numbers, separated by commas.

    Raises:
        ValueError: if it names nothing.
    """
    if text is None:
        return None
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ValueError("--classes names nothing; give names or numbers, separated by commas.")
    return [int(item) if item.isdecimal() else item for item in items]

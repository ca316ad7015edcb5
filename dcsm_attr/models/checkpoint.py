"""Weights with a description of what they belong to, in one safetensors file.

A trained classifier as one file: what it is built from, its classes, and its weights.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcsm_attr.attribution.model import PoolingName
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.io import atomic_path
from dcsm_attr.models.fully_convolutional import HeadName, ScoreMapNetwork, fully_convolutional
from dcsm_attr.models.scene_net import SCENE_NET, SceneNet, load_scene_net, scene_score_maps
from dcsm_attr.models.weights import WeightsError, build_model, load_model, load_weights, read_weights

__all__ = [
    "Architecture",
    "Classifier",
    "build_classifier",
    "explain_build_errors",
    "has_metadata",
    "is_classifier",
    "load_classifier",
    "read_metadata",
    "read_tensors",
    "save_classifier",
    "save_with_metadata",
]


def save_with_metadata(network: nn.Module, path: str | Path, key: str, description: Mapping[str, Any]) -> None:
    """Write a network's parameters and buffers; the file appears when it is complete.

    Args:
        network: on any device.
        path: of the file, ``.safetensors``.
        key: that the description is kept under, which says what kind of network it is.
        description: JSON-serializable.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {key: json.dumps(description)})


def has_metadata(path: str | Path, key: str) -> bool:
    """Whether a file is one that :func:`save_with_metadata` wrote under this key."""
    path = Path(path)
    return path.suffix == ".safetensors" and path.is_file() and key in _metadata(path)


def read_metadata(path: str | Path, key: str, what: str, otherwise: str) -> dict[str, Any]:
    """Read what :func:`save_with_metadata` wrote beside the tensors.

    Args:
        path: of the file.
        key: that it is kept under.
        what: the network is, for messages.
        otherwise: what to do with a file that has weights alone, for messages.

    Raises:
        WeightsError: if the file is missing, incomplete, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    metadata = _metadata(path)
    if key not in metadata:
        raise WeightsError(f"{path}: holds weights, but not what they belong to: no {what}. {otherwise}")
    try:
        description: dict[str, Any] = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: what it says of its {what.split()[0]} is damaged ({error}).") from error
    return description


@contextmanager
def explain_build_errors(path: str | Path, otherwise: str) -> Iterator[None]:
    """Build a network from its description within this context; its weights are drawn, but nothing random is used up.

    Args:
        path: of the file, for messages.
        otherwise: what to do if the description is not whole, for messages.

    Raises:
        WeightsError: if an entry is missing or describes nothing that can be built.
    """
    try:
        with torch.random.fork_rng([]):
            yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path}: what it says of its network is not complete ({type(error).__name__}: {error}). It may be that of "
            f"another version: {otherwise}"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}).") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a trained network, with the names of this version: the backbone was called trunk before."""
    return {
        f"backbone.{name.removeprefix('trunk.')}" if name.startswith("trunk.") else name: tensor
        for name, tensor in read_weights(path).items()
    }


_KEY = "dcsm_attr.classifier"


@dataclass(frozen=True)
class Architecture:
    """What a score map network is built from.

    Attributes:
        model: torchvision's name, or ``"scene_net"``, the network of the generated scenes.
        num_classes: C.
        cut: see :func:`~dcsm_attr.models.fully_convolutional.fully_convolutional`.
        head: see there.
        output_stride: see there.
        window, rate, keep_center: of the head ``"fickle"``, see there.
    """

    model: str
    num_classes: int
    cut: str | None = None
    head: HeadName = "own"
    output_stride: int | None = None
    window: int = 9
    rate: float = 0.9
    keep_center: bool = True

    def plain(self) -> dict[str, Any]:
        """The settings that this network has, JSON-serializable; those of what it does without are left out."""
        absent = set() if self.head == "fickle" else {"window", "rate", "keep_center"}
        if self.output_stride is None:
            absent.add("output_stride")
        return {name: value for name, value in asdict(self).items() if name not in absent}

    def network(self, backbone: nn.Module) -> ScoreMapNetwork:
        """Turn a model of that name into the network."""
        return fully_convolutional(
            backbone,
            self.num_classes,
            cut=self.cut,
            head=self.head,
            output_stride=self.output_stride,
            window=self.window,
            rate=self.rate,
            keep_center=self.keep_center,
        )

    def build_network(self) -> ScoreMapNetwork:
        """Build the network with weights drawn from PyTorch's global generator.

        Raises:
            ValueError: if there is no such network.
        """
        if self.model == SCENE_NET:
            return scene_score_maps(SceneNet(self.num_classes))
        return self.network(build_model(self.model))


@dataclass(frozen=True)
class Classifier:
    """A network with the names of its classes.

    Attributes:
        network: gives score maps.
        architecture: what it was built from.
        class_names: one per class, in the order of its scores.
        preprocess: the canvas that it was, or is to be, trained on.
        pooling: of score maps to scores, that it was trained with.
    """

    network: ScoreMapNetwork
    architecture: Architecture
    class_names: tuple[str, ...]
    preprocess: Preprocess
    pooling: PoolingName = "max"


def build_classifier(
    architecture: Architecture,
    weights: str | Path | None,
    class_names: Sequence[str],
    preprocess: Preprocess = Preprocess(),  # noqa: B008 - frozen
) -> Classifier:
    """Build a network for training: a backbone with published weights, and new layers for its classes.

    Args:
        architecture: of the network.
        weights: of the backbone: ``"DEFAULT"`` or another name of torchvision's (of ``"scene_net"``, ``"DEFAULT"`` are
            those that ship with the package); a file of the model's parameters, of which those behind the cut may be
            missing. None: randomly initialized.
        class_names: one per class.
        preprocess: the canvas to train on.

    Returns:
        The classifier, on the CPU, in training mode. New layers are drawn from PyTorch's global generator.

    Raises:
        ValueError: if the architecture is not possible, or the names do not go with it.
        WeightsError: if the weights cannot be had, read, or do not fit.
    """
    _check_names(architecture, class_names)
    # A file for a cut network may lack what lies behind the cut, which the whole model cannot be loaded without.
    if weights is None or (architecture.cut is not None and Path(weights).suffix):
        network = architecture.build_network()
        if weights is not None:
            tensors = read_weights(weights)
            wanted = network.backbone.state_dict()
            load_weights(network.backbone, {name: t for name, t in tensors.items() if name in wanted}, str(weights))
    elif architecture.model == SCENE_NET and weights == "DEFAULT":
        network = architecture.build_network()
        network.backbone.load_state_dict(scene_score_maps(load_scene_net()).backbone.state_dict())
    else:
        network = architecture.network(load_model(architecture.model, weights))
    return Classifier(network.train(), architecture, tuple(class_names), preprocess)


def _check_names(architecture: Architecture, class_names: Sequence[str]) -> None:
    if len(class_names) != architecture.num_classes:
        raise ValueError(f"{architecture.num_classes} classes need as many names, got {len(class_names)}.")


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier to a ``.safetensors`` file, which appears when it is complete.

    Args:
        classifier: all of it is kept.
        path: of the file.
    """
    description = {
        "architecture": classifier.architecture.plain(),
        "class_names": classifier.class_names,
        "preprocess": asdict(classifier.preprocess),
        "pooling": classifier.pooling,
    }
    save_with_metadata(classifier.network, path, _KEY, description)


def is_classifier(path: str | Path) -> bool:
    """Whether a file is one that :func:`save_classifier` wrote."""
    return has_metadata(path, _KEY)


def load_classifier(path: str | Path) -> Classifier:
    """Load what :func:`save_classifier` wrote.

    Args:
        path: the file.

    Returns:
        The classifier, on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing, incomplete, or no classifier of this package.
    """
    description = read_metadata(
        path, _KEY, "classifier that `dcsm-attr train` wrote", "Name the model beside it (--model)."
    )
    with explain_build_errors(path, "train again, or load the weights with --model."):
        architecture = Architecture(**description["architecture"])
        preprocess = Preprocess.from_dict(description["preprocess"])
        names, pooling = tuple(description["class_names"]), description["pooling"]
        _check_names(architecture, names)
        network = architecture.build_network()
    load_weights(network, read_tensors(path), str(path))
    return Classifier(network.eval(), architecture, names, preprocess, pooling)

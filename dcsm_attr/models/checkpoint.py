"""Trained networks and their files.

One safetensors file holds one network: the tensors, and one metadata entry ``dcsm_attr`` with the JSON object
``{"kind": "classifier", "config": {...}}``. The config is everything that the network is built from. Loading executes
nothing that is in the file.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dcsm_attr.attribution.model import PoolingName
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.io import atomic_path
from dcsm_attr.models.affinity_net import AffinityNet, Norm
from dcsm_attr.models.fully_convolutional import HeadName, ScoreMapNetwork, fully_convolutional
from dcsm_attr.models.scene_net import SCENE_NET, SceneNet, load_scene_net, scene_score_maps
from dcsm_attr.models.segmentation_net import SegmentationHead, SegmentationNet
from dcsm_attr.models.stochastic import FickleSettings
from dcsm_attr.models.weights import WeightsError, build_model, load_model, load_weights, read_weights

__all__ = [
    "Architecture",
    "Classifier",
    "Kind",
    "TrainedAffinityNet",
    "TrainedSegmentationNet",
    "build_classifier",
    "load_affinity_net",
    "load_classifier",
    "load_segmentation_net",
    "network_kind",
    "save_network",
]

Kind = Literal["classifier", "affinity_net", "segmentation_net"]


@dataclass(frozen=True)
class Architecture:
    """What a score map network is built from.

    Attributes:
        model: torchvision's name, or ``"scene_net"``, the network of the generated scenes.
        num_classes: C.
        cut: see :func:`~dcsm_attr.models.fully_convolutional.fully_convolutional`.
        head: see there.
        output_stride: see there.
        fickle: settings of the head ``"fickle"``; other heads ignore them.
    """

    model: str
    num_classes: int
    cut: str | None = None
    head: HeadName = "own"
    output_stride: int | None = None
    fickle: FickleSettings = FickleSettings()  # noqa: RUF009 - frozen

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, JSON-serializable, without those that this network does not use."""
        values = asdict(self)
        if self.head != "fickle":
            del values["fickle"]
        if self.output_stride is None:
            del values["output_stride"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """Build the architecture from the result of :meth:`to_dict`.

        Raises:
            TypeError: if an entry is missing or unknown.
        """
        return cls(**{**values, "fickle": FickleSettings(**values.get("fickle", {}))})

    def network(self, model: nn.Module) -> ScoreMapNetwork:
        """Turn a classification model into the network.

        Args:
            model: the model of that name.
        """
        return fully_convolutional(
            model,
            self.num_classes,
            cut=self.cut,
            head=self.head,
            output_stride=self.output_stride,
            fickle=self.fickle,
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
    """A network that gives score maps, with the names of its classes.

    Attributes:
        network: images to score maps.
        architecture: what the network is built from.
        class_names: one per class, in the order of the scores.
        preprocess: prepares the images that the network is trained on.
        pooling: from score maps to scores, in training.
    """

    network: ScoreMapNetwork
    architecture: Architecture
    class_names: tuple[str, ...]
    preprocess: Preprocess
    pooling: PoolingName = "max"

    kind: ClassVar[Kind] = "classifier"


@dataclass(frozen=True)
class TrainedAffinityNet:
    """An AffinityNet with what it is built from.

    Attributes:
        network: images to features.
        architecture: of the classifier that the backbone comes from.
        preprocess: prepares the images that the network is trained on.
        norm: of the distances between features.
        seed: name of the method whose maps gave the training labels.
    """

    network: AffinityNet
    architecture: Architecture
    preprocess: Preprocess
    norm: Norm = "mean"
    seed: str = ""

    kind: ClassVar[Kind] = "affinity_net"


@dataclass(frozen=True)
class TrainedSegmentationNet:
    """A segmentation network with what it is built from.

    Attributes:
        network: images to logits.
        architecture: of the classifier that the backbone comes from.
        head: see :func:`~dcsm_attr.models.segmentation_net.segmentation_head`.
        output_stride: see :class:`~dcsm_attr.models.segmentation_net.SegmentationNet`.
        class_names: one per class, without the background.
        preprocess: prepares the images that the network is trained on.
        learned_from: loss and labels of the training, in a few words.
    """

    network: SegmentationNet
    architecture: Architecture
    head: SegmentationHead
    output_stride: int | None
    class_names: tuple[str, ...]
    preprocess: Preprocess
    learned_from: str = ""

    kind: ClassVar[Kind] = "segmentation_net"


Trained = Classifier | TrainedAffinityNet | TrainedSegmentationNet
_AnyTrained = TypeVar("_AnyTrained", Classifier, TrainedAffinityNet, TrainedSegmentationNet)


def build_classifier(
    architecture: Architecture,
    weights: str | Path | None,
    class_names: Sequence[str],
    preprocess: Preprocess = Preprocess(),  # noqa: B008 - frozen
) -> Classifier:
    """Build a classifier to be trained: a backbone with pretrained weights, and new layers for its classes.

    Args:
        architecture: of the network.
        weights: of the backbone: ``"DEFAULT"`` or another name of torchvision's weights (for ``"scene_net"``,
            ``"DEFAULT"`` are those that ship with the package); or a file of the model's parameters, which may lack
            those behind the cut. None: randomly initialized.
        class_names: one per class.
        preprocess: prepares the training images.

    Returns:
        The classifier, on the CPU, in training mode. New layers are drawn from PyTorch's global generator.

    Raises:
        ValueError: if there is no such architecture, or there is not one name per class.
        WeightsError: if the weights cannot be downloaded or read, or do not fit.
    """
    _check_names(architecture, class_names)
    # A file for a cut network may lack the parameters behind the cut; the whole model cannot be loaded without them.
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


# Key of the metadata entry.
_KEY = "dcsm_attr"
_TITLES: dict[Kind, str] = {
    "classifier": "a classifier that `dcsm-attr train` wrote",
    "affinity_net": "an AffinityNet that `dcsm-attr affinity` wrote",
    "segmentation_net": "a segmentation network that `dcsm-attr train-seg` wrote",
}


def save_network(trained: Trained, path: str | Path) -> None:
    """Write a trained network to one file, which appears when it is complete.

    Args:
        trained: on any device; all of its attributes are saved.
        path: of the file, ``.safetensors``.

    Raises:
        OSError: if the file cannot be written.
    """
    config = {field.name: getattr(trained, field.name) for field in fields(trained) if field.name != "network"}
    config["architecture"] = trained.architecture.to_dict()
    config["preprocess"] = asdict(trained.preprocess)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_KEY: json.dumps({"kind": trained.kind, "config": config})})


def network_kind(path: str | Path) -> Kind | None:
    """Return which kind of trained network a file holds.

    Args:
        path: any path or name.

    Returns:
        None if there is no such file, or it is not one that :func:`save_network` wrote.

    Raises:
        WeightsError: if a ``.safetensors`` file is incomplete, or its metadata is damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    description, _ = _parse_file(path, {})
    return None if description is None else description["kind"]


def load_classifier(path: str | Path) -> Classifier:
    """Load a classifier that :func:`save_network` wrote; on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing or incomplete, or does not hold a classifier.
    """
    return _load_network(path, Classifier)


def load_affinity_net(path: str | Path) -> TrainedAffinityNet:
    """Load an AffinityNet that :func:`save_network` wrote; on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing or incomplete, or does not hold an AffinityNet.
    """
    return _load_network(path, TrainedAffinityNet)


def load_segmentation_net(path: str | Path) -> TrainedSegmentationNet:
    """Load a segmentation network that :func:`save_network` wrote; on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing or incomplete, or does not hold a segmentation network.
    """
    return _load_network(path, TrainedSegmentationNet)


def _load_network(path: str | Path, expected: type[_AnyTrained]) -> _AnyTrained:
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    description, tensors = _parse_file(path, read_weights(path))
    title = _TITLES[expected.kind]
    if description is None:
        raise WeightsError(
            f"{path}: holds weights without a description of their network; expected {title}. Where a command has "
            "--model, it takes such weights with the name of their model."
        )
    if description["kind"] != expected.kind:
        raise WeightsError(f"{path}: holds {_TITLES[description['kind']]}; expected {title}.")
    try:
        config = dict(description["config"])
        config["architecture"] = Architecture.from_dict(config["architecture"])
        config["preprocess"] = Preprocess.from_dict(config["preprocess"])
        if "class_names" in config:
            config["class_names"] = tuple(config["class_names"])
        # The initial weights are replaced: drawing them must not advance the caller's random numbers.
        with torch.random.fork_rng([]):
            network = _build_network(expected.kind, config)
        trained = expected(network=network, **config)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path}: the description of its network is incomplete ({type(error).__name__}: {error}). Train the "
            "network again with this version."
        ) from error
    load_weights(network, tensors, str(path))
    network.eval()
    return trained


def _build_network(kind: Kind, config: Mapping[str, Any]) -> Any:
    architecture = config["architecture"]
    if kind == "classifier":
        # First, so that a damaged number of classes does not allocate memory.
        _check_names(architecture, config["class_names"])
    network = architecture.build_network()
    if kind == "affinity_net":
        return AffinityNet(network.backbone, config["norm"])
    if kind == "segmentation_net":
        names, head, output_stride = (config[name] for name in ("class_names", "head", "output_stride"))
        return SegmentationNet(network.backbone, len(names), head, output_stride)
    return network


def _parse_file(path: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Return ``kind`` and ``config`` of a file, or None without such an entry, and its tensors by today's names."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a complete safetensors file ({error}).") from error
    try:
        if _KEY not in metadata:
            return _upgrade(metadata, tensors)
        description = json.loads(metadata[_KEY])
        kind, config = description["kind"], description["config"]
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: the description of its network is damaged ({type(error).__name__}: {error}). Copy the file "
            "again, or train the network again."
        ) from error
    if kind not in get_args(Kind):
        raise WeightsError(f"{path}: holds a network of kind {kind!r}; known are {', '.join(get_args(Kind))}.")
    return {"kind": kind, "config": config}, tensors


def _upgrade(
    metadata: Mapping[str, str], tensors: dict[str, Tensor]
) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read a file of an earlier version: one key per kind, flat settings of FickleNet, a backbone called trunk."""
    for kind in get_args(Kind):
        if f"dcsm_attr.{kind}" in metadata:
            config = json.loads(metadata[f"dcsm_attr.{kind}"])
            architecture = config.get("architecture", {})
            if architecture.get("head") == "normalised":
                architecture["head"] = "normalized"
            names = {"window": "window", "rate": "rate", "centre_kept": "keep_center"}
            fickle = {new: architecture.pop(old) for old, new in names.items() if old in architecture}
            if fickle:
                architecture["fickle"] = fickle
            tensors = {re.sub(r"^trunk\.", "backbone.", name): tensor for name, tensor in tensors.items()}
            return {"kind": kind, "config": config}, tensors
    return None, tensors

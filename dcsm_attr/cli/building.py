"""From the options of a command to a segmenter."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsm_attr.cli.options import (
    Alpha,
    Method,
    MethodChoice,
    MinCandidates,
    NoContrast,
    NoGuided,
    PrecisionChoice,
    PresetChoice,
    PresetOption,
    Variant,
    VariantChoice,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcsm_attr.attribution.candidates import Activation
    from dcsm_attr.attribution.class_maps import Saliency
    from dcsm_attr.attribution.model import PoolingName
    from dcsm_attr.models.checkpoint import Classifier
    from dcsm_attr.segmentation import Segmenter

__all__ = [
    "SaliencyOptions",
    "build_saliency",
    "build_segmenter",
    "classifier_segmenter",
    "load_chosen_classifier",
    "network_arguments",
    "parse_classes",
    "resolve_device",
    "segmenter_settings",
]


_DEMO = "demo"

# What the methods are that take fewer options than dcsm, and which of its options they take.
_METHODS_WITH_FEWER_OPTIONS = {
    MethodChoice.SIMONYAN: ("is one plain gradient a class, without candidates or variants", ("--alpha",)),
    MethodChoice.CAM: ("weights features, without gradients, candidates, variants or tanh", ()),
}


@dataclass(frozen=True)
class SaliencyOptions:
    """The options of how class maps are made; None: the method's own.

    Attributes:
        method, variant, no_contrast, no_guided, alpha, min_candidates, preset: as the options of these names.
    """

    method: Method = MethodChoice.DCSM
    variant: Variant = None
    no_contrast: NoContrast = False
    no_guided: NoGuided = False
    alpha: Alpha = None
    min_candidates: MinCandidates = None
    preset: PresetOption = PresetChoice.PAPER

    def __post_init__(self) -> None:
        """Check that the options go together."""
        if self.method not in _METHODS_WITH_FEWER_OPTIONS:
            return
        method_text, taken = _METHODS_WITH_FEWER_OPTIONS[self.method]
        of_both = ("--method", "--preset", *taken)
        dcsm_only_arguments = [argument for argument in self.arguments() if not argument.startswith(of_both)]
        if dcsm_only_arguments:
            raise ValueError(
                f"--method {self.method.value} {method_text}: {', '.join(dcsm_only_arguments)} "
                f"{'belong' if len(dcsm_only_arguments) > 1 else 'belongs'} to --method dcsm."
            )

    def arguments(self) -> list[str]:
        """The command-line arguments that give these options; nothing for those that are as they would be anyway."""
        arguments = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                option = f"--{field.name.replace('_', '-')}"
                arguments.append(option if value is True else f"{option}={getattr(value, 'value', value)}")
        return arguments


def build_saliency(
    network: "nn.Module", options: SaliencyOptions, *, activation: "Activation", pooling: "PoolingName"
) -> "Saliency":
    """The method that the options describe.

    Args:
        network: gives scores or score maps.
        options: of the method.
        activation: how its scores become probabilities.
        pooling: how score maps become scores.

    Raises:
        ValueError: if an option is out of its range, or the method does not work on the network.
    """
    from dcsm_attr.attribution import ClassActivationMaps, DistinctClassSaliency, Simonyan
    from dcsm_attr.attribution.fusion import FusedSaliency
    from dcsm_attr.segmentation.presets import PRESETS

    preset = PRESETS[options.preset.value]
    given: dict[str, Any] = {} if options.alpha is None else {"alpha": options.alpha}
    if options.method is MethodChoice.SIMONYAN:
        return Simonyan(network, activation=activation, pooling=pooling, **given)
    cam = ClassActivationMaps(network, activation=activation, pooling=pooling)
    if options.method is MethodChoice.CAM:
        return cam
    dcsm = DistinctClassSaliency(
        network,
        guided=not options.no_guided,
        subtract=not options.no_contrast,
        activation=activation,
        pooling=pooling,
        # A released code brings its own number of candidates.
        min_candidates=options.min_candidates or (None if options.variant else preset.min_candidates),
        deepest=preset.num_deepest_layers,
        variant=(options.variant or VariantChoice.PAPER).value,
        **given,
    )
    return FusedSaliency(cam, dcsm) if options.method is MethodChoice.FUSION else dcsm


def build_segmenter(
    model: str,
    weights: str,
    labels: str,
    device: str,
    saliency: SaliencyOptions = SaliencyOptions(),
    **settings: Any,
) -> "Segmenter":
    """Load the model and put a segmenter around it.

    Args:
        model: as the option of that name. A classifier that ``dcsm-attr train`` wrote, a network that ``dcsm-attr
            train-seg`` wrote, and the shipped classifier bring their own, and their labels.
        weights: as the option of that name.
        labels: as the option of that name.
        device: as the option of that name.
        saliency: how the class maps are made.
        **settings: passed to :class:`dcsm_attr.Segmenter`.

    Raises:
        ValueError: if one of them is not known or they do not fit each other.
    """
    from dcsm_attr.models.checkpoint import network_kind
    from dcsm_attr.models.weights import load_class_names, load_model
    from dcsm_attr.segmentation import Segmenter

    if network_kind(weights) == "segmentation_net":
        return _network_segmenter(weights, device, saliency, settings)
    if _is_classifier_file(weights):
        classifier = load_chosen_classifier(weights)
        classifier.network.to(resolve_device(device))
        return classifier_segmenter(classifier, saliency, **settings)
    names = load_class_names(labels)
    network = load_model(model, weights, resolve_device(device))
    method = build_saliency(network, saliency, activation="sigmoid" if labels == "voc" else "auto", pooling="max")
    return Segmenter(network, saliency=method, class_names=names, **{**_of_preset(saliency), **settings})


def segmenter_settings(precision: PrecisionChoice, max_pixels: int | None, no_crf: bool) -> dict[str, Any]:
    """What the options of these names change of a segmenter."""
    return {"precision": precision.value, "max_pixels": max_pixels, **({"crf": None} if no_crf else {})}


def classifier_segmenter(
    classifier: "Classifier", saliency: SaliencyOptions = SaliencyOptions(), **settings: Any
) -> "Segmenter":
    """Put a segmenter around a trained classifier, on the device where it is.

    Args:
        classifier: brings its classes, its canvas and its pooling.
        saliency: how the class maps are made.
        **settings: passed to :class:`dcsm_attr.Segmenter`.

    Raises:
        ValueError: if an option is out of its range, or the method does not work on the network.
    """
    from dcsm_attr.segmentation import Segmenter

    network = classifier.network
    method = build_saliency(network, saliency, activation="auto", pooling=classifier.pooling)
    of_classifier = {"preprocess": classifier.preprocess, "architecture": classifier.architecture.to_dict()}
    settings = {**_of_preset(saliency), **of_classifier, **settings}
    return Segmenter(network, saliency=method, class_names=classifier.class_names, **settings)


def _of_preset(saliency: SaliencyOptions) -> dict[str, Any]:
    from dcsm_attr.segmentation.presets import PRESETS

    preset = PRESETS[saliency.preset.value]
    return {"crf": preset.crf, "background_exponent": preset.background_exponent}


def _network_segmenter(weights: str, device: str, saliency: SaliencyOptions, settings: dict[str, Any]) -> "Segmenter":
    from dcsm_attr.models.checkpoint import load_segmentation_net
    from dcsm_attr.wsss.network_segmenter import NetworkSegmenter

    of_maps = {"walk": "--walk", "background_exponent": "--background"}
    given = [*saliency.arguments(), *(option for name, option in of_maps.items() if name in settings)]
    if given:
        raise ValueError(
            f"{Path(weights).name} is a segmentation network, which labels pixels without class maps: leave out "
            f"{', '.join(given)}."
        )
    trained = load_segmentation_net(weights)
    trained.network.to(resolve_device(device))
    return NetworkSegmenter(trained, **settings)


def network_arguments(model: str, weights: str, labels: str) -> dict[str, str]:
    """The options that chose the network; of a trained classifier's file, which brings its own, the file alone."""
    return {"weights": weights, **({} if _is_classifier_file(weights) else {"model": model, "labels": labels})}


def load_chosen_classifier(weights: str) -> "Classifier":
    """The trained classifier that the option names: the shipped one, or a file.

    Raises:
        WeightsError: if the file is missing, incomplete, or no classifier of this package.
    """
    from dcsm_attr.demo import scene_classifier
    from dcsm_attr.models.checkpoint import load_classifier

    return scene_classifier() if weights == _DEMO else load_classifier(weights)


def _is_classifier_file(weights: str) -> bool:
    from dcsm_attr.models.checkpoint import network_kind

    return weights == _DEMO or network_kind(weights) in ("classifier", "segmentation_net")


def resolve_device(name: str) -> "torch.device":
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


def parse_classes(text: str | None) -> list[int | str] | None:
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

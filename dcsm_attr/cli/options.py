"""Options that several commands share: their types, and groups of options as dataclasses.

A command takes a whole group as one parameter, see :func:`with_option_groups`.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    import torch

__all__ = [
    "DeviceName",
    "MaskOptions",
    "MethodName",
    "MethodOptions",
    "ModelOptions",
    "PrecisionName",
    "PresetName",
    "ScheduleName",
    "SeedOptions",
    "TrainingOptions",
    "with_option_groups",
]

DATA, MODEL, METHOD, TRAINING, OUTPUT = "Data", "Model", "Method", "Training", "Output"

# The names that the library uses too, repeated here because importing them would import PyTorch.
MethodName = Literal["dcsm", "simonyan", "cam", "fusion"]
PresetName = Literal["paper", "tuned"]
ScheduleName = Literal["paper", "modern"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["float32", "bfloat16"]

ImageFiles = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.", show_default=False),
]
VocRoot = Annotated[
    Path,
    typer.Argument(
        metavar="VOC_ROOT", help="Folder that contains ImageSets, such as VOCdevkit/VOC2012.", show_default=False
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A VOC folder, such as VOCdevkit/VOC2012; or, with --image-labels, a folder of images.",
        show_default=False,
    ),
]
ImageLabels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv",
        help="Image-level labels: a CSV file with the columns id, split (train or val) and labels. Optional for a VOC "
        "folder.",
        rich_help_panel=DATA,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Skip images with more pixels, as a protection against decompression bombs. The default is Pillow's "
        "limit of 89 million.",
        rich_help_panel=DATA,
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Classes that are in the images, as names or numbers. By default, the classes that the model detects.",
        rich_help_panel=DATA,
    ),
]
EvaluationSplit = Annotated[
    str, typer.Option(metavar="NAME", help="A list in ImageSets/Segmentation.", rich_help_panel=DATA)
]

ModelName = Annotated[
    str, typer.Option("--model", metavar="NAME", help="A classification CNN of torchvision.", rich_help_panel=MODEL)
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="DEFAULT|FILE|demo",
        help="Weights of the model. DEFAULT: torchvision's, downloaded once. FILE: a .safetensors, .pth or .pt file "
        "(pickled objects are never executed); a file written by dcsm-attr train or train-seg contains its own model "
        "and class names. demo: the network of the generated scenes, included in the package.",
        rich_help_panel=MODEL,
    ),
]
ClassifierWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="FILE|demo",
        help="Weights of the classifier: a file written by dcsm-attr train.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
BackboneWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        metavar="DEFAULT|FILE|none",
        help="Weights of the backbone. DEFAULT: torchvision's, downloaded once. none: randomly initialized.",
        rich_help_panel=MODEL,
    ),
]
ClassNames = Annotated[
    str,
    typer.Option(
        metavar="voc|imagenet|FILE",
        help="Names of the model's classes; a FILE has one name per line. With voc, the class scores are independent "
        "(sigmoid).",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    DeviceName, typer.Option(help="Device to run on. auto: a GPU if there is one.", rich_help_panel=MODEL)
]
Precision = Annotated[
    PrecisionName,
    typer.Option(
        help="Number format of the model. bfloat16 is faster on many GPUs and changes the maps slightly.",
        rich_help_panel=MODEL,
    ),
]
BackboneEnd = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE",
        help="Last stage of the backbone, such as layer3. By default, the whole backbone is used.",
        rich_help_panel=MODEL,
    ),
]

Method = Annotated[
    MethodName,
    typer.Option(
        help="dcsm: distinct class-specific saliency maps. simonyan: gradients of each class, the paper's baseline. "
        "cam: class activation maps at four scales and mirrored, for networks that end in average pooling and one "
        "linear layer, or in score maps. fusion: the product of cam and dcsm.",
        rich_help_panel=METHOD,
    ),
]
Preset = Annotated[
    PresetName,
    typer.Option(
        help="paper: the published settings. tuned: the deepest layer, contrast between the detected classes only, and "
        "a background and a CRF that were selected on images of VOC.",
        rich_help_panel=METHOD,
    ),
]
Background = Annotated[
    float | None,
    typer.Option(
        metavar="EXPONENT",
        help="Exponent of the background 1 - max: larger values give more foreground. The default depends on the "
        "preset; with --walk it is 16 for cam, 0.25 for dcsm, and 32 for fusion.",
        rich_help_panel=METHOD,
    ),
]
NoCrf = Annotated[bool, typer.Option("--no-crf", help="Skip the dense CRF.", rich_help_panel=METHOD)]

Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Start over: remove the results of an earlier run with other settings.",
        rich_help_panel=OUTPUT,
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """The options that select the model; the attributes are the options of these names."""

    model: ModelName = "vgg16"
    weights: Weights = "DEFAULT"
    class_names: ClassNames = "imagenet"
    device: Device = "auto"


@dataclass(frozen=True)
class MethodOptions:
    """The options that select how class maps are computed; the attributes are the options of these names."""

    method: Method = "dcsm"
    preset: Preset = "paper"

    def arguments(self) -> list[str]:
        """The command-line arguments of the options that are not at their defaults."""
        return _changed_arguments(self)


@dataclass(frozen=True)
class MaskOptions:
    """The options that select how class maps become label maps; the attributes are the options of these names."""

    background: Background = None
    walk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Refine the class maps by a random walk before the CRF: an affinity_net.safetensors written by "
            "dcsm-attr affinity.",
            rich_help_panel=METHOD,
        ),
    ] = None
    no_crf: NoCrf = False
    precision: Precision = "float32"

    def settings(self, device: "torch.device", method: MethodName) -> dict[str, Any]:
        """Arguments of :class:`dcsm_attr.Segmenter` that differ from the preset.

        Args:
            device: where AffinityNet is put.
            method: the method that computes the class maps.

        Raises:
            WeightsError: if the file is missing, incomplete, or not an AffinityNet.
            ValueError: if a number is out of its range, or the method has no default background for the walk.
        """
        settings: dict[str, Any] = {"precision": self.precision}
        if self.no_crf:
            settings["crf"] = None
        if self.background is not None:
            settings["background_exponent"] = self.background
        if self.walk is not None:
            from dcsm_attr.models.checkpoint import load_affinity_net
            from dcsm_attr.wsss.affinity import method_exponents
            from dcsm_attr.wsss.random_walk import SemanticWalk

            net = load_affinity_net(self.walk)
            net.network.to(device)
            settings["walk"] = SemanticWalk(net)
            if self.background is None:
                settings["background_exponent"] = method_exponents(method).walk
        return settings

    def absolute(self) -> "MaskOptions":
        """The same options for processes with another working folder."""
        return self if self.walk is None else replace(self, walk=self.walk.absolute())

    def arguments(self) -> list[str]:
        """The command-line arguments of the options that are not at their defaults; the file without its folder."""
        return _changed_arguments(self)


def _changed_arguments(group: Any) -> list[str]:
    arguments = []
    for field in fields(group):
        value = getattr(group, field.name)
        if value != field.default:
            option = f"--{field.name.replace('_', '-')}"
            shown = value.name if isinstance(value, Path) else value
            arguments.append(option if value is True else f"{option}={shown}")
    return arguments


@dataclass(frozen=True)
class TrainingOptions:
    """The options of every training; the attributes are the options of these names."""

    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="Training schedule. paper: as published, for large data sets. modern: for small data sets.",
            rich_help_panel=TRAINING,
        ),
    ] = "modern"
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of optimizer steps. By default, that of the schedule.", rich_help_panel=TRAINING
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images per step, over all processes. By default, that of the schedule.",
            rich_help_panel=TRAINING,
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Random seed.", rich_help_panel=TRAINING)] = 0
    workers: Annotated[
        int, typer.Option(min=0, help="Number of processes that load images.", rich_help_panel=TRAINING)
    ] = 2
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write TensorBoard logs too.", rich_help_panel=TRAINING),
    ] = False


@dataclass(frozen=True)
class SeedOptions:
    """The options of the commands that write seeds; the attributes are the options of these names."""

    data: Data
    weights: ClassifierWeights
    image_labels: ImageLabels = None
    split: Annotated[str, typer.Option(metavar="NAME", help="Images to process.", rich_help_panel=DATA)] = "train"
    device: Device = "auto"
    background_share: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of each image that becomes background seeds.", rich_help_panel=METHOD
        ),
    ] = 0.1


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by one option per field.

    Typer creates options from the parameters of a function and has no groups of options. The fields of the dataclass
    give the names, annotations and defaults of the options; a default of the parameter gives other defaults. The
    command receives the dataclass.

    Args:
        command: a function with Typer annotations.

    Returns:
        The command for Typer.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _field_parameters(groups[parameter.name], parameter.default)
        else:
            parameters.append(parameter)

    @wraps(command)
    def with_options(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    with_options.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    return with_options


def _field_parameters(group: type[Any], defaults: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    parameters = []
    for field in fields(group):
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        if defaults is not inspect.Parameter.empty:
            default = getattr(defaults, field.name)
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    return parameters

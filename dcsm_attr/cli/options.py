"""Options that mean the same in every command.

Options that several commands share, told once: as the fields of a dataclass, which a command takes as a whole.

The options of the random walk, and of the background that walks with the classes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    import torch

__all__ = ["WalkOptions", "with_option_groups"]


_METHOD_PANEL = "Method"

Photographs = Annotated[
    list[Path],
    typer.Argument(metavar="PHOTO...", help="Image files; a folder stands for all pictures in it.", show_default=False),
]
ModelName = Annotated[str, typer.Option("--model", metavar="NAME", help="Any classification CNN of torchvision.")]
OutputStride = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Pixels to one position of the backbone's map: its last strides become dilations. The model's own, if not "
        "given.",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="DEFAULT|demo|FILE",
        help="DEFAULT: torchvision's, downloaded once. Or a .safetensors, .pth or .pt file with the model's "
        "parameters; pickled objects in it are never executed. A file that dcsm-attr train or train-seg wrote brings "
        "its own model and labels; so does demo, the shipped network of the scenes.",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        metavar="voc|imagenet|FILE",
        help="Names of the model's classes; a FILE has one per line. With voc, each class is decided for itself "
        "(sigmoid).",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Pictures with more pixels are refused, against decompression bombs; 89 million, if not given.",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="The classes that are in the images, as names or numbers. Without it, those are taken that the model "
        "detects.",
    ),
]


class MethodChoice(str, Enum):
    """Where class maps come from."""

    DCSM = "dcsm"
    SIMONYAN = "simonyan"
    CAM = "cam"
    FUSION = "fusion"


class VariantChoice(str, Enum):
    """The published forms of DCSM."""

    PAPER = "paper"
    MATCONVNET = "matconvnet"
    CAFFE = "caffe"


class PresetChoice(str, Enum):
    """Named settings of everything."""

    PAPER = "paper"
    TUNED = "tuned"


PresetOption = Annotated[
    PresetChoice,
    typer.Option(
        "--preset",
        help="paper: as published. tuned: the deepest layer, only the classes in the picture subtracted from each "
        "other, a background and a CRF chosen on images. The other options change parts of it.",
        rich_help_panel=_METHOD_PANEL,
    ),
]
Method = Annotated[
    MethodChoice,
    typer.Option(
        help="dcsm: distinct class-specific saliency maps. simonyan: the paper's baseline, one plain gradient a class. "
        "cam: class activation maps at four scales and mirrored, without gradients; for networks that end in average "
        "pooling and one linear layer, or in score maps. fusion: the product of cam and dcsm, to which its options go.",
        rich_help_panel=_METHOD_PANEL,
    ),
]
Variant = Annotated[
    VariantChoice | None,
    typer.Option(
        help="The paper's form of dcsm, or that of one of its two released codes; paper, if not given.",
        rich_help_panel=_METHOD_PANEL,
    ),
]
NoContrast = Annotated[
    bool,
    typer.Option("--no-subtract", help="Do not subtract the classes from each other.", rich_help_panel=_METHOD_PANEL),
]
NoGuided = Annotated[
    bool,
    typer.Option("--no-guided", help="Plain gradients, not guided backpropagation.", rich_help_panel=_METHOD_PANEL),
]
Alpha = Annotated[
    float | None,
    typer.Option(help="Steepness of tanh; 3, with simonyan 8, if not given.", rich_help_panel=_METHOD_PANEL),
]
MinCandidates = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="So many classes at least are compared; 3, with matconvnet 4, if not given.",
        rich_help_panel=_METHOD_PANEL,
    ),
]
NoCrf = Annotated[
    bool,
    typer.Option("--no-crf", help="Label maps from the class maps alone.", rich_help_panel=_METHOD_PANEL),
]


_WALK_PANEL = "Random walk"

WalkNet = Annotated[
    Path | None,
    typer.Option(
        "--walk",
        metavar="FILE",
        help="An affinity_net.safetensors that dcsm-attr affinity wrote: the maps walk along its affinities before the "
        "CRF.",
        rich_help_panel=_WALK_PANEL,
    ),
]
Radius = Annotated[
    int,
    typer.Option(min=2, help="Neighbors are nearer than this, in positions of 8 pixels.", rich_help_panel=_WALK_PANEL),
]
Beta = Annotated[float, typer.Option(help="Power of each affinity; 8 as published.", rich_help_panel=_WALK_PANEL)]
WalkSteps = Annotated[
    int, typer.Option(min=0, help="Steps of the walk; 256 as published.", rich_help_panel=_WALK_PANEL)
]
Background = Annotated[
    float | None,
    typer.Option(
        help="Exponent of the background 1 - max: larger gives more foreground. If not given, the preset's; with a "
        "walk 16 for cam, 0.25 for dcsm with the preset tuned, 32 for fusion.",
        rich_help_panel=_METHOD_PANEL,
    ),
]


VocRoot = Annotated[
    Path,
    typer.Argument(
        metavar="VOC_ROOT", help="The folder that holds ImageSets, such as VOCdevkit/VOC2012.", show_default=False
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="A VOC folder (VOCdevkit/VOC2012); or, with --labels, one of pictures.", show_default=False
    ),
]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE.csv",
        help="Image-level labels: columns id, split (train or val) and labels. A VOC folder may do without.",
    ),
]
ClassifierFile = Annotated[
    str,
    typer.Option(
        "--weights", metavar="FILE|demo", help="The classifier: a file that dcsm-attr train wrote.", show_default=False
    ),
]
SaliencyLayer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where it is seen how little is background: the layer in the middle of the network (of VGG-16 conv4_1), "
        "if not given.",
    ),
]
BackgroundShare = Annotated[float, typer.Option(help="Share of each image that becomes seeds of the background.")]
SeedSplit = Annotated[str, typer.Option(metavar="NAME", help="The photographs that get seeds.")]
SeedFolder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="For the label maps. The same command goes on after an interruption.")
]


class TrainingChoice(str, Enum):
    """Ways to train."""

    PAPER = "paper"
    MODERN = "modern"


Steps = Annotated[int | None, typer.Option(min=1, help="Steps of the optimizer; the preset's, if not given.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Photographs a step, over all processes.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read photographs ahead.")]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write FOLDER/tensorboard too: the curves of log.csv.")
]
TrainingFolder = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write; an interrupted run resumes.")]


class DeviceName(str, Enum):
    """Where the model runs."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrecisionChoice(str, Enum):
    """In which numbers the model runs."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


Precision = Annotated[
    PrecisionChoice,
    typer.Option(help="Numbers in which the model runs. bfloat16 is faster on many GPUs; maps differ a little."),
]
Device = Annotated[DeviceName, typer.Option(help="auto: a GPU if there is one.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Leave out photographs whose results are complete in FOLDER already: after an interruption, give the same "
        "command with this added.",
    ),
]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write; each image gets a folder of its name.")]


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of the dataclasses among its parameters.

    Typer makes options of the parameters of a function, and knows no groups of them. A parameter that is annotated with
    a dataclass stands for the dataclass's fields: their names, annotations and defaults are those of the options, and
    the command is given the dataclass that they make.

    Args:
        command: whose other parameters are as Typer takes them.

    Returns:
        The command, for Typer.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        parameters += _options(groups[parameter.name]) if parameter.name in groups else [parameter]

    @wraps(command)
    def with_options(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


def _options(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]


@dataclass(frozen=True)
class WalkOptions:
    """What the command line says of the walk.

    Attributes:
        walk, radius, beta, walk_steps, background: as the options of these names.
    """

    walk: WalkNet = None
    radius: Radius = 5
    beta: Beta = 16.0
    walk_steps: WalkSteps = 32
    background: Background = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        changed = [name for name in self._changed() if name != "background"]
        if self.walk is None and changed:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise ValueError(f"{told}: there is no walk without a network; pass --walk FILE.")

    def settings(self, device: "torch.device", method: MethodChoice) -> dict[str, Any]:
        """What these options change of a segmenter.

        Args:
            device: where AffinityNet is put.
            method: whose maps walk.

        Raises:
            WeightsError: if the file is missing, incomplete, or no AffinityNet.
            ValueError: if a number is out of its range, or the background is not given for maps of which none is known.
        """
        from dcsm_attr.models.checkpoint import load_affinity_net
        from dcsm_attr.wsss.affinity import method_exponents
        from dcsm_attr.wsss.random_walk import SemanticWalk

        if self.walk is None:
            return {} if self.background is None else {"background_exponent": self.background}
        net = load_affinity_net(self.walk)
        net.network.to(device)
        return {
            "walk": SemanticWalk(net, self.radius, self.beta, self.walk_steps),
            "background_exponent": method_exponents(method.value).walk if self.background is None else self.background,
        }

    def absolute(self) -> "WalkOptions":
        """The same, for processes at work in another folder."""
        return self if self.walk is None else replace(self, walk=self.walk.absolute())

    def arguments(self) -> list[str]:
        """The command-line arguments that give these options, the file by its name alone."""
        return [
            f"--{name.replace('_', '-')}={value.name if isinstance(value, Path) else value}"
            for name, value in self._changed().items()
        ]

    def _changed(self) -> dict[str, Any]:
        """The options that are not as they would be anyway."""
        given = {field: getattr(self, field.name) for field in fields(self)}
        return {field.name: value for field, value in given.items() if value != field.default}

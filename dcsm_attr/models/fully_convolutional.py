"""Classifiers as fully convolutional networks, which give score maps instead of scores, at any input size."""

import copy
from collections.abc import Iterator
from typing import Literal, get_args

import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from dcsm_attr.attribution.model import find_attention, prepared_model, unwrap_model
from dcsm_attr.models.backbone import replace_stride_with_dilation
from dcsm_attr.models.stochastic import FickleSettings, init_class_layer

__all__ = [
    "HeadName",
    "ScoreMapNetwork",
    "fully_convolutional",
    "linear_to_convolution",
    "normalized_head",
    "output_channels",
    "rectified_head",
]


HeadName = Literal["own", "extended", "linear", "rectified", "normalized", "fickle"]

# Where the backbone of each family ends, and the attributes that form its head, in order.
_FAMILIES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    tv.AlexNet: ("features", ("classifier",)),
    tv.ConvNeXt: ("features", ("classifier",)),
    tv.DenseNet: ("relu", ("classifier",)),
    tv.EfficientNet: ("features", ("classifier",)),
    tv.GoogLeNet: ("inception5b", ("dropout", "fc")),
    tv.Inception3: ("Mixed_7c", ("dropout", "fc")),
    tv.MNASNet: ("layers", ("classifier",)),
    tv.MobileNetV2: ("features", ("classifier",)),
    tv.MobileNetV3: ("features", ("classifier",)),
    tv.RegNet: ("trunk_output", ("fc",)),
    tv.ResNet: ("layer4", ("fc",)),
    tv.ShuffleNetV2: ("conv5", ("fc",)),
    tv.SqueezeNet: ("features", ("classifier",)),
    tv.VGG: ("features", ("classifier",)),
}

_SCORE_MAP_NETWORKS = (tv.segmentation.DeepLabV3, tv.segmentation.FCN, tv.segmentation.LRASPP)

# Pooling and flattening, which a head of score maps omits.
_DROPPED_LAYERS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten)
_DEFAULT_WIDTH = 512


class ScoreMapNetwork(nn.Module):
    """A backbone of convolutions and a head that gives one score map per class.

    Attributes:
        backbone: images to a map of features.
        head: the map of features to score maps; new layers of :func:`fully_convolutional` are at its end.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential) -> None:
        """Combine a backbone and a head.

        Args:
            backbone: returns a dictionary with the one entry ``"map"``, as torchvision's feature extractors do.
            head: layers that work at any size.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Compute score maps before sigmoid or softmax.

        Args:
            images: ``(N, 3, H, W)``.

        Returns:
            ``(N, C, h, w)``.
        """
        scores: Tensor = self.head(self.backbone(images)["map"])
        return scores


def fully_convolutional(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    cut: str | None = None,
    head: HeadName = "own",
    output_stride: int | None = None,
    fickle: FickleSettings = FickleSettings(),  # noqa: B008 - frozen
) -> ScoreMapNetwork:
    """Convert a classifier to a network that gives score maps, at any input size.

    VGG's and AlexNet's linear layers become equivalent convolutions: at the input size of the original training, each
    score map has one position, which is the score. A linear layer on a pooled map becomes a 1 x 1 convolution, and the
    mean of each score map is the score. If more layers follow the pool (ConvNeXt, MobileNet v3), they are applied at
    each position instead, which is another function. Auxiliary heads are omitted.

    Args:
        model: a classification CNN of torchvision; left unchanged. With ``cut``, any network that ``torch.fx`` can
            trace.
        num_classes: C; the last layer is new, initialized from PyTorch's global generator. None: the model's own
            classes and weights.
        cut: name of the module or node after which the network ends, for example ``"layer3"`` of a ResNet. None: before
            the head.
        head: which head the network gets; all but ``"own"`` need ``num_classes``:

            - ``"own"``: the model's.
            - ``"extended"``: the model's, with its rectified class scores as a hidden layer, and a new 1 x 1
              convolution on top; makes a trained head similar to VGG's.
            - ``"linear"``: one new 1 x 1 convolution.
            - ``"rectified"``: see :func:`rectified_head`.
            - ``"normalized"``: see :func:`normalized_head`.
            - ``"fickle"``: FickleNet's, one new :class:`~dcsm_attr.models.stochastic.StochasticSelection`.
        output_stride: pixels of the image per position of the backbone's map, see
            :func:`~dcsm_attr.models.backbone.replace_stride_with_dilation`. None: the model's own.
        fickle: settings of ``head="fickle"``.

    Returns:
        The network, in the mode and on the device of the model, sharing no parameters with it.

    Raises:
        ValueError: if the family is not known and ``cut`` is None, the model is a transformer or gives score maps
            already, ``cut`` is not in the model, or an argument is out of range or contradicts another one.
    """
    if head not in get_args(HeadName):
        raise ValueError(f"head must be one of {', '.join(map(repr, get_args(HeadName)))}; got {head!r}.")
    if head in ("own", "extended") and cut is not None:
        raise ValueError(
            f"cut={cut!r} removes the model's own head: pass head='linear', head='rectified', head='normalized' or "
            "head='fickle'."
        )
    if head != "own" and num_classes is None:
        raise ValueError(f"head={head!r} is a new head, which needs num_classes.")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    own = copy.deepcopy(unwrap_model(model))
    end, parts = _find_family(own, cut)
    backbone = _select_backbone(own, end)
    parameter = next(own.parameters())
    if output_stride is not None:
        replace_stride_with_dilation(backbone, output_stride)
    channels = output_channels(backbone)
    if num_classes is None:
        built = nn.Sequential(*_to_convolutional(_head_layers(own, parts), channels))
    elif head == "linear":
        built = nn.Sequential(_class_layer(channels, num_classes))
    elif head == "rectified":
        built = rectified_head(channels, num_classes)
    elif head == "normalized":
        built = normalized_head(channels, num_classes)
    elif head == "fickle":
        built = nn.Sequential(fickle.build_layer(channels, num_classes))
    else:
        built = _replace_class_layer(list(_to_convolutional(_head_layers(own, parts), channels)), num_classes, head)
    return ScoreMapNetwork(backbone, built.to(parameter.device, parameter.dtype)).train(model.training)


def _replace_class_layer(layers: list[nn.Module], num_classes: int, head: HeadName) -> nn.Sequential:
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    classifying = layers[last]
    assert isinstance(classifying, nn.Conv2d)
    if head == "extended":
        extension = [nn.ReLU(inplace=True), _class_layer(classifying.out_channels, num_classes)]
        return nn.Sequential(*layers[: last + 1], *extension)
    # Removes SqueezeNet's rectifier behind the scores too: scores must be able to be negative.
    return nn.Sequential(*layers[:last], _class_layer(classifying.in_channels, num_classes))


def _find_family(model: nn.Module, cut: str | None) -> tuple[str, tuple[str, ...]]:
    if cut is not None:
        return cut, ()
    for family, description in _FAMILIES.items():
        if isinstance(model, family):
            return description
    if isinstance(model, _SCORE_MAP_NETWORKS):
        raise ValueError(f"{type(model).__name__} gives score maps already: use it directly.")
    attention = find_attention(model)
    if attention is not None:
        raise ValueError(
            f"{type(model).__name__} is a transformer ({attention}) and has no backbone of convolutions. Use a CNN."
        )
    raise ValueError(
        f"where the backbone of {type(model).__name__} ends is not known: name the module with cut=..., and choose a "
        f"new head. Known are {', '.join(family.__name__ for family in _FAMILIES)}."
    )


def _select_backbone(model: nn.Module, end: str) -> nn.Module:
    try:
        # Convolutions of subclasses stay modules in the trace too: layers of the network are chosen among them.
        tracing = {"leaf_modules": [nn.Conv2d]}
        backbone: nn.Module = create_feature_extractor(
            model, {end: "map"}, tracer_kwargs=tracing, suppress_diff_warning=True
        )
    except ValueError as error:
        stages = [name for name, _ in model.named_modules() if name and "." not in name]
        raise ValueError(
            f"{end!r} is not a place where {type(model).__name__} can be cut; its stages: {', '.join(stages)}."
        ) from error
    return backbone


def _head_layers(model: nn.Module, parts: tuple[str, ...]) -> Iterator[nn.Module]:
    for part in parts:
        module = getattr(model, part)
        yield from module if isinstance(module, nn.Sequential) else (module,)


def _to_convolutional(modules: Iterator[nn.Module], channels: int) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Linear):
            convolution = linear_to_convolution(module, channels)
            channels = convolution.out_channels
            yield convolution
        elif not isinstance(module, _DROPPED_LAYERS):
            yield module


class _PaddedConv2d(nn.Conv2d):
    """A convolution that pads only maps that are smaller than its kernel, to the size of the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [max(0, kernel - side) for kernel, side in zip(self.kernel_size, x.shape[2:], strict=True)]
        if any(missing):
            top, left = (count // 2 for count in missing)
            x = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return super().forward(x)


def linear_to_convolution(linear: nn.Linear, channels: int) -> nn.Conv2d:
    """Convert a linear layer over a flattened map to the convolution that computes the same.

    Args:
        linear: with ``channels * k * k`` input features, flattened from ``(channels, k, k)``.
        channels: of the map.

    Returns:
        A convolution with kernel ``k`` and without padding; maps smaller than the kernel are padded with zeros to its
        size.

    Raises:
        ValueError: if the features are not those of a square map with this number of channels.
    """
    side = round((linear.in_features / channels) ** 0.5)
    if side < 1 or channels * side * side != linear.in_features:
        raise ValueError(
            f"a linear layer over a map of {channels} channels must take {channels} * k * k features; it takes "
            f"{linear.in_features}."
        )
    kind = nn.Conv2d if side == 1 else _PaddedConv2d
    convolution = kind(channels, linear.out_features, side, bias=linear.bias is not None)
    with torch.no_grad():
        convolution.weight.copy_(linear.weight.view_as(convolution.weight))
        if linear.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(linear.bias)
    return convolution


def rectified_head(channels: int, num_classes: int, width: int = _DEFAULT_WIDTH, dropout: float = 0.5) -> nn.Sequential:
    """Build a head like VGG's: with two rectified hidden layers, the gradients of two classes differ by position.

    Args:
        channels: of the backbone's map.
        num_classes: C.
        width: channels of the hidden layers.
        dropout: probability, before each of the last two layers.

    Returns:
        3 x 3 convolution, ReLU, 1 x 1 convolution, ReLU, 1 x 1 convolution.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Conv2d(width, width, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        _class_layer(width, num_classes),
    )


def normalized_head(
    channels: int, num_classes: int, width: int = _DEFAULT_WIDTH, dropout: float = 0.5
) -> nn.Sequential:
    """Build a deeper rectified head with batch norms, for features of a cut network, which are less class-specific.

    Without batch norms, a randomly initialized head hardly learns there from a few hundred images: the features are
    small (ResNet-18's after ``layer3`` have a mean of 0.1), and the gradients of three layers with small weights even
    smaller.

    Args:
        channels: of the backbone's map.
        num_classes: C.
        width: channels of the hidden layers.
        dropout: probability, before the last layer.

    Returns:
        Twice a 3 x 3 convolution, batch norm and ReLU, then a 1 x 1 convolution.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        _class_layer(width, num_classes),
    )


def _class_layer(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    init_class_layer(layer)
    return layer


def output_channels(backbone: nn.Module) -> int:
    """Return the number of channels of a backbone's map.

    Args:
        backbone: of a :class:`ScoreMapNetwork`; left unchanged.
    """
    parameter = next(backbone.parameters())
    image = torch.zeros(1, 3, 224, 224, device=parameter.device, dtype=parameter.dtype)
    with prepared_model(backbone, image.device):
        return int(backbone(image)["map"].shape[1])

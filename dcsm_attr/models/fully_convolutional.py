"""A classifier as a fully convolutional network: score maps instead of scores, at any input size."""

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

# Where the backbone of each family ends, and the attributes that make up its head, in order.
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

# Pool and flatten: what a head of score maps does without.
_DROPPED_LAYERS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten)
_DEFAULT_WIDTH = 512


class ScoreMapNetwork(nn.Module):
    """A backbone of convolutions and a head that gives a score map for each class.

    Attributes:
        backbone: images to a map of features.
        head: the map of features to score maps; what :func:`fully_convolutional` made anew is the end of it.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential) -> None:
        """Put the parts together.

        Args:
            backbone: returns a dictionary with the one entry ``"map"``, as torchvision's feature extractors do.
            head: of layers that work at any size.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Score maps before sigmoid or softmax.

        Args:
            images: ``(N, 3, H, W)``.

        Returns:
            ``(N, C, h, w)``.
        """
        scores: Tensor = self.head(self.backbone(images)["map"])
        return scores


class _PaddedConv2d(nn.Conv2d):
    """A convolution without padding that pads maps smaller than its kernel to the size of it."""

    def forward(self, x: Tensor) -> Tensor:
        missing = [max(0, kernel - side) for kernel, side in zip(self.kernel_size, x.shape[2:], strict=True)]
        if any(missing):
            top, left = (lack // 2 for lack in missing)
            x = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return super().forward(x)


def linear_to_convolution(linear: nn.Linear, channels: int) -> nn.Conv2d:
    """Read a linear layer over a flattened map as the convolution with the same function.

    Args:
        linear: with ``channels * k * k`` input features, flattened from ``(channels, k, k)``.
        channels: of the map.

    Returns:
        A convolution with kernel ``k`` and without padding; maps smaller than that are padded to it with zeros.

    Raises:
        ValueError: if the features are no square map of so many channels.
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
    """A head of VGG's kind: two rectified hidden layers, so that the seeds of two classes differ by position.

    Args:
        channels: of the backbone's map.
        num_classes: C.
        width: of the hidden layers.
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
    """A deeper rectified head with batch norms, for features that are far from the classes, as those of a cut network.

    Without batch norms a randomly initialized head hardly learns there from a few hundred photographs: the features are
    small (ResNet-18's after ``layer3`` are 0.1 in the mean), and the gradients of three small layers in a row smaller.

    Args:
        channels: of the backbone's map.
        num_classes: C.
        width: of the hidden layers.
        dropout: probability, before the last layer.

    Returns:
        Two times 3 x 3 convolution, batch norm and ReLU, then a 1 x 1 convolution.
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


def output_channels(backbone: nn.Module) -> int:
    """How many channels the map of a backbone has.

    Args:
        backbone: of a :class:`ScoreMapNetwork`; it is left as it is.
    """
    parameter = next(backbone.parameters())
    image = torch.zeros(1, 3, 224, 224, device=parameter.device, dtype=parameter.dtype)
    with prepared_model(backbone, image.device):
        return int(backbone(image)["map"].shape[1])


def fully_convolutional(
    model: nn.Module,
    num_classes: int | None = None,
    *,
    cut: str | None = None,
    head: HeadName = "own",
    output_stride: int | None = None,
    fickle: FickleSettings = FickleSettings(),  # noqa: B008 - frozen
) -> ScoreMapNetwork:
    """Make a classifier give score maps, at any input size.

    VGG's and AlexNet's linear layers become convolutions with the same function: at the size that they were trained at,
    the only position of each score map is the score. Where a pooled map is followed by one linear layer, that becomes a
    1 x 1 convolution, and the mean of each score map is the score. Where more follows the pool (ConvNeXt, MobileNet v3)
    the same layers work at each position instead, which is another function. Auxiliary heads are left out.

    Args:
        model: a classification CNN of torchvision; it is left as it is. With ``cut``, any network that ``torch.fx`` can
            trace.
        num_classes: C; the last layer is made anew, with weights drawn from PyTorch's global generator. None: the
            model's own classes and weights.
        cut: name of the module or node after which the network ends, for example ``"layer3"`` of a ResNet. None: before
            the head.
        head: ``"own"``: the model's; ``"extended"``: the model's with its classes, rectified, as a hidden layer, and
            one new 1 x 1 convolution on top, so that a trained head is of VGG's kind without being learned anew;
            ``"linear"``: one new 1 x 1 convolution; ``"rectified"``: see :func:`rectified_head`; ``"normalized"``: see
            :func:`normalized_head`; ``"fickle"``: one new
            :class:`~dcsm_attr.models.stochastic.StochasticSelection`, FickleNet's. New layers need ``num_classes``.
        output_stride: pixels of the image to one position of the backbone's map, see
            :func:`~dcsm_attr.models.backbone.replace_stride_with_dilation`. None: the model's own.
        fickle: settings of ``head="fickle"``.

    Returns:
        The network, in the mode and on the device of the model, sharing no parameter with it.

    Raises:
        ValueError: if the family is not known and nothing says where to cut, the model is a transformer or gives score
            maps already, the place to cut is not in the model, or an argument is out of its range or does not go
            together with another.
    """
    if head not in get_args(HeadName):
        raise ValueError(f"head must be one of {', '.join(map(repr, get_args(HeadName)))}; got {head!r}.")
    if head in ("own", "extended") and cut is not None:
        raise ValueError(
            f"cut={cut!r} takes the model's own head off: say head='linear', head='rectified', head='normalized' or "
            "head='fickle'."
        )
    if head != "own" and num_classes is None:
        raise ValueError(f"head={head!r} is a new head, which needs num_classes.")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
    own = copy.deepcopy(unwrap_model(model))
    end, parts = _family(own, cut)
    backbone = _select_backbone(own, end)
    parameter = next(own.parameters())
    if output_stride is not None:
        replace_stride_with_dilation(backbone, output_stride)
    channels = output_channels(backbone)
    if num_classes is None:
        built = nn.Sequential(*_to_convolutional(_reorder(own, parts), channels))
    elif head == "linear":
        built = nn.Sequential(_class_layer(channels, num_classes))
    elif head == "rectified":
        built = rectified_head(channels, num_classes)
    elif head == "normalized":
        built = normalized_head(channels, num_classes)
    elif head == "fickle":
        built = nn.Sequential(fickle.build_layer(channels, num_classes))
    else:
        built = _replace_class_layer(list(_to_convolutional(_reorder(own, parts), channels)), num_classes, head)
    return ScoreMapNetwork(backbone, built.to(parameter.device, parameter.dtype)).train(model.training)


def _replace_class_layer(layers: list[nn.Module], num_classes: int, head: HeadName) -> nn.Sequential:
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    classifying = layers[last]
    assert isinstance(classifying, nn.Conv2d)
    if head == "extended":
        extension = [nn.ReLU(inplace=True), _class_layer(classifying.out_channels, num_classes)]
        return nn.Sequential(*layers[: last + 1], *extension)
    # SqueezeNet's rectifier behind the scores goes too: a score must be able to fall below zero.
    return nn.Sequential(*layers[:last], _class_layer(classifying.in_channels, num_classes))


def _family(model: nn.Module, cut: str | None) -> tuple[str, tuple[str, ...]]:
    if cut is not None:
        return cut, ()
    for family, description in _FAMILIES.items():
        if isinstance(model, family):
            return description
    if isinstance(model, _SCORE_MAP_NETWORKS):
        raise ValueError(f"{type(model).__name__} gives score maps already: use it as it is.")
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
        # Convolutions of a library's own kind stay modules too: layers of the network are found among them.
        tracing = {"leaf_modules": [nn.Conv2d]}
        backbone: nn.Module = create_feature_extractor(
            model, {end: "map"}, tracer_kwargs=tracing, suppress_diff_warning=True
        )
    except ValueError as error:
        near = [name for name, _ in model.named_modules() if name and "." not in name]
        raise ValueError(
            f"{end!r} is not a place to cut {type(model).__name__} at; its stages: {', '.join(near)}."
        ) from error
    return backbone


def _reorder(model: nn.Module, parts: tuple[str, ...]) -> Iterator[nn.Module]:
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


def _class_layer(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    init_class_layer(layer)
    return layer

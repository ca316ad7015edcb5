"""Finds the last linear layer of a network and the feature map before it, from which CAM is computed.

Every operation of one forward pass is traced. So no layer is named or hooked, and the linear layer and the pooling
before it may be modules or functions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from dcsm_attr.attribution.model import check_scores

__all__ = ["CamFeatures", "find_cam_features"]


_REMEDY = (
    "CAM needs convolutions, then either global average pooling and one linear layer, or a 1 x 1 convolution to the "
    "classes. dcsm_attr.models.fully_convolutional.fully_convolutional(model) makes such a network of torchvision's "
    "VGG, AlexNet, ConvNeXt and MobileNet v3, and `dcsm-attr train` trains one of any CNN."
)

# After another product the scores no longer come from the traced layer alone, and after a reordering they are no longer
# in the order of its weights.
_PRODUCT_OPS = {
    F.bilinear,
    F.conv1d,
    F.conv3d,
    F.conv_transpose2d,
    Tensor.__matmul__,
    Tensor.matmul,
    Tensor.mm,
    torch.addmm,
    torch.bmm,
    torch.einsum,
    torch.matmul,
    torch.mm,
}
_REORDERING_OPS = {
    Tensor.flip,
    Tensor.gather,
    Tensor.index_select,
    Tensor.roll,
    Tensor.sort,
    torch.flip,
    torch.gather,
    torch.index_select,
    torch.roll,
    torch.sort,
}


@dataclass(frozen=True)
class CamFeatures:
    """The last linear layer of a network, and the feature map before it.

    Attributes:
        logits: ``(N, C)`` or ``(N, C, h, w)``, the scores of the model.
        features: ``(N, D, h, w)``, the map that the layer weights, at each position or after average pooling.
        weights: ``(C, D)``, the weights of the layer, without the bias.
    """

    logits: Tensor
    features: Tensor
    weights: Tensor

    def maps(self, classes: Tensor) -> Tensor:
        r"""Compute the class activation maps :math:`w_c^T f(x, y)` of Zhou et al.

        Args:
            classes: ``(N, K)`` int64; -1 where an image has fewer than K classes.

        Returns:
            ``(N, K, h, w)``, float64 or float32; undefined in unused slots.
        """
        features = self.features.to(torch.promote_types(self.features.dtype, torch.float32))
        chosen = self.weights[classes.clamp(min=0)].to(features.dtype)
        # Under autocast the model may run in lower precision; do not round its maps again.
        with torch.autocast(features.device.type, enabled=False):
            return (chosen @ features.flatten(2)).view(*classes.shape, *features.shape[2:])

    @staticmethod
    def concatenate(parts: "Sequence[CamFeatures]") -> "CamFeatures":
        """Concatenate the results of one model for the parts of a batch."""
        if len(parts) == 1:
            return parts[0]
        return CamFeatures(
            torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]), parts[0].weights
        )


def find_cam_features(
    forward_func: Callable[..., Any], images: tuple[Tensor, ...], arguments: tuple[Any, ...] = ()
) -> CamFeatures:
    """Run the model once, and find its last linear layer and the feature map before it.

    Args:
        forward_func: the model, or a function that calls it; in evaluation mode and without gradients.
        images: batches ``(N, C, H, W)``.
        arguments: passed to the model after the images.

    Returns:
        The layer and the map, not copied.

    Raises:
        TypeError, ValueError: if the output contains no scores, see :func:`dcsm_attr.attribution.model.check_scores`.
        ValueError: if the scores do not come from one linear layer after average pooling, or from one 1 x 1
            convolution.
    """
    with _LinearLayerTracer() as tracer:
        output = forward_func(*images, *arguments)
    scores = check_scores(output, len(images[0]))
    layer = tracer.layer_before(scores)
    if layer is None or len(layer.weights) != scores.shape[1]:
        raise ValueError(
            f"the {scores.shape[1]} scores of the model do not come from a single linear layer or convolution with "
            f"as many outputs, so that CAM is not defined. {_REMEDY}"
        )
    return CamFeatures(scores, layer.features(), layer.weights.flatten(1))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A call of a linear layer or a convolution.

    Attributes:
        given: the input.
        weights: ``(C, D)`` or ``(C, D, k, k)``.
        pointwise: whether it is a 1 x 1 convolution with stride 1, without padding and groups.
        maps: maps from which its input may have been pooled, in the order of the network.
    """

    given: Tensor
    weights: Tensor
    pointwise: bool
    maps: tuple[Tensor, ...]

    def features(self) -> Tensor:
        """Return the map that the layer weights.

        Raises:
            ValueError: if there is none.
        """
        given = self.given
        if given.ndim == 4 and self.weights.ndim == 4:
            if not self.pointwise:
                raise ValueError(
                    f"the scores come from a convolution with weights {tuple(self.weights.shape)} that is not "
                    f"pointwise (1 x 1 with stride 1, no padding and no groups). {_REMEDY}"
                )
            if given.shape[2:].numel() > 1:
                return given
            given = given.flatten(1)
        # Prefer a larger map that was pooled to one position: a map of one position is its own mean.
        for candidate in [x for x in self.maps if x.shape[2:].numel() > 1] or self.maps:
            if _is_mean(given, candidate):
                return candidate
        raise ValueError(
            f"the scores come from a linear layer whose {self.weights.shape[1]} inputs are not the mean over positions "
            f"of a map of as many channels: a flattened map, hidden layers, or other pooling come before it. {_REMEDY}"
        )


def _is_mean(vectors: Tensor, maps: Tensor) -> bool:
    if vectors.shape != maps.shape[:2]:
        return False
    means = maps.to(torch.promote_types(maps.dtype, torch.float32)).mean(dim=(2, 3))
    # The model may have pooled in lower precision.
    tolerance = torch.finfo(vectors.dtype).eps ** 0.5
    # With NaN, accept the map: the scores are checked elsewhere.
    return not bool((means - vectors).abs().amax() > tolerance * means.abs().amax())


class _LinearLayerTracer(TorchFunctionMode):
    """Within this context, records the last linear layer and the last maps that each tensor comes from.

    Records have weak references to the tensors, and keep only those alive that a later tensor needs.
    """

    def __init__(self) -> None:
        super().__init__()
        # None: the tensor comes from several layers.
        self._layers: Any = WeakTensorKeyDictionary()
        self._maps: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and record where its output comes from."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        outputs = list(_tensors(output))
        if outputs:
            self._trace(func, args, kwargs, outputs)
        return output

    def layer_before(self, tensor: Tensor) -> _Layer | None:
        """Return the last layer before a tensor; None if there is none, or there are several in parallel."""
        layer: _Layer | None = self._layers.get(tensor)
        return layer

    def _trace(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Tensor]
    ) -> None:
        given = list(_tensors((args, kwargs)))
        if not given:
            return
        maps = self._maps_before(given[0])
        layers: set[_Layer | None]
        if func is F.linear or func is F.conv2d:
            layers = {_layer(*args, **kwargs, maps=maps)}
            if given[0].shape[2:].numel() > 1:
                maps = ()
        elif (
            func in _PRODUCT_OPS or func in _REORDERING_OPS or (func is Tensor.__getitem__ and _is_reordering(args[1]))
        ):
            layers = {None}
        else:
            layers = {self._layers[x] for x in given if x in self._layers}
        for tensor in outputs:
            if layers:
                self._layers[tensor] = next(iter(layers)) if len(layers) == 1 else None
            if tensor.ndim != 4 or tensor.shape[2:].numel() == 1:
                # Not the tensor itself, which would never be freed.
                self._maps[tensor] = tuple(x for x in maps if x is not tensor)

    def _maps_before(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the maps that a tensor may have been pooled from, in the order of the network, itself included."""
        before: tuple[Tensor, ...] = self._maps.get(tensor, ())
        return (*before, tensor) if tensor.ndim == 4 else before


def _layer(
    input: Tensor,  # noqa: A002 - PyTorch's name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    maps: tuple[Tensor, ...],
) -> _Layer:
    one_by_one = weight.shape[2:].numel() == 1 and groups == 1
    unpadded = padding in ("same", "valid") or _each(padding) == {0}
    return _Layer(input, weight, one_by_one and unpadded and _each(stride) == {1}, maps)


def _is_reordering(index: Any) -> bool:
    return any(isinstance(entry, (Tensor, list)) for entry in (index if isinstance(index, tuple) else (index,)))


def _each(setting: Any) -> set[int]:
    return set(setting) if isinstance(setting, (tuple, list)) else {setting}


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in arguments or results, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)

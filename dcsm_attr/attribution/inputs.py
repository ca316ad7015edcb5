"""The images that attribution methods accept: checked, resized, and explained in parts of a batch."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from captum._utils.common import _format_additional_forward_args
from torch import Tensor

from dcsm_attr.attribution.candidates import Request, SelectClasses
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.model import prepared_model

__all__ = [
    "AutoMemoryFormat",
    "batch_slices",
    "channels_last",
    "check_batch_size",
    "check_differentiable",
    "check_images",
    "check_scales",
    "default_batch_size",
    "explain_in_batches",
    "resize_images",
    "slice_forward_args",
    "sort_by_distance_to_one",
]


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Check the ratios of the sides.

    Raises:
        ValueError: if there is none, or one is not positive or far too large.
    """
    scales = tuple(scales)
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise ValueError(f"scales must be ratios to the input size, above 0 and at most 8; got {scales}.")
    return scales


def sort_by_distance_to_one(scales: Sequence[float]) -> list[float]:
    """The scale nearest to 1 comes first: there the classes are chosen."""
    return sorted(scales, key=lambda ratio: abs(ratio - 1))


_Result = TypeVar("_Result")


def channels_last(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same batches, channels last in memory, on the CPU; as they are on other devices.

    Convolutions hand the order on from layer to layer. On two CPU cores it takes 0.8 to 0.9 of the time for VGG,
    ResNet, SqueezeNet and DenseNet, and the same for MobileNet and EfficientNet. Values are those of the other order up
    to rounding.
    """
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x for x in images)


class AutoMemoryFormat:
    """Gives a model its images channels last, until it turns out that it cannot take them."""

    def __init__(self) -> None:
        self._channels_last_supported = True

    def run(self, forward: Callable[[tuple[Tensor, ...]], _Result], images: tuple[Tensor, ...]) -> _Result:
        """Call ``forward`` with the images, channels last where that works."""
        if self._channels_last_supported:
            try:
                return forward(channels_last(images))
            except RuntimeError as error:
                if not _is_channels_last_error(error):
                    raise
                self._channels_last_supported = False
        return forward(images)


def _is_channels_last_error(error: RuntimeError) -> bool:
    """Whether a model failed because it views its tensors as if their order in memory were the usual one."""
    return "view size is not compatible" in str(error)


_DEFAULT_BATCH_PIXELS = 2**19


def check_images(inputs: Any) -> tuple[Tensor, ...]:
    """Check a batch of images, or a tuple of batches for a model with several image inputs.

    Args:
        inputs: ``(N, C, H, W)``, floating point, finite, normalized as the model expects; or a tuple of such tensors
            with equal N, H and W.

    Returns:
        The tensors as a tuple.

    Raises:
        TypeError: if it is no tensor, or its values are not floating point.
        ValueError: if the rank is wrong, the batch is empty, batches differ in size, or a value is NaN or infinite.
    """
    images = inputs if isinstance(inputs, tuple) else (inputs,)
    if not images:
        raise ValueError("inputs is an empty tuple: at least one (N, C, H, W) batch of images is needed.")
    for x in images:
        _check_batch(x)
    first = images[0]
    for x in images[1:]:
        if x.shape[0] != first.shape[0] or x.shape[2:] != first.shape[2:]:
            raise ValueError(
                "all inputs must have the same N, H and W, since one map answers for all of them; got "
                f"{tuple(first.shape)} and {tuple(x.shape)}. Pass what is not an image in additional_forward_args."
            )
    return images


def _check_batch(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"inputs must be a tensor (N, C, H, W) or a tuple of such tensors, got {type(x).__name__}.")
    if x.ndim != 4:
        hint = " Add the batch dimension: x[None]." if x.ndim == 3 else ""
        raise ValueError(f"inputs must have shape (N, C, H, W), got {tuple(x.shape)}.{hint}")
    if 0 in x.shape:
        raise ValueError(f"inputs is an empty batch: got shape {tuple(x.shape)}.")
    if not x.is_floating_point():
        hint = (
            " Convert the pixels and normalize them as the model expects, e.g. torchvision.transforms.v2.functional."
            "to_dtype(x, torch.float32, scale=True) followed by normalize."
            if x.dtype == torch.uint8
            else " Convert with x.float()."
        )
        raise TypeError(f"inputs must be floating point, got {x.dtype}.{hint}")
    if not torch.isfinite(x).all():
        raise ValueError("inputs must be finite: it holds NaN or infinite values.")


def check_differentiable(images: tuple[Tensor, ...]) -> None:
    """Check that gradients can be taken.

    Raises:
        RuntimeError: under inference mode, or if a tensor was made there.
    """
    if torch.is_inference_mode_enabled() or any(x.is_inference() for x in images):
        raise RuntimeError(
            "gradients cannot be taken under torch.inference_mode, nor of tensors made there. Call outside of it, with "
            "inputs.clone() made outside; torch.no_grad is fine."
        )


def resize_images(images: tuple[Tensor, ...], scale: float, mode: Literal["bilinear", "bicubic"]) -> tuple[Tensor, ...]:
    """Resize all batches to ``round(scale * size)``, at least one pixel, antialiased where they shrink.

    Args:
        images: batches ``(N, C, H, W)``.
        scale: ratio of the sides.
        mode: ``"bicubic"`` is MATLAB's ``imresize``.

    Returns:
        The batches at the new size; unchanged where the size stays.
    """
    height, width = (max(1, round(scale * side)) for side in images[0].shape[2:])
    if (height, width) == tuple(images[0].shape[2:]):
        return images
    # The antialiased kernels exist for float32 and float64 only. For enlarging, the flag selects MATLAB's cubic (a =
    # -0.5).
    return tuple(
        F.interpolate(x if x.dtype == torch.float64 else x.float(), (height, width), mode=mode, antialias=True).to(
            x.dtype
        )
        for x in images
    )


def default_batch_size(images: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> int | None:
    """How many images are best computed together, where nobody says.

    Args:
        images: batches ``(N, C, H, W)``.
        arguments: additional forward arguments; where there are some, a part of the batch might not fit to them.

    Returns:
        On the CPU as many as have half a million pixels: layers of larger batches do not fit into memory that the
        allocator keeps, and fresh memory costs more than the arithmetic (16 images of 320 x 320 through SqueezeNet:
        0.6 of the time). None, which is all, on other devices and with arguments.
    """
    if images[0].device.type != "cpu" or arguments:
        return None
    return max(1, _DEFAULT_BATCH_PIXELS // (images[0].shape[2] * images[0].shape[3]))


def check_batch_size(internal_batch_size: int | None) -> None:
    """Check how many images a forward pass may take.

    Raises:
        ValueError: if it is none.
    """
    if internal_batch_size is not None and internal_batch_size < 1:
        raise ValueError(f"internal_batch_size must be at least 1, got {internal_batch_size}.")


def batch_slices(images: int, max_images: int | None) -> list[slice]:
    """Divide a batch of ``images`` into slices of at most ``max_images``; None: one slice."""
    step = images if max_images is None else max_images
    return [slice(start, start + step) for start in range(0, images, step)]


def slice_forward_args(arguments: tuple[Any, ...], part: slice | Tensor, images: int) -> tuple[Any, ...]:
    """Take the part of the additional forward arguments that belongs to a part of the batch.

    Args:
        arguments: tensors with one row an image are sliced, everything else is passed on whole, as Captum does.
        part: the slice, or the numbers of the images ``(n,)``.
        images: N of the whole batch.
    """
    return tuple(a[part] if isinstance(a, Tensor) and a.ndim > 0 and len(a) == images else a for a in arguments)


def explain_in_batches(
    forward_func: Callable[..., Any],
    inputs: Any,
    additional_forward_args: Any,
    request: Request,
    batch_size: int | None,
    explain: Callable[[tuple[Tensor, ...], tuple[Any, ...], SelectClasses], ClassMaps],
) -> ClassMaps:
    """Explain the parts of a batch one after the other, with the model prepared, and concatenate the results.

    Args:
        forward_func: the model.
        inputs: as the user gave them, see :func:`check_images`.
        additional_forward_args: as the user gave them.
        request: the classes that the user asked for.
        batch_size: at most this many images per part. None: see :func:`default_batch_size`.
        explain: computes the class maps of a part from its images, its forward arguments, and a function that resolves
            the request for the part when the shape of the model's output is known.

    Returns:
        The maps of all images.
    """
    images, forward_args = check_images(inputs), _format_additional_forward_args(additional_forward_args) or ()
    count, device = len(images[0]), images[0].device

    def select(part: slice) -> SelectClasses:
        return lambda output_shape: request.resolve(count, output_shape)[part].to(device)

    with prepared_model(forward_func, device):
        parts = [
            explain(tuple(x[part] for x in images), slice_forward_args(forward_args, part, count), select(part))
            for part in batch_slices(count, batch_size or default_batch_size(images, forward_args))
        ]
    return ClassMaps.concatenate(parts)

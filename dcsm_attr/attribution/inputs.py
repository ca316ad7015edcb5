"""Checks, resizes and splits the inputs of the attribution methods."""

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
    """Check the scales, which are relative to the input size.

    Raises:
        ValueError: if ``scales`` is empty, or a scale is not positive or above 8.
    """
    scales = tuple(scales)
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise ValueError(f"scales must be ratios to the input size, above 0 and at most 8; got {scales}.")
    return scales


def sort_by_distance_to_one(scales: Sequence[float]) -> list[float]:
    """Sort the scales so that the nearest to 1, at which the candidates are chosen, comes first."""
    return sorted(scales, key=lambda ratio: abs(ratio - 1))


_Result = TypeVar("_Result")


def channels_last(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert batches on the CPU to the channels-last memory format; return others unchanged.

    Convolutions preserve the memory format of their input. On two CPU cores the format reduces the time to 0.8 to 0.9
    for VGG, ResNet, SqueezeNet and DenseNet, and does not change it for MobileNet and EfficientNet. Values are equal up
    to rounding.
    """
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x for x in images)


class AutoMemoryFormat:
    """Runs a model in the channels-last memory format, unless the model does not support it."""

    def __init__(self) -> None:
        self._channels_last_supported = True

    def run(self, forward: Callable[[tuple[Tensor, ...]], _Result], images: tuple[Tensor, ...]) -> _Result:
        """Call ``forward`` with the images in channels-last format, or unchanged if that fails."""
        if self._channels_last_supported:
            try:
                return forward(channels_last(images))
            except RuntimeError as error:
                if not _is_channels_last_error(error):
                    raise
                self._channels_last_supported = False
        return forward(images)


def _is_channels_last_error(error: RuntimeError) -> bool:
    """Whether a model failed because it calls ``view`` on a tensor that is not contiguous."""
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
        TypeError: if an input is not a tensor, or is not floating point.
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
                "all inputs must have the same N, H and W, because they share one map; got "
                f"{tuple(first.shape)} and {tuple(x.shape)}. Pass other inputs in additional_forward_args."
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
        raise ValueError("inputs must be finite, but contain NaN or infinite values.")


def check_differentiable(images: tuple[Tensor, ...]) -> None:
    """Check that gradients can be computed.

    Raises:
        RuntimeError: under inference mode, or if a tensor was created under it.
    """
    if torch.is_inference_mode_enabled() or any(x.is_inference() for x in images):
        raise RuntimeError(
            "gradients cannot be computed under torch.inference_mode, nor for tensors created under it. Call outside "
            "of it, with inputs.clone() made outside; torch.no_grad is fine."
        )


def resize_images(images: tuple[Tensor, ...], scale: float, mode: Literal["bilinear", "bicubic"]) -> tuple[Tensor, ...]:
    """Resize all batches to ``round(scale * size)``, at least one pixel, with antialiasing when shrinking.

    Args:
        images: batches ``(N, C, H, W)``.
        scale: size relative to the input size.
        mode: ``"bicubic"`` is MATLAB's ``imresize``.

    Returns:
        The batches at the new size; unchanged if the size is the same.
    """
    height, width = (max(1, round(scale * side)) for side in images[0].shape[2:])
    if (height, width) == tuple(images[0].shape[2:]):
        return images
    # The antialiased kernels support float32 and float64 only. When enlarging, the flag selects MATLAB's cubic
    # (a = -0.5).
    return tuple(
        F.interpolate(x if x.dtype == torch.float64 else x.float(), (height, width), mode=mode, antialias=True).to(
            x.dtype
        )
        for x in images
    )


def default_batch_size(images: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> int | None:
    """Return the number of images per forward pass if the user does not set it.

    Args:
        images: batches ``(N, C, H, W)``.
        arguments: additional forward arguments, which might not match a part of the batch.

    Returns:
        On the CPU, images with half a million pixels in total: the activations of larger batches do not fit into memory
        that the allocator reuses, and new memory costs more than the arithmetic (16 images of 320 x 320 with
        SqueezeNet take 0.6 of the time). None, the whole batch, on other devices and with arguments.
    """
    if images[0].device.type != "cpu" or arguments:
        return None
    return max(1, _DEFAULT_BATCH_PIXELS // (images[0].shape[2] * images[0].shape[3]))


def batch_slices(images: int, max_images: int | None) -> list[slice]:
    """Split a batch of ``images`` images into slices of at most ``max_images``; None: one slice."""
    step = images if max_images is None else max_images
    return [slice(start, start + step) for start in range(0, images, step)]


def slice_forward_args(arguments: tuple[Any, ...], part: slice | Tensor, images: int) -> tuple[Any, ...]:
    """Slice the additional forward arguments for a part of the batch.

    Args:
        arguments: tensors with one row per image are sliced, all others are passed unchanged, as in Captum.
        part: a slice, or the indices of the images ``(n,)``.
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
    gradients: bool = True,
) -> ClassMaps:
    """Compute the class maps of a batch in parts, with the model prepared, and concatenate the results.

    Args:
        forward_func: the model.
        inputs: the inputs of the user, see :func:`check_images`.
        additional_forward_args: the arguments of the user.
        request: the requested classes.
        batch_size: maximum number of images per part. None: see :func:`default_batch_size`.
        explain: computes the class maps of a part from its images, its forward arguments, and a function that returns
            the selection of classes for the shape of the model's output.
        gradients: whether ``explain`` computes gradients.

    Returns:
        The maps of all images.
    """
    images, forward_args = check_images(inputs), _format_additional_forward_args(additional_forward_args) or ()
    if gradients:
        check_differentiable(images)
    count, device = len(images[0]), images[0].device

    def select(part: slice) -> SelectClasses:
        return lambda output_shape: request.resolve(count, output_shape)[part].to(device)

    with prepared_model(forward_func, device):
        parts = [
            explain(tuple(x[part] for x in images), slice_forward_args(forward_args, part, count), select(part))
            for part in batch_slices(count, batch_size or default_batch_size(images, forward_args))
        ]
    return ClassMaps.concatenate(parts)

"""Which models can be explained, and what to say about the others."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dcsm_attr.attribution.gradients import Recording
from dcsm_attr.attribution.notices import warn_caller
from dcsm_attr.backbones.attention import attention_of
from dcsm_attr.guest import unwrapped

__all__ = ["check_guidance", "checked_model", "explained_failures"]


def checked_model(forward_func: Callable[..., Any], guided: bool) -> Callable[..., Any]:
    """Refuse what cannot be explained, and take off the wrappers that hide a model.

    Args:
        forward_func: the model, or a function that calls it.
        guided: whether rectifiers are to be guided.

    Returns:
        The function or the innermost module.

    Raises:
        TypeError: if it cannot be called, or is a ``DataParallel``, TorchScript or detection model.
        ValueError: if it is a transformer and the guided rule was asked for.
    """
    if isinstance(forward_func, nn.DataParallel):
        raise TypeError(
            "DataParallel runs the model in threads that neither hooks nor the guided rule follow. Pass the module "
            "that it wraps (model.module) and split large batches with internal_batch_size."
        )
    if isinstance(forward_func, torch.jit.ScriptModule):
        raise TypeError("TorchScript hides its layers and rectifiers from Python. Pass the nn.Module it was made from.")
    if not callable(forward_func):
        raise TypeError(f"forward_func must be a module or a function, got {type(forward_func).__name__}.")
    if not isinstance(forward_func, nn.Module):
        # Where torch.compile keeps the function that it was given.
        original: Callable[..., Any] = getattr(forward_func, "_torchdynamo_orig_callable", forward_func)
        return original
    model = unwrapped(forward_func)
    if any(isinstance(m, GeneralizedRCNNTransform) for m in model.modules()):
        raise TypeError(
            f"{type(model).__name__} is a detection model: it returns boxes of single objects, not scores of classes "
            "for the whole image. Use a classifier or a segmentation model; or explain a module of your own that "
            "returns scores (N, C) from its backbone."
        )
    attention = attention_of(model)
    if guided and attention is not None:
        raise ValueError(
            f"{type(model).__name__} is a transformer: its class evidence travels through attention ({attention}), not "
            "through rectifiers, so that guided backpropagation has no meaning. Use a CNN; or take plain gradients at "
            "layers that you name, with guided=False."
        )
    return model


def check_guidance(recording: Recording) -> None:
    """Say so where the guided rule had nothing to act on.

    Raises:
        ValueError: if the model has no rectifier at all.
    """
    if recording.rectifiers_seen == 0:
        raise ValueError(
            "the model has no rectifier (ReLU or a relative of it), so that guided backpropagation would silently be "
            "plain backpropagation. Pass guided=False if that is what you want."
        )
    if recording.rectifiers_guided == 0:
        warn_caller(
            "no rectifier lies between the chosen layers and the class scores: nothing was guided, and the result "
            "equals guided=False. Choose earlier layers."
        )


@contextmanager
def explained_failures(model: Any, resized: Tensor, images: Tensor) -> Iterator[None]:
    """Say what a failed forward pass was about, where the number of channels or the scale is the reason.

    Args:
        model: the model.
        resized: the images that it is given.
        images: the images at their own size.

    Raises:
        ValueError, RuntimeError: the clearer error, from the model's own.
    """
    try:
        yield
    except RuntimeError as error:
        explained = _explained(error, model, resized, images)
        if explained is error:
            raise
        raise explained from error


def _explained(error: RuntimeError, model: Any, resized: Tensor, images: Tensor) -> Exception:
    if isinstance(error, torch.OutOfMemoryError):
        return error
    channels = _first_convolution_channels(model)
    if channels is not None and channels != images.shape[1] and "channels" in str(error):
        return ValueError(
            f"inputs have {images.shape[1]} channels, but the model's first convolution takes {channels}: got shape "
            f"{tuple(images.shape)}."
        )
    if resized.shape != images.shape:
        return RuntimeError(
            f"the model failed on the images at another scale, {tuple(resized.shape)} from {tuple(images.shape)}. If "
            "it takes one size only, pass scales=(1.0,); if it is too deep for small images, leave out the scales "
            "below 1; if it takes multiples of 32 only, images of 160, 320 or 480 pixels stay that at the default "
            "scales."
        )
    return error


def _first_convolution_channels(model: Any) -> int | None:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), None)

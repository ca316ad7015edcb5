"""Checks the user's model, prepares it for a call and restores it, and finds the scores in its output."""

import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dcsm_attr.attribution.guided import unguided_rectifiers

__all__ = [
    "POOLINGS",
    "PoolingName",
    "check_model",
    "check_scores",
    "deferred_signals",
    "explain_forward_errors",
    "find_attention",
    "find_scores",
    "fork_rng",
    "pool_score_maps",
    "prepared_model",
    "raise_deferred_signals",
    "unwrap_model",
    "warn_caller",
]

# Only one call runs at a time, because calls change flags of modules and PyTorch's random state. Re-entrant, because a
# hook or a model of the user may explain another model.
_turn = threading.RLock()


def _renew_lock() -> None:
    global _turn
    _turn = threading.RLock()


# A fork waits for a call that runs in another thread, so that the models are restored in the child.
os.register_at_fork(before=lambda: _turn.acquire(), after_in_parent=lambda: _turn.release(), after_in_child=_renew_lock)


@contextmanager
def prepared_model(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """Prepare a model for attribution, and restore everything at the end, also after an exception or an interrupt.

    Within this context every submodule is in evaluation mode (a map describes the network as it is used) and runs the
    Python code that it was compiled from (compiled code knows neither hooks nor function modes), gradients are off, and
    no guided rule of an outer call acts. At the end training flags, compiled code, buffers, and the random state of the
    CPU and of ``device`` are what they were. Calls of several threads take turns; calls may be nested.

    Args:
        forward_func: the model, or a function that calls it, whose modules are not known.
        device: the device of the inputs.
    """
    modules = list(forward_func.modules()) if isinstance(forward_func, nn.Module) else []
    with _turn, deferred_signals(), fork_rng(device), torch.no_grad(), unguided_rectifiers():
        training = [module for module in modules if module.training]
        compiled = list(_compiled_code(modules))
        buffers = [(module, *item, _copy(item[1])) for module in modules for item in module._buffers.items()]
        try:
            for module in training:
                module.training = False
            for module, name, _ in compiled:
                vars(module)[name] = module._modules.get("_orig_mod")
            yield
        finally:
            for module in training:
                module.training = True
            for module, name, code in compiled:
                vars(module)[name] = code
            for module, name, buffer, copy in buffers:
                if buffer is not None and copy is not None and not torch.equal(buffer, copy):
                    buffer.resize_(copy.shape).copy_(copy)
                module._buffers[name] = buffer


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Restore PyTorch's random state of the CPU, and of ``device`` where it has its own, at the end of the context."""
    if device.type in ("cuda", "xpu"):
        return torch.random.fork_rng([device], device_type=device.type)
    return torch.random.fork_rng([])


def _compiled_code(modules: list[nn.Module]) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield each compiled module, the name of the attribute that holds its compiled code, and the code."""
    for module in modules:
        name = "forward" if "_orig_mod" in module._modules else "_compiled_call_impl"
        if vars(module).get(name) is not None:
            yield module, name, vars(module)[name]


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None or buffer.is_meta else buffer.detach().clone()


# Signals that arrived within deferred_signals and are not handled yet: handler, interrupted frame, time of arrival.
_arrived: dict[int, tuple[Callable[[int, FrameType | None], Any], FrameType | None, float]] = {}
# A signal that is repeated after this many seconds is handled at once.
_PATIENCE = 3.0


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Delay the handlers of signals, so that an interrupt (Ctrl-C) never falls between a change and its restoration.

    Handlers run at the next :func:`raise_deferred_signals`, which the methods call after each forward and backward
    pass, or at the end. If the same signal arrives again after three seconds, it is handled at once, so that a model
    that hangs can be interrupted. Python runs handlers in the main thread only; in others nothing is delayed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in signal.valid_signals() if callable(handler := signal.getsignal(number))}

    def defer(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        _, _, first = _arrived.setdefault(number, (handlers[signal.Signals(number)], frame, now))
        if now - first > _PATIENCE:
            raise_deferred_signals()

    try:
        for number in handlers:
            signal.signal(number, defer)
        yield
    finally:
        try:
            _install(handlers)
        finally:
            _install(handlers)  # A further signal may have ended the first attempt.
            raise_deferred_signals()


def _install(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raise_deferred_signals() -> None:
    """Run the handlers of the deferred signals; the handler of Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is threading.main_thread():
        while _arrived:
            number, (handler, frame, _) = _arrived.popitem()
            handler(number, frame)


def check_model(forward_func: Callable[..., Any], guided: bool) -> Callable[..., Any]:
    """Check that a model can be explained, and remove its wrappers.

    Args:
        forward_func: the model, or a function that calls it.
        guided: whether guided backpropagation is used.

    Returns:
        The function or the innermost module.

    Raises:
        TypeError: if it is not callable, or is a ``DataParallel``, TorchScript or detection model.
        ValueError: if a lazy parameter has no shape yet; or if it is a transformer and ``guided`` is True.
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
        # torch.compile stores the original function here.
        original: Callable[..., Any] = getattr(forward_func, "_torchdynamo_orig_callable", forward_func)
        return original
    model = unwrap_model(forward_func)
    if any(isinstance(m, GeneralizedRCNNTransform) for m in model.modules()):
        raise TypeError(
            f"{type(model).__name__} is a detection model: it returns boxes of single objects, not scores of classes "
            "for the whole image. Use a classifier or a segmentation model; or explain a module of your own that "
            "returns scores (N, C) from its backbone."
        )
    lazy = [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"{type(model).__name__} is lazy: its parameter {lazy[0]!r} has no shape yet, and gets it from the first "
            "input. Run the model once on a batch of its own before you explain it."
        )
    attention = find_attention(model)
    if guided and attention is not None:
        raise ValueError(
            f"{type(model).__name__} is a transformer: its class evidence travels through attention ({attention}), not "
            "through rectifiers, so that guided backpropagation has no meaning. Use a CNN; or take plain gradients at "
            "layers that you name, with guided=False."
        )
    return model


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside wrappers of compilation or distributed training; the wrappers are not changed.

    A compiled module runs code that ignores hooks and function modes, and
    :class:`~torch.nn.parallel.DistributedDataParallel` prepares a gradient reduction at each forward.

    Args:
        model: any module.

    Returns:
        The innermost module, whose parameters are those of ``model``.
    """
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


# Class names of attention modules, including those of torchvision and timm.
_ATTENTION = {
    "Attention",
    "Attention2d",
    "AttentionCl",
    "AttentionRope",
    "EvaAttention",
    "MultiheadAttention",
    "RelativePositionalMultiHeadAttention",
    "ShiftedWindowAttention",
    "ShiftedWindowAttentionV2",
    "WindowAttention",
    "WindowMultiHeadAttention",
}


def find_attention(model: nn.Module) -> str | None:
    """Return the class name of the first attention layer of a transformer; None for a CNN."""
    return next((type(m).__name__ for m in model.modules() if type(m).__name__ in _ATTENTION), None)


@contextmanager
def explain_forward_errors(model: Any, resized: Tensor, images: Tensor) -> Iterator[None]:
    """Raise a clearer error if a forward pass fails because of the number of channels or the scale.

    Args:
        model: the model.
        resized: the images at the size of the forward pass.
        images: the images at their original size.

    Raises:
        ValueError, RuntimeError: the clearer error, caused by the error of the model.
    """
    try:
        yield
    except RuntimeError as error:
        explained = _explain_error(error, model, resized, images)
        if explained is error:
            raise
        raise explained from error


def _explain_error(error: RuntimeError, model: Any, resized: Tensor, images: Tensor) -> Exception:
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


_INTERNAL_PREFIXES = ("dcsm_attr.", "captum.")


def warn_caller(message: str) -> None:
    """Warn with the stack level of the first frame outside of this package and of Captum."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_INTERNAL_PREFIXES):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


# Names used by torchvision's segmentation models, and by GoogLeNet and Inception with auxiliary heads.
_NAMES = ("out", "logits")


def find_scores(output: Any) -> Tensor:
    """Find the scores in the output of a model; auxiliary heads are ignored.

    Args:
        output: a tensor; or a mapping or named tuple with a tensor ``out`` (torchvision's segmentation models) or
            ``logits`` (its GoogLeNet and Inception with auxiliary heads).

    Returns:
        The tensor, of any shape.

    Raises:
        TypeError: if no tensor of scores is found.
    """
    if isinstance(output, Tensor):
        return output
    for name in _NAMES:
        scores = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(scores, Tensor):
            return scores
    raise TypeError(
        "the model must return a tensor of scores, (N, C) or (N, C, h, w), or hold one under 'out' or 'logits'; it "
        f"returned {_summarize(output)}. Wrap it in a module that picks the scores, whose forward is e.g. return "
        "self.model(x)['name'] or self.model(x)[0]."
    )


def check_scores(output: Any, images: int) -> Tensor:
    """Find the scores in the output of a model, and check their shape.

    Args:
        output: as in :func:`find_scores`.
        images: N, the number of input images.

    Returns:
        ``(N, C)`` or ``(N, C, h, w)``.

    Raises:
        TypeError: see :func:`find_scores`.
        ValueError: if the scores have another shape.
    """
    scores = find_scores(output)
    if scores.ndim not in (2, 4) or scores.shape[0] != images or scores.shape[1] == 0:
        raise ValueError(
            f"the model must return scores of shape (N, C) or (N, C, h, w) with N = {images}; it returned "
            f"{tuple(scores.shape)}."
        )
    return scores


def _summarize(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(repr, output)) or 'nothing'}"
    return f"{kind} of {len(output)}" if isinstance(output, (tuple, list)) else kind


PoolingName = Literal["max", "average", "logsumexp"]
POOLINGS: tuple[PoolingName, ...] = get_args(PoolingName)

# Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks", CVPR 2015.
_SHARPNESS = 5.0


def pool_score_maps(score_maps: Tensor, pooling: PoolingName = "max") -> Tensor:
    r"""Pool each score map over its positions.

    Args:
        score_maps: ``(N, C, h, w)`` logits.
        pooling: ``"max"``: the global maximum, as in DCSM (section 3.2); its gradient reaches one position.
            ``"average"``: the mean. ``"logsumexp"``: between the two,
            :math:`\frac{1}{r} \log \frac{1}{hw} \sum_{x,y} \exp(r s_{x,y})` with r = 5.

    Returns:
        ``(N, C)``.

    Raises:
        ValueError: if the pooling is unknown, or the maps are empty or have another rank.
    """
    if score_maps.ndim != 4 or 0 in score_maps.shape:
        raise ValueError(f"score maps must have shape (N, C, h, w), none of them 0; got {tuple(score_maps.shape)}.")
    if pooling == "max":
        return score_maps.amax(dim=(2, 3))
    if pooling == "average":
        return score_maps.mean(dim=(2, 3))
    if pooling == "logsumexp":
        positions = score_maps.shape[2] * score_maps.shape[3]
        summed = torch.logsumexp(_SHARPNESS * score_maps, dim=(2, 3))
        return (summed - math.log(positions)) / _SHARPNESS
    raise ValueError(f"pooling must be 'max', 'average' or 'logsumexp', got {pooling!r}.")

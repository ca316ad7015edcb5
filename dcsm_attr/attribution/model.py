"""The user's model is a guest: whatever a call needs to change about it is changed back, also after an exception.

The surroundings in which every method runs the user's model.

Warnings that point at the line of the user's own code.

Transformers, which look like CNNs from outside.

The scores in what a model returns.

From score maps to one logit per class: global pooling over positions.

Which models can be explained, and what to say about the others.
"""

import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from dcsm_attr.attribution.guided import unguided_rectifiers

if TYPE_CHECKING:
    from dcsm_attr.attribution.gradients import ForwardPass

__all__ = [
    "POOLINGS",
    "PoolingName",
    "check_guided_rectifiers",
    "check_model",
    "check_scores",
    "evaluation_mode",
    "explain_forward_errors",
    "find_attention",
    "find_scores",
    "pool_score_maps",
    "prepared_model",
    "preserve_rng_state",
    "uncompiled",
    "unwrap_model",
    "warn_caller",
]


_lock = threading.Lock()
# How many running calls hold a module in evaluation mode. Without the count, two threads on one model in training mode
# would each remember the other's change as the user's setting.
_held: dict[int, int] = {}
# The same for modules that run uncompiled, with their compiled code.
_uncompiled_modules: dict[int, tuple[int, Any]] = {}
_COMPILED_IN_PLACE = "_compiled_call_impl"

_SavedState = tuple[Callable[[Tensor], None], Tensor]


@dataclass(eq=False)
class _Call:
    """A running call in which random numbers may be drawn, and what its end gives back: a setter and a state each."""

    thread: int
    found: dict[torch.device, _SavedState]


# All of them, the first to begin first. Without knowing the others, two that overlap in time would each take what the
# other one drew for the user's.
_calls: list[_Call] = []


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Hold every submodule of ``model`` in evaluation mode, and restore each one's own ``training`` flag afterwards.

    A class map describes the network as it would be used: with dropout or batch statistics it would be random, would
    depend on the other images of the batch, and would change the running statistics of the model.

    Args:
        model: any module; submodules may have different flags.
    """
    with _lock:
        held = [module for module in model.modules() if module.training or id(module) in _held]
        for module in held:
            _held[id(module)] = _held.get(id(module), 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in held:
                _held[id(module)] -= 1
                if not _held[id(module)]:
                    del _held[id(module)]
                    module.training = True


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run every part of ``model`` that was compiled as the Python that it was compiled from, and give it back after.

    In compiled code there are neither hooks nor function modes: what they would change would be silently left out, or
    compiled with them into code that stays.

    Args:
        model: any module, of which parts were compiled in place (``part.compile()``) or by ``torch.compile(part)``.
    """
    held = []
    with _lock:
        for module in model.modules():
            original = module._modules.get("_orig_mod")
            name = _COMPILED_IN_PLACE if original is None else "forward"
            calls, compiled = _uncompiled_modules.get(id(module), (0, vars(module).get(name)))
            if compiled is not None:
                _uncompiled_modules[id(module)] = calls + 1, compiled
                vars(module)[name] = original
                held.append((module, name))
    try:
        yield
    finally:
        with _lock:
            for module, name in held:
                calls, compiled = _uncompiled_modules.pop(id(module))
                if calls > 1:
                    _uncompiled_modules[id(module)] = calls - 1, compiled
                else:
                    vars(module)[name] = compiled


@contextmanager
def preserve_rng_state(device: torch.device) -> Iterator[None]:
    """Give PyTorch's random generators of the CPU and of ``device`` back as they were found.

    They belong to the whole process. Where calls in several threads overlap, the last one to end gives back what the
    first one found; another thread that draws from them meanwhile may get the same numbers again.

    Args:
        device: where the model runs; any accelerator of which PyTorch knows a random state.
    """
    module = None if device.type == "cpu" else getattr(torch, device.type, None)
    accelerator = module if hasattr(module, "get_rng_state") else None
    with _lock:
        found: dict[torch.device, _SavedState] = {torch.device("cpu"): (torch.set_rng_state, torch.get_rng_state())}
        if accelerator:
            found[device] = (partial(accelerator.set_rng_state, device=device), accelerator.get_rng_state(device))
        call = _Call(threading.get_ident(), found)
        _calls.append(call)
    try:
        yield
    finally:
        with _lock:
            place = _calls.index(call)
            del _calls[place]
            # A call around this one, in the same thread, goes on with the state that this one found.
            next_call = next((other for other in _calls if other.thread != call.thread), None)
            if next_call is None:
                for set_state, state in call.found.values():
                    set_state(state)
            elif next_call in _calls[place:]:
                # It began later, and may have found what this one had drawn.
                next_call.found |= call.found
            else:
                next_call.found = call.found | next_call.found


def unwrap_model(model: nn.Module) -> nn.Module:
    """Find the module that a compilation or a distributed wrapper holds; the wrapper itself is left alone.

    A compiled module runs code in which hooks and function modes no longer exist, and
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


@contextmanager
def prepared_model(forward_func: Callable[..., Any], device: torch.device) -> Iterator[None]:
    """The model in evaluation mode, uncompiled, without gradients; it and the random state as before afterwards.

    Args:
        forward_func: the model, or a function that calls it, whose modules are not known.
        device: where it runs.
    """
    with ExitStack() as stack:
        if isinstance(forward_func, nn.Module):
            stack.enter_context(evaluation_mode(forward_func))
            stack.enter_context(uncompiled(forward_func))
        stack.enter_context(preserve_rng_state(device))
        stack.enter_context(torch.no_grad())
        # The call may stand in a hook or a forward pass that somebody else explains.
        stack.enter_context(unguided_rectifiers())
        yield


_INTERNAL_PREFIXES = ("dcsm_attr.", "captum.")


def warn_caller(message: str) -> None:
    """Warn, with the first frame outside of this package and of Captum's wrappers as the origin."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_INTERNAL_PREFIXES):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


# Modules through which class evidence travels by attention, by class name: torchvision's and timm's among them.
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
    """The class name of the first attention layer of a transformer; None for a CNN."""
    return next((type(m).__name__ for m in model.modules() if type(m).__name__ in _ATTENTION), None)


# torchvision's segmentation models, its GoogLeNet and Inception with auxiliary heads, and others after them.
_NAMES = ("out", "logits")


def find_scores(output: Any) -> Tensor:
    """Find the scores in what a model returns; auxiliary heads are left out.

    Args:
        output: a tensor; or a mapping or named tuple that holds one under ``out`` (torchvision's segmentation models)
            or ``logits`` (its GoogLeNet and Inception, where auxiliary heads are in use).

    Returns:
        The tensor, of whatever shape.

    Raises:
        TypeError: if nothing says which tensor holds the scores.
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
    """Find the scores in what a model returns, one for each class of each image.

    Args:
        output: as in :func:`find_scores`.
        images: N, the number of images that the model was given.

    Returns:
        ``(N, C)`` or ``(N, C, h, w)``.

    Raises:
        TypeError: as :func:`find_scores`.
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
            ``"average"``: all alike. ``"logsumexp"``: between the two,
            :math:`\frac{1}{r} \log \frac{1}{hw} \sum_{x,y} \exp(r s_{x,y})` with r = 5.

    Returns:
        ``(N, C)``.

    Raises:
        ValueError: if the pooling is not known, or there are no maps.
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


def check_model(forward_func: Callable[..., Any], guided: bool) -> Callable[..., Any]:
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
    model = unwrap_model(forward_func)
    if any(isinstance(m, GeneralizedRCNNTransform) for m in model.modules()):
        raise TypeError(
            f"{type(model).__name__} is a detection model: it returns boxes of single objects, not scores of classes "
            "for the whole image. Use a classifier or a segmentation model; or explain a module of your own that "
            "returns scores (N, C) from its backbone."
        )
    attention = find_attention(model)
    if guided and attention is not None:
        raise ValueError(
            f"{type(model).__name__} is a transformer: its class evidence travels through attention ({attention}), not "
            "through rectifiers, so that guided backpropagation has no meaning. Use a CNN; or take plain gradients at "
            "layers that you name, with guided=False."
        )
    return model


def check_guided_rectifiers(recording: "ForwardPass") -> None:
    """Say so where the guided rule had nothing to act on.

    Raises:
        ValueError: if the model has no rectifier at all.
    """
    if recording.num_rectifiers == 0:
        raise ValueError(
            "the model has no rectifier (ReLU or a relative of it), so that guided backpropagation would silently be "
            "plain backpropagation. Pass guided=False if that is what you want."
        )
    if recording.num_guided_rectifiers == 0:
        warn_caller(
            "no rectifier lies between the chosen layers and the class scores: nothing was guided, and the result "
            "equals guided=False. Choose earlier layers."
        )


@contextmanager
def explain_forward_errors(model: Any, resized: Tensor, images: Tensor) -> Iterator[None]:
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

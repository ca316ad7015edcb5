"""Computes the gradients of several classes at several layers, reduced to channel maxima, from one forward pass.

A :class:`GradientTap` at each chosen layer is the identity in the forward pass. It also has a *slot*, a leaf of the
graph with the shape of a map, and returns the *reduced* gradient of the layer as the gradient of the slot. So the
channel maximum is computed inside the backward pass, and the full gradient is freed as soon as autograd has used it.

The network below the first tap runs without a graph: the images are detached, and parameters enter every operation as
constants (:class:`DetachedParameters`). This also saves the activations that only gradients of weights need.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dcsm_attr.attribution.guided import GuidedRectifiers
from dcsm_attr.attribution.model import check_scores, raise_deferred_signals, warn_caller

if TYPE_CHECKING:
    from dcsm_attr.attribution.cached_gradients import CachedRun

__all__ = [
    "DetachedParameters",
    "ForwardPass",
    "GradientRun",
    "LayerPoint",
    "Reduction",
    "check_finite_gradients",
    "check_guided_rectifiers",
    "class_chunk_size",
    "run_forward",
]

#: The scores and the gradients of one forward pass: computed, or cached.
GradientRun: TypeAlias = "ForwardPass | CachedRun"

#: Reduces a gradient ``(N, C, h, w)`` to a map ``(N, 1, h, w)``.
Reduction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LayerPoint:
    """A point of the network at which gradients are computed.

    Attributes:
        name: its name in messages and in :attr:`DistinctClassSaliency.layers`.
        module: the layer; None for the images.
        at_input: whether the point is the input of the layer instead of its output. If other layers have the same
            input, as at a shortcut, the gradient is the one through this layer only; Captum's is the sum over all.
    """

    name: str
    module: nn.Module | None
    at_input: bool


class GradientTap(torch.autograd.Function):
    """Identity whose backward pass also returns the reduced gradient, as the gradient of the slot."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slot: Tensor, reduction: Reduction) -> Tensor:
        ctx.reduction = reduction
        # A copy, because in-place operations may follow.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        spatial = gradient if gradient.ndim == 4 else gradient[..., None, None]
        return gradient, ctx.reduction(spatial), None


class DetachedParameters(TorchFunctionMode):
    """Within this context, parameters enter every operation detached; the parameters are not changed."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` with detached parameters, except when it reads or writes an attribute of a parameter."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("__get__", "__set__"):
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_detach, args)), {name: _detach(value) for name, value in kwargs.items()}
        return _batch_norm(*args, **kwargs) if func is F.batch_norm else func(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``F.batch_norm``; in evaluation mode as one multiplication and addition, which is faster."""
    parameters = (running_mean, running_var, weight, bias)
    if training or not x.requires_grad or any(p is None or p.dtype != x.dtype for p in parameters):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, variance, weight, bias = (p.view(-1, *[1] * (x.ndim - 2)) for p in parameters if p is not None)
    scale = weight * (variance + eps).rsqrt()
    return torch.addcmul(bias - mean * scale, x, scale)


def _detach(value: Any) -> Any:
    return value.detach() if isinstance(value, nn.Parameter) and value.requires_grad else value


@dataclass
class ForwardPass:
    """One forward pass, from which gradients can be computed once.

    Attributes:
        logits: detached scores of the model, ``(N, C)`` or ``(N, C, h, w)``.
        points: name of the layer of each tap, in the order of :meth:`channel_maxima`; repeated for a layer with several
            tensors.
        num_rectifiers: number of rectifier calls in the forward pass.
        num_guided_rectifiers: number of those above the first tap; 0 if the rule was not requested.
    """

    logits: Tensor
    points: list[str]
    num_rectifiers: int
    num_guided_rectifiers: int
    _output: Tensor | None = field(repr=False)
    _slots: list[Tensor] = field(repr=False)

    def channel_maxima(
        self, classes: Tensor, positions: Tensor | None = None, class_chunk_size: int = 1
    ) -> list[Tensor]:
        """Backpropagate each class of each image, and free the graph: Eq. 3 before upsampling.

        The gradients are those of the score of the class; for a score map, of the sum over its positions.

        Args:
            classes: ``(N, K)`` int64; -1 where an image has fewer than K classes.
            positions: ``(N,)`` int64, the position ``y * w + x`` of the score map to use. None: all positions.
            class_chunk_size: classes per batched backward pass; 1 gives one plain backward pass per class.

        Returns:
            For each tap ``(N, K, h, w)``, float64 if the layer is float64 and otherwise float32; zero where the class
            is -1.

        Raises:
            RuntimeError: if the scores do not depend on a layer, or the graph has already been used.
        """
        if self._output is None:
            raise RuntimeError("the graph of this forward pass was used and freed; run another one")
        output, slots = self._output, self._slots
        self._output, self._slots = None, []
        chunks = [
            self._backward_classes(output, slots, _seeds(output, column, positions))
            for column in torch.split(classes, class_chunk_size, dim=1)
        ]
        return [torch.cat(maps, dim=1) for maps in zip(*chunks, strict=True)]

    def _backward_classes(self, output: Tensor, slots: list[Tensor], seeds: Tensor) -> list[Tensor]:
        batched = len(seeds) > 1
        try:
            gradients = torch.autograd.grad(
                output,
                slots,
                seeds if batched else seeds[0],
                retain_graph=True,
                is_grads_batched=batched,
                allow_unused=True,
            )
            raise_deferred_signals()
        except RuntimeError as error:
            # Some operations of other libraries do not support a batched backward pass.
            if not batched or not any(word in str(error) for word in ("vmap", "Batching rule", "batching rule")):
                raise
            one_by_one = [self._backward_classes(output, slots, seed[None]) for seed in seeds]
            return [torch.cat(maps, dim=1) for maps in zip(*one_by_one, strict=True)]
        for name, gradient in zip(self.points, gradients, strict=True):
            if gradient is None:
                raise _no_graph_error(name)
        if not batched:
            gradients = tuple(gradient[None] for gradient in gradients)
        # (K, N, 1, h, w) -> (N, K, h, w)
        return [_at_least_float32(gradient[:, :, 0].transpose(0, 1)) for gradient in gradients]


def _no_graph_error(name: str) -> RuntimeError:
    return RuntimeError(
        f"the scores do not depend on layer {name!r} through autograd: its result is not used, or the forward pass "
        "runs under no_grad or detaches it."
    )


def _seeds(output: Tensor, classes: Tensor, positions: Tensor | None) -> Tensor:
    """Return the gradients of the output, one-hot by class, ``(K, *output.shape)``; zero where the class is -1."""
    images, count = classes.shape
    seeds = torch.zeros(count, *output.shape[:2], dtype=output.dtype, device=output.device)
    exists = (classes >= 0).T[..., None].to(output.dtype)
    seeds.scatter_(2, classes.clamp(min=0).T[..., None], exists)
    if output.ndim == 2:
        return seeds
    seeds = seeds[..., None]
    where = torch.ones(images, output[0, 0].numel(), dtype=output.dtype, device=output.device)
    if positions is not None:
        where = torch.zeros_like(where).scatter_(1, positions[:, None], 1.0)
    return (seeds * where[None, :, None]).view(count, *output.shape)


def _at_least_float32(maps: Tensor) -> Tensor:
    return maps if maps.dtype == torch.float64 else maps.float()


def run_forward(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    additional_forward_args: tuple[Any, ...],
    points: Sequence[LayerPoint],
    reduction: Reduction,
    *,
    guided: bool,
) -> ForwardPass:
    """Run the model once, with a tap at each point.

    Args:
        forward_func: the model, or a function that calls it.
        inputs: image batches; a point without a module is at the first.
        additional_forward_args: passed to the model after the inputs.
        points: the points at which to compute gradients.
        reduction: ``(N, C, h, w)`` to ``(N, 1, h, w)``, applied to each gradient in the backward pass.
        guided: whether rectifiers use the guided rule in the backward pass.

    Returns:
        The forward pass, with a graph that begins at the first tap.

    Raises:
        RuntimeError: if a layer is not reached, or the scores do not depend on it through autograd.
        TypeError, ValueError: if the output contains no scores, see :func:`dcsm_attr.attribution.model.check_scores`.
    """
    taps = _GradientTaps(reduction)
    rule = GuidedRectifiers()
    with torch.enable_grad(), taps.attached(points), DetachedParameters(), rule if guided else nullcontext():
        images = [x.detach() for x in inputs]
        images[0] = taps.tap_images(points, images[0])
        output = forward_func(*images, *additional_forward_args)
    raise_deferred_signals()
    scores = check_scores(output, len(inputs[0]))
    slots, names = taps.collect(points)
    if not scores.requires_grad:
        raise _no_graph_error(names[0])
    return ForwardPass(scores.detach(), names, rule.seen, rule.guided, scores, slots)


def class_chunk_size(classes: Tensor, internal_batch_size: int | None) -> int:
    """Return the number of classes per backward pass, given classes ``(N, K)``.

    One on the CPU, where a batched pass is slower. On an accelerator all, or as many as keep images times classes
    within ``internal_batch_size``.
    """
    if classes.device.type == "cpu":
        return 1
    return classes.shape[1] if internal_batch_size is None else max(1, internal_batch_size // len(classes))


def check_finite_gradients(finite: Sequence[Tensor]) -> None:
    """Refuse gradients that overflowed.

    Args:
        finite: one bool tensor per layer and scale; read together, so that a device is waited for once.

    Raises:
        ValueError: if one of them is False.
    """
    if not torch.stack(list(finite)).all():
        raise ValueError(
            "the model's gradients contain NaN or infinite values: they exceed the range of its dtype. Check its "
            "weights, or run it in a dtype of wider range (float32, bfloat16)."
        )


def check_guided_rectifiers(run: ForwardPass) -> None:
    """Check that the model has rectifiers, and warn if none of them was guided.

    Raises:
        ValueError: if the model has no rectifier.
    """
    if run.num_rectifiers == 0:
        raise ValueError(
            "the model has no rectifier (ReLU or a similar activation), so that guided backpropagation would silently "
            "be plain backpropagation. To use plain gradients, pass guided=False."
        )
    if run.num_guided_rectifiers == 0:
        warn_caller(
            "no rectifier lies between the chosen layers and the class scores: nothing was guided, and the result "
            "equals guided=False. Choose earlier layers."
        )


class _GradientTaps:
    """The hooks of one forward pass, and the slots that they create."""

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction
        self._slots: dict[LayerPoint, list[Tensor]] = {}
        # Hooks run in every thread that calls the module; only this thread's forward pass is tapped.
        self._thread = threading.get_ident()

    @contextmanager
    def attached(self, points: Sequence[LayerPoint]) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for point in points:
                handles += self._register(point)
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _register(self, point: LayerPoint) -> list[RemovableHandle]:
        if point.module is None:
            return []
        if point.at_input:
            return [point.module.register_forward_pre_hook(lambda _, inputs: self._tap(point, inputs))]
        return [point.module.register_forward_hook(lambda _, inputs, output: self._tap(point, output))]

    def tap_images(self, points: Sequence[LayerPoint], images: Tensor) -> Tensor:
        for point in points:
            if point.module is None:
                images = self._tap(point, images)
        return images

    def _tap(self, point: LayerPoint, value: Any) -> Any:
        if threading.get_ident() != self._thread:
            return None
        # Of a layer that runs several times, the last run counts, as in Captum.
        slots = self._slots[point] = []

        def tap_tensor(element: Any) -> Any:
            if not isinstance(element, Tensor) or not element.is_floating_point() or element.ndim not in (2, 4):
                return element
            spatial = element.shape[2:] or (1, 1)
            slot = element.new_zeros(()).expand(element.shape[0], 1, *spatial).requires_grad_()
            slots.append(slot)
            return GradientTap.apply(element, slot, self._reduction)

        if isinstance(value, tuple) and hasattr(value, "_make"):
            return value._make(map(tap_tensor, value))
        if isinstance(value, (tuple, list)):
            return type(value)(map(tap_tensor, value))
        return tap_tensor(value)

    def collect(self, points: Sequence[LayerPoint]) -> tuple[list[Tensor], list[str]]:
        slots: list[Tensor] = []
        names: list[str] = []
        for point in points:
            if point not in self._slots:
                raise RuntimeError(
                    f"layer {point.name!r} was not reached by the forward pass. Choose a layer that runs for these "
                    "inputs; inside a compiled submodule, build the explanation from the module before compilation."
                )
            if not self._slots[point]:
                raise RuntimeError(
                    f"layer {point.name!r} has no map at its {'input' if point.at_input else 'output'}: a tensor of "
                    "shape (N, C, h, w) or (N, C) is needed."
                )
            slots += self._slots[point]
            names += [point.name] * len(self._slots[point])
        return slots, names

"""What the methods of this package share: from images and a request to one map a candidate class."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from captum.attr._utils.attribution import GradientAttribution
from torch import Tensor, nn

from dcsm_attr.attribution.candidates import Activation, Candidates, class_scores
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.gradients import LayerPoint, Recording, record
from dcsm_attr.attribution.guided import plain_rectifiers
from dcsm_attr.attribution.inputs import (
    argument_tuple,
    batch_slices,
    checked_images,
    comfortable_batch,
    rescaled,
    sliced_arguments,
)
from dcsm_attr.attribution.kept_gradients import GradientRun, KeptGradients, KeptRun
from dcsm_attr.attribution.memory_format import channels_last, refuses_channels_last
from dcsm_attr.attribution.model_checks import check_guidance, checked_model, explained_failure
from dcsm_attr.attribution.notices import warn_caller
from dcsm_attr.attribution.selection import Request, Selection
from dcsm_attr.attribution.variants import Variant
from dcsm_attr.backbones.score_pooling import POOLINGS, PoolingName
from dcsm_attr.guest import evaluation_mode, preserved_random_state, uncompiled

__all__ = ["ClassSaliency"]


class ClassSaliency(GradientAttribution):  # type: ignore[misc]
    """Gradients of several classes at several points of a network, combined into one map a class.

    Not for direct use: :class:`DistinctClassSaliency` and :class:`Simonyan` are the methods.

    Attributes:
        forward_func: the model, without the wrappers of compilation and distribution.
        guided, subtract, scales, alpha, activation, pooling, threshold, min_candidates, internal_batch_size: as given,
            or the variant's own.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        variant: Variant,
        *,
        guided: bool,
        subtract: bool,
        scales: Sequence[float] | None,
        alpha: float,
        activation: Activation,
        pooling: PoolingName,
        threshold: float,
        min_candidates: int | None,
        internal_batch_size: int | None,
    ) -> None:
        GradientAttribution.__init__(self, checked_model(forward_func, guided))
        self._variant = variant
        self.guided = guided
        self.subtract = subtract
        self.scales = tuple(variant.scales if scales is None else scales)
        self.alpha = alpha
        self.activation = activation
        self.pooling = pooling
        self.threshold = threshold
        self.min_candidates = variant.min_candidates if min_candidates is None else min_candidates
        self.internal_batch_size = internal_batch_size
        self._takes_channels_last = True
        self._check_settings()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the maps depend on beside model and images, ready for JSON."""
        return {
            "method": self.get_name(),
            "guided": self.guided,
            "subtract": self.subtract,
            "scales": list(self.scales),
            "alpha": self.alpha,
            "activation": self.activation,
            "pooling": self.pooling,
            "threshold": self.threshold,
            "min_candidates": self.min_candidates,
        }

    def _check_settings(self) -> None:
        if not self.scales or not all(0 < scale <= 8 for scale in self.scales):
            raise ValueError(f"scales must be ratios to the input size, above 0 and at most 8; got {self.scales}.")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {self.alpha}.")
        if self.activation not in ("auto", "sigmoid", "softmax"):
            raise ValueError(f"activation must be 'auto', 'sigmoid' or 'softmax', got {self.activation!r}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(map(repr, POOLINGS))}; got {self.pooling!r}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, got {self.threshold}.")
        if self.min_candidates < 1:
            raise ValueError(
                f"min_candidates must be at least 1, got {self.min_candidates}; subtract=False switches subtraction "
                "off."
            )
        if self.internal_batch_size is not None and self.internal_batch_size < 1:
            raise ValueError(f"internal_batch_size must be at least 1, got {self.internal_batch_size}.")

    def _attribute(
        self, inputs: Any, points: Sequence[LayerPoint], request: Request, additional_forward_args: Any
    ) -> Tensor | tuple[Tensor, ...]:
        """The target's maps in Captum's form: a tuple if the inputs are one, with a map for each."""
        result, selection = self._run(inputs, points, request, additional_forward_args)
        target = selection.target
        attribution = result.best() if target is None else result.of(target.to(result.maps.device))
        return tuple(attribution.clone() for _ in inputs) if isinstance(inputs, tuple) else attribution

    def _keep(
        self, inputs: Any, points: Sequence[LayerPoint], request: Request, additional_forward_args: Any
    ) -> KeptGradients:
        images = checked_images(inputs)
        count, size = len(images[0]), (images[0].shape[2], images[0].shape[3])
        arguments = argument_tuple(additional_forward_args)
        selection: Selection | None = None
        candidates: Candidates | None = None
        kept = []
        with self._as_guest(images[0].device):
            for scale, recording in self._forward_runs(images, arguments, points):
                if selection is None or candidates is None:
                    selection = request.resolve(count, recording.logits.shape).to(recording.logits.device)
                    if self.guided:
                        check_guidance(recording)
                    scores = class_scores(recording.logits, self.activation, self.pooling)
                    candidates = selection.candidates_for(scores, scores > self.threshold, self.min_candidates)
                maps = self._backward(recording, candidates, selection)
                kept.append(KeptRun(scale, recording.logits, recording.points, candidates.classes, maps))
        return KeptGradients(size, tuple(kept))

    def _of_kept(self, kept: KeptGradients, points: Sequence[str], request: Request, raw: bool) -> ClassMaps:
        runs = (kept.run(scale).at(points) for scale in self._ordered_scales())
        first = next(runs)
        selection = request.resolve(len(first.logits), first.logits.shape).to(first.logits.device)
        with torch.no_grad():
            return self._combined(chain([first], runs), selection, kept.size, raw)

    @contextmanager
    def _as_guest(self, device: torch.device) -> Iterator[None]:
        """The model in evaluation mode, uncompiled, without gradients; it and the random state as before afterwards."""
        with ExitStack() as stack:
            if isinstance(self.forward_func, nn.Module):
                stack.enter_context(evaluation_mode(self.forward_func))
                stack.enter_context(uncompiled(self.forward_func))
            stack.enter_context(preserved_random_state(device))
            stack.enter_context(torch.no_grad())
            # The call may stand in a hook or a forward pass that somebody else explains.
            stack.enter_context(plain_rectifiers())
            yield

    def _run(
        self,
        inputs: Any,
        points: Sequence[LayerPoint],
        request: Request,
        additional_forward_args: Any,
        raw: bool = False,
    ) -> tuple[ClassMaps, Selection]:
        images = checked_images(inputs)
        arguments = argument_tuple(additional_forward_args)
        device, count = images[0].device, len(images[0])
        size = (images[0].shape[2], images[0].shape[3])
        selection: Selection | None = None
        parts = []
        with self._as_guest(device):
            for part in batch_slices(count, self.internal_batch_size or comfortable_batch(images, arguments)):
                part_images = tuple(x[part] for x in images)
                recordings = self._forward_runs(part_images, sliced_arguments(arguments, part, count), points)
                runs = (recording for _, recording in recordings)
                first = next(runs)
                if selection is None:
                    selection = request.resolve(count, first.logits.shape)
                    self._check_positions(selection)
                    if self.guided:
                        check_guidance(first)
                parts.append(self._combined(chain([first], runs), selection[part].to(device), size, raw))
        assert selection is not None
        result = ClassMaps.concatenated(parts)
        # Who asks for one candidate only does not expect that anything is subtracted.
        if self.subtract and self.min_candidates > 1 and not result.subtracted.all():
            warn_caller(
                "an image has a single candidate class: there is nothing to subtract, and its map is the raw one "
                "(see ClassMaps.subtracted)."
            )
        return result, selection

    def _check_positions(self, selection: Selection) -> None:
        if selection.positions is not None and self.scales != (1.0,):
            raise ValueError(
                "a target (class, y, x) names a position of the score map, whose grid differs between scales: pass "
                f"scales=(1.0,); got scales={self.scales}."
            )

    def _ordered_scales(self) -> list[float]:
        """The scale nearest to 1 comes first: there the classes are chosen."""
        return sorted(self.scales, key=lambda ratio: abs(ratio - 1))

    def _forward_runs(
        self, images: tuple[Tensor, ...], arguments: tuple[Any, ...], points: Sequence[LayerPoint]
    ) -> Iterator[tuple[float, Recording]]:
        """One forward pass a scale, run when it is asked for."""
        for scale in self._ordered_scales():
            resized = rescaled(images, scale, self._variant.image_interpolation)
            try:
                recording = self._recorded(resized, arguments, points)
            except RuntimeError as error:
                explained = explained_failure(error, self.forward_func, resized[0], images[0])
                if explained is error:
                    raise
                raise explained from error
            yield scale, recording

    def _recorded(
        self, images: tuple[Tensor, ...], arguments: tuple[Any, ...], points: Sequence[LayerPoint]
    ) -> Recording:
        settings: dict[str, Any] = {"reduction": self._variant.reduction, "guided": self.guided}
        if self._takes_channels_last:
            try:
                return record(self.forward_func, channels_last(images), arguments, points, **settings)
            except RuntimeError as error:
                if not refuses_channels_last(error):
                    raise
                self._takes_channels_last = False
        return record(self.forward_func, images, arguments, points, **settings)

    def _combined(
        self, runs: Iterator[GradientRun], selection: Selection, size: tuple[int, int], raw: bool
    ) -> ClassMaps:
        """Choose the candidates of a part of the batch and average their maps over layers and scales (Eq. 5)."""
        ahead = list(runs) if self._variant.pool_scores else [next(runs)]
        scores = [class_scores(recording.logits, self.activation, self.pooling) for recording in ahead]
        candidates = self._candidates(scores, selection)
        valid = candidates.classes >= 0
        subtracted = valid.sum(dim=1) > 1 if self.subtract else torch.zeros_like(valid[:, 0])
        # Read once, here, so that nothing waits for the device between the layers.
        differing = subtracted if len(set(subtracted.tolist())) > 1 else bool(subtracted[0])
        slots = None if valid.all() else valid
        total = torch.zeros(*valid.shape, *size, dtype=torch.float32, device=valid.device)
        raw_total = torch.zeros_like(total) if raw else None
        finite: list[Tensor] = []
        for recording in chain(ahead, runs):
            gate = self._gate(recording, candidates, selection)
            layers = self._backward(recording, candidates, selection)
            if not finite:
                self._inspect(recording.points, layers)
            for maps in layers:
                finite.append(maps.isfinite().all())
                contribution = self._variant.layer_contribution(maps, slots, size, self.alpha, differing)
                total += contribution if gate is None else gate * contribution
                if raw_total is not None:
                    contribution = self._variant.raw_contribution(maps, size, self.alpha)
                    raw_total += contribution if gate is None else gate * contribution
        # Of the raw maps: normalisation may hide what is not a number.
        if not torch.stack(finite).all():
            raise ValueError(
                "the model's gradients hold NaN or infinite values: they exceed the range of its number type. Check "
                "its weights, or run it in a type of wider range (float32, bfloat16)."
            )
        result = ClassMaps(total, candidates.classes, candidates.detected, scores[0], subtracted, raw_total)
        empty = ~valid[:, :, None, None]
        return result.mapped(lambda sums: self._variant.final(sums / len(finite)).masked_fill_(empty, 0.0).clamp_(0, 1))

    def _candidates(self, scores: list[Tensor], selection: Selection) -> Candidates:
        at_scales = torch.stack(scores)
        above = at_scales.amax(dim=0) > self.threshold
        ranking = at_scales.sum(dim=0)
        if not self._variant.detects_by_rank:
            return selection.candidates_for(ranking, above, self.min_candidates)
        chosen = selection.candidates_for(ranking, torch.zeros_like(above), self.min_candidates)
        if selection.known is not None:
            return chosen
        return Candidates(chosen.classes, chosen.classes >= 0)

    def _gate(self, recording: GradientRun, candidates: Candidates, selection: Selection) -> Tensor | None:
        """Which candidates count at this scale, ``(N, K, 1, 1)``; None: all."""
        if not self._variant.scale_gate or selection.known is not None:
            return None
        above = class_scores(recording.logits, self.activation, self.pooling) > self.threshold
        passes = above.gather(1, candidates.classes.clamp(min=0)) | ~candidates.detected
        if selection.target is not None:
            passes |= candidates.classes == selection.target[:, None]
        return passes[:, :, None, None].float()

    def _inspect(self, names: list[str], layers: list[Tensor]) -> None:
        """Look at the raw maps of the scale nearest to 1: for a method that has something to say about them."""

    def _backward(self, recording: GradientRun, candidates: Candidates, selection: Selection) -> list[Tensor]:
        images, classes = candidates.classes.shape
        at_once = 1
        if recording.logits.device.type != "cpu":
            at_once = classes if self.internal_batch_size is None else max(1, self.internal_batch_size // images)
        return recording.channel_maxima(candidates.classes, selection.positions, at_once)

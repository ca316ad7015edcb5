"""What the methods of this package share: from images and a request to one map per candidate class."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from captum.attr._utils.attribution import GradientAttribution
from torch import Tensor

from dcsm_attr.attribution.cached_gradients import CachedGradients, CachedRun, GradientRun
from dcsm_attr.attribution.candidates import (
    Activation,
    Candidates,
    Request,
    Selection,
    check_detection_settings,
    class_scores,
    select_target_map,
)
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.gradients import ForwardPass, LayerPoint, record
from dcsm_attr.attribution.inputs import (
    AutoMemoryFormat,
    batch_slices,
    check_batch_size,
    check_differentiable,
    check_images,
    check_scales,
    default_batch_size,
    format_forward_args,
    rescaled,
    slice_forward_args,
    sort_by_distance_to_one,
)
from dcsm_attr.attribution.maps import Variant
from dcsm_attr.attribution.model import (
    PoolingName,
    check_model,
    explain_forward_errors,
    prepared_model,
    warn_caller,
)

__all__ = ["ClassSaliency"]


class ClassSaliency(GradientAttribution):  # type: ignore[misc]
    """Gradients of several classes at several points of a network, combined into one map per class.

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
        GradientAttribution.__init__(self, check_model(forward_func, guided))
        self._variant = variant
        self.guided = guided
        self.subtract = subtract
        self.scales = check_scales(variant.scales if scales is None else scales)
        self.alpha = alpha
        self.activation = activation
        self.pooling = pooling
        self.threshold = threshold
        self.min_candidates = variant.min_candidates if min_candidates is None else min_candidates
        self.internal_batch_size = internal_batch_size
        self._format = AutoMemoryFormat()
        self._check_settings()

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the maps depend on beside model and images, JSON-serializable."""
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
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {self.alpha}.")
        check_detection_settings(self.activation, self.pooling, self.threshold)
        if self.min_candidates < 1:
            raise ValueError(
                f"min_candidates must be at least 1, got {self.min_candidates}; subtract=False switches subtraction "
                "off."
            )
        check_batch_size(self.internal_batch_size)

    def _attribute(
        self, inputs: Any, points: Sequence[LayerPoint], request: Request, additional_forward_args: Any
    ) -> Tensor | tuple[Tensor, ...]:
        result, selection = self._run(inputs, points, request, additional_forward_args)
        return select_target_map(result, selection.target, inputs)

    def _compute_gradients(
        self, inputs: Any, points: Sequence[LayerPoint], request: Request, additional_forward_args: Any
    ) -> CachedGradients:
        images = check_images(inputs)
        check_differentiable(images)
        count, size = len(images[0]), (images[0].shape[2], images[0].shape[3])
        arguments = format_forward_args(additional_forward_args)
        selection: Selection | None = None
        candidates: Candidates | None = None
        kept = []
        with prepared_model(self.forward_func, images[0].device):
            for scale, recording in self._forward_runs(images, arguments, points):
                if selection is None or candidates is None:
                    selection = request.resolve(count, recording.logits.shape).to(recording.logits.device)
                    if self.guided:
                        check_guided_rectifiers(recording)
                    scores = class_scores(recording.logits, self.activation, self.pooling)
                    candidates = selection.candidates_for(scores, scores > self.threshold, self.min_candidates)
                maps = self._backward_classes(recording, candidates, selection)
                kept.append(CachedRun(scale, recording.logits, recording.points, candidates.classes, maps))
        return CachedGradients(size, tuple(kept))

    def _combine_cached(self, kept: CachedGradients, points: Sequence[str], request: Request, raw: bool) -> ClassMaps:
        runs = (kept.run(scale).at(points) for scale in sort_by_distance_to_one(self.scales))
        first = next(runs)
        selection = request.resolve(len(first.logits), first.logits.shape).to(first.logits.device)
        with torch.no_grad():
            return self._combined(chain([first], runs), selection, kept.size, raw)

    def _run(
        self,
        inputs: Any,
        points: Sequence[LayerPoint],
        request: Request,
        additional_forward_args: Any,
        raw: bool = False,
    ) -> tuple[ClassMaps, Selection]:
        images = check_images(inputs)
        check_differentiable(images)
        arguments = format_forward_args(additional_forward_args)
        device, count = images[0].device, len(images[0])
        size = (images[0].shape[2], images[0].shape[3])
        selection: Selection | None = None
        parts = []
        with prepared_model(self.forward_func, device):
            for part in batch_slices(count, self.internal_batch_size or default_batch_size(images, arguments)):
                part_images = tuple(x[part] for x in images)
                forward_passes = self._forward_runs(part_images, slice_forward_args(arguments, part, count), points)
                runs = (recording for _, recording in forward_passes)
                first = next(runs)
                if selection is None:
                    selection = request.resolve(count, first.logits.shape)
                    self._check_positions(selection)
                    if self.guided:
                        check_guided_rectifiers(first)
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

    def _forward_runs(
        self, images: tuple[Tensor, ...], arguments: tuple[Any, ...], points: Sequence[LayerPoint]
    ) -> Iterator[tuple[float, ForwardPass]]:
        """One forward pass per scale, run when it is asked for."""
        for scale in sort_by_distance_to_one(self.scales):
            resized = rescaled(images, scale, self._variant.image_interpolation)
            with explain_forward_errors(self.forward_func, resized[0], images[0]):
                recording = self._record_forward(resized, arguments, points)
            yield scale, recording

    def _record_forward(
        self, images: tuple[Tensor, ...], arguments: tuple[Any, ...], points: Sequence[LayerPoint]
    ) -> ForwardPass:
        settings: dict[str, Any] = {"reduction": self._variant.reduction, "guided": self.guided}
        return self._format.run(lambda x: record(self.forward_func, x, arguments, points, **settings), images)

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
            gate = self._gate_scales(recording, candidates, selection)
            layers = self._backward_classes(recording, candidates, selection)
            if not finite:
                self._check_raw_maps(recording.points, layers)
            for maps in layers:
                finite.append(maps.isfinite().all())
                contribution = self._variant.layer_contribution(maps, slots, size, self.alpha, differing)
                total += contribution if gate is None else gate * contribution
                if raw_total is not None:
                    contribution = self._variant.raw_contribution(maps, size, self.alpha)
                    raw_total += contribution if gate is None else gate * contribution
        # Of the raw maps: normalization may hide what is not a number.
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
        if not self._variant.detect_by_rank:
            return selection.candidates_for(ranking, above, self.min_candidates)
        chosen = selection.candidates_for(ranking, torch.zeros_like(above), self.min_candidates)
        if selection.known is not None:
            return chosen
        return Candidates(chosen.classes, chosen.classes >= 0)

    def _gate_scales(self, recording: GradientRun, candidates: Candidates, selection: Selection) -> Tensor | None:
        """Which candidates count at this scale, ``(N, K, 1, 1)``; None: all."""
        if not self._variant.scale_gate or selection.known is not None:
            return None
        above = class_scores(recording.logits, self.activation, self.pooling) > self.threshold
        passes = above.gather(1, candidates.classes.clamp(min=0)) | ~candidates.detected
        if selection.target is not None:
            passes |= candidates.classes == selection.target[:, None]
        return passes[:, :, None, None].float()

    def _check_raw_maps(self, names: list[str], layers: list[Tensor]) -> None:
        """Look at the raw maps of the scale nearest to 1: for a method that has something to say about them."""

    def _backward_classes(self, recording: GradientRun, candidates: Candidates, selection: Selection) -> list[Tensor]:
        images, classes = candidates.classes.shape
        chunk_size = 1
        if recording.logits.device.type != "cpu":
            chunk_size = classes if self.internal_batch_size is None else max(1, self.internal_batch_size // images)
        return recording.channel_maxima(candidates.classes, selection.positions, chunk_size)


def check_guided_rectifiers(recording: ForwardPass) -> None:
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

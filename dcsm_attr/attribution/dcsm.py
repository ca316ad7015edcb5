"""Distinct class-specific saliency maps as a Captum ``LayerAttribution``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from captum._utils.common import _format_additional_forward_args
from captum.attr._utils.attribution import GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from dcsm_attr.attribution.candidates import (
    Activation,
    Candidates,
    Request,
    SelectClasses,
    Selection,
    check_settings,
    class_scores,
    select_target_map,
)
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.gradients import (
    ForwardPass,
    GradientRun,
    LayerPoint,
    check_finite_gradients,
    check_guided_rectifiers,
    class_chunk_size,
    run_forward,
)
from dcsm_attr.attribution.guided import unguided_rectifiers
from dcsm_attr.attribution.inputs import (
    AutoMemoryFormat,
    check_differentiable,
    check_images,
    check_scales,
    explain_in_batches,
    resize_images,
    slice_forward_args,
    sort_by_distance_to_one,
)
from dcsm_attr.attribution.layers import Layer, default_layers, is_constant, layer_points, resolve_layers
from dcsm_attr.attribution.maps import VARIANTS, VariantName
from dcsm_attr.attribution.model import PoolingName, check_model, explain_forward_errors, warn_caller

__all__ = ["DistinctClassSaliency"]


class DistinctClassSaliency(LayerAttribution, GradientAttribution):  # type: ignore[misc]
    r"""
    Computes Distinct Class-specific Saliency Maps (DCSM): class saliency contrasted with that of the other classes.

    The guided-backpropagation gradients of each candidate class are computed at several layers, reduced to their
    channel maximum, upsampled to the image size, subtracted from each other, normalized by tanh, and averaged over
    layers and scales:

    .. math::
        M_i^c = \max_k |\uparrow \partial S_c / \partial L_{i,k}|, \quad
        \tilde M_i^c = \sum_{c' \ne c} \max(M_i^c - M_i^{c'}, 0), \quad
        \hat M^c = \frac{1}{|S||L|} \sum_{j \in S} \sum_{i \in L} \tanh(\alpha \tilde M_{j,i}^c)

    (Eq. 3 to 5). The candidates are the classes whose probability is above a threshold. If there are fewer than
    ``min_candidates``, the next best classes are added: these are not in the image, but their maps are subtracted.

    Differences between ``variant="paper"`` and the paper:

    - The channel maximum is computed before upsampling, as in both released codes (see
      :func:`dcsm_attr.attribution.maps.absolute_channel_maximum`).
    - Each contrasted map is divided by its maximum over the image before tanh. Eq. 5 omits this step, but cannot be
      used without it: gradients are about 1e-3 to 1e-6.
    - The candidates are chosen at the scale nearest to 1.
    - Images are not resized to the canvas of the paper (longest side 500, zero padding); this is preprocessing.

    ``variant="matconvnet"`` and ``variant="caffe"`` reproduce the two released codes step by step, with these
    exceptions:

    - *matconvnet*: if the difference of a pair of classes is nowhere positive, the release divides it by its negative
      maximum, which flips the signs and adds a map near 1 everywhere; a maximum of zero gives NaN. Such pairs are
      skipped here.
    - *matconvnet*: if no class is above the threshold, the release divides 0 by 0. Here the best class is used and
      reported (:attr:`ClassMaps.nothing_detected`).
    - *matconvnet*: the release normalizes the images that it writes a second time and applies tanh again. This is
      omitted here, because it inflates the foreground in unaries; ``maps.squash(maps, 3).clamp(min=1e-20)`` gives these
      images. The maps are the mean over pairs, layers and scales, not the sum; the images are the same.
    - *matconvnet*: the release subtracts the mean of the channels B, G, R from R, G, B, and fails on images larger than
      500 pixels. Both are defects of its preprocessing, which is not part of this class.
    - *caffe*: the channel maximum and the upsampling of the release are correct for square maps only; here for any
      shape.
    - *caffe*: the class names of the release swap dog and dining table; names are not part of this class.
    - *caffe*: the candidates are the best three classes, and all of them count as detected; ``threshold`` has no
      effect.

    With a single candidate (a model with one class, or one candidate given) nothing can be subtracted: the result is
    the raw map, a warning is issued, and :attr:`ClassMaps.subtracted` is False.

    Thread safety: several threads may explain one model at the same time. Each call returns what it returns alone, and
    the model is restored when the last call ends. Until then the model is in evaluation mode for every thread, so no
    thread may train it or change its parameters, modes or hooks. Calls may be nested: a hook, or the forward pass of a
    model that is being explained, may explain a model.

    More details regarding the method can be found in the original paper:
    https://link.springer.com/chapter/10.1007/978-3-319-46493-0_14
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layer | None = None,
        device_ids: list[int] | None = None,
        *,
        guided: bool = True,
        subtract: bool = True,
        scales: Sequence[float] | None = None,
        alpha: float = 3.0,
        activation: Activation = "auto",
        pooling: PoolingName = "max",
        threshold: float = 0.5,
        min_candidates: int | None = None,
        variant: VariantName = "paper",
        deepest: int | None = None,
        internal_batch_size: int | None = None,
    ) -> None:
        r"""
        Args:

            forward_func (Callable or torch.nn.Module): The model, which takes images (N, C, H, W) and returns scores
                (N, C) or score maps (N, C, h, w), before sigmoid or softmax; or a function that calls it, together with
                ``layer``. Wrappers of ``torch.compile`` and DistributedDataParallel are removed.
            layer (torch.nn.Module, str, or a sequence of them, optional): The layers at which gradients are computed.
                None: the convolutions chosen by :func:`dcsm_attr.attribution.layers.default_layers`. Default: None
            device_ids (list[int], optional): Unused; part of Captum's interface of layer methods. DataParallel models
                are not supported. Default: None
            guided (bool, optional): Whether to use guided backpropagation instead of the plain gradient.
                Default: True
            subtract (bool, optional): Whether to subtract the maps of the other candidates (Eq. 4).
                Default: True
            scales (sequence of float, optional): Image sizes at which gradients are computed, relative to the input
                size. None: the default of the variant: (0.8, 1.0, 1.2); for *caffe* (1.0,). Default: None
            alpha (float, optional): Steepness of tanh.
                Default: 3.0
            activation (str, optional): Function that turns scores into the probabilities from which candidates are
                chosen: "sigmoid", "softmax" or "auto" (sigmoid for score maps and single-class models, softmax for
                plain classifiers). A multi-label classifier that returns (N, C) needs "sigmoid". Default: "auto"
            pooling (str, optional): Pooling of score maps to the scores from which candidates are chosen: "max"
                (Eq. 2), "average" or "logsumexp". Use the one that the model was trained with. Has no effect on the
                gradients, nor for models that return (N, C).
                Default: "max"
            threshold (float, optional): Probability above which a class counts as detected.
                Default: 0.5
            min_candidates (int, optional): Minimum number of candidates per image. None: the default of the variant: 3;
                for *matconvnet* 4.
                Default: None
            variant (str, optional): "paper", "matconvnet" or "caffe".
                Default: "paper"
            deepest (int, optional): Number of default layers to use, counted from the last; only without ``layer``.
                None: all default layers.
                Default: None
            internal_batch_size (int, optional): Limits memory: the maximum number of images per forward pass and, on an
                accelerator, of images times classes per backward pass. None: the fastest number of images on the CPU;
                the whole batch with additional arguments and on other devices.
                Default: None
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}; got {variant!r}.")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {alpha}.")
        check_settings(activation, pooling, threshold, internal_batch_size)
        if min_candidates is not None and min_candidates < 1:
            raise ValueError(
                f"min_candidates must be at least 1, got {min_candidates}. To compute maps without contrast, pass "
                "subtract=False."
            )
        if deepest is not None and (layer is not None or deepest < 1):
            raise ValueError(
                "deepest is the number of default layers to use, counted from the last: at least 1, and only without "
                f"layer; got deepest={deepest}{'' if layer is None else ' and a layer'}."
            )
        model = check_model(forward_func, guided)
        if layer is None and not isinstance(model, nn.Module):
            raise ValueError(
                "layers cannot be chosen for a function: pass the model itself as forward_func, or name layer=[...]."
            )
        GradientAttribution.__init__(self, model)
        LayerAttribution.__init__(self, model, layer, device_ids)
        self._variant = VARIANTS[variant]
        self.variant = variant
        self.guided = guided
        self.subtract = subtract
        self.scales = check_scales(self._variant.scales if scales is None else scales)
        self.alpha = alpha
        self.activation: Activation = activation
        self.pooling: PoolingName = pooling
        self.threshold = threshold
        self.min_candidates = self._variant.min_candidates if min_candidates is None else min_candidates
        self.internal_batch_size = internal_batch_size
        self._deepest = deepest
        self._layers_given = layer is not None
        self._layers = None if layer is None else resolve_layers(model, layer)
        self._memory_format = AutoMemoryFormat()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the maps depend on, JSON-serializable. Includes :attr:`layers`."""
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
            "variant": self.variant,
            "layers": list(self.layers),
        }

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers. If ``layer`` is None, the first access runs the model once to choose them."""
        return tuple(self._resolve_layers())

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool | None = None,
        *,
        candidates: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Computes the distinct map of one class per image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Images (N, C, H, W), floating point, finite, normalized as the model
                expects; a tuple for a model with several image inputs of equal N, H and W.
            target (int, tuple, Tensor or list, optional): The class, in any of Captum's forms: an int for all images; a
                list or a 1D tensor with one class per image; for score maps also (class, y, x), the score at one
                position, which requires ``scales=(1.0,)``. A *list* never means several classes of one image: use
                :meth:`class_maps` for these. None: the best class of each image (among its candidates, if given).
                Default: None
            additional_forward_args (Any, optional): Passed to the model after the inputs.
                Default: None
            attribute_to_layer_input (bool, optional): Whether gradients are computed at the input of each layer instead
                of its output. None: at the input if ``layer`` is None, otherwise at the output, as in Captum.
                Default: None
            candidates (sequence of int or Tensor, optional): The classes to subtract from each other, (K,) or one row
                per image; they must include the target. None: the target and the classes that are chosen from the
                model's scores. Default: None

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:
            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                The maps, (N, 1, H, W) at the size of the images, float32 in [0, 1], detached and contiguous. If
                ``inputs`` is a tuple, a tuple with the same map for each input.

        Raises:
            AssertionError: if the target has a form that Captum does not accept.
            IndexError: if the target is out of range.
            TypeError: if inputs are not floating point tensors, or the model returns no scores.
            ValueError: if inputs are malformed; inputs, scores or gradients are not finite; the model's output is
                neither (N, C) nor (N, C, h, w); the model has no rectifier; no layer can be chosen; candidates do not
                include the target; or the target names a position at several scales.
            RuntimeError: if called under inference mode, a layer is not reached, or the model fails at another scale.

        Examples::

            >>> # VGG-16 takes images Nx3xHxW and returns Nx1000 scores.
            >>> model = torchvision.models.vgg16(weights="DEFAULT")
            >>> dcs = DistinctClassSaliency(model)
            >>> dcs.layers
            ('features.10', 'features.12', ..., 'features.28')
            >>> # Map of the bull mastiff (243), contrasted with the tabby (281): Nx1xHxW.
            >>> attribution = dcs.attribute(images, target=243, candidates=[243, 281])
        """
        request = Request(target=target, candidates=candidates)
        maps = self._explain(inputs, request, additional_forward_args, attribute_to_layer_input)
        return select_target_map(maps, target, inputs)

    def attribute_future(self) -> None:
        """Not implemented."""
        raise NotImplementedError("attribute_future is not implemented for DistinctClassSaliency")

    def class_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Any = None,
        candidates: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool | None = None,
        *,
        raw: bool = False,
    ) -> ClassMaps:
        r"""
        Computes the distinct maps of all candidate classes of each image, from one forward pass per scale.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`attribute`.
            classes (sequence of int or Tensor, optional): Classes known to be in the image (image-level labels), (K,)
                or one row per image; they replace detection by threshold. Default: None
            candidates (sequence of int or Tensor, optional): The classes to subtract from each other; they must include
                all known classes. None: the known or detected classes, and the next best ones up to
                ``min_candidates``.
                Default: None
            additional_forward_args (Any, optional): As in :meth:`attribute`.
                Default: None
            attribute_to_layer_input (bool, optional): As in :meth:`attribute`.
                Default: None
            raw (bool, optional): Whether to also return the maps before subtraction, in :attr:`ClassMaps.raw`.
                Default: False

        Returns:
            *ClassMaps* with maps (N, K, H, W); see :class:`ClassMaps`.

        Raises:
            TypeError, ValueError, RuntimeError: as in :meth:`attribute`.
            ValueError: if classes are out of range, named twice, or not among the candidates.
        """
        request = Request(classes=classes, candidates=candidates)
        return self._explain(inputs, request, additional_forward_args, attribute_to_layer_input, raw)

    def _explain(
        self,
        inputs: Any,
        request: Request,
        additional_forward_args: Any,
        attribute_to_layer_input: bool | None,
        raw: bool = False,
    ) -> ClassMaps:
        layers = self._layer_points(inputs, additional_forward_args, attribute_to_layer_input)

        def explain(images: tuple[Tensor, ...], forward_args: tuple[Any, ...], select: SelectClasses) -> ClassMaps:
            size = (images[0].shape[2], images[0].shape[3])
            return self._average(self._forward_passes(images, forward_args, layers), select, size, raw)

        maps = explain_in_batches(
            self.forward_func, inputs, additional_forward_args, request, self.internal_batch_size, explain
        )
        # With min_candidates=1 the caller does not expect a contrast.
        if self.subtract and self.min_candidates > 1 and not maps.subtracted.all():
            warn_caller(
                "an image has a single candidate class: nothing can be subtracted, and its map is the raw map (see "
                "ClassMaps.subtracted)."
            )
        return maps

    def _average(
        self, runs: Iterable[GradientRun], select: SelectClasses, size: tuple[int, int], raw: bool
    ) -> ClassMaps:
        """Averages the contrasted maps of a batch over scales and layers: Eq. 3 to 5."""
        variant, runs = self._variant, iter(runs)
        first_runs = list(runs) if variant.pool_scores else [next(runs)]
        scores = [class_scores(run.logits, self.activation, self.pooling) for run in first_runs]
        selection = select(first_runs[0].logits.shape)
        candidates = self._choose_candidates(scores, selection)
        valid = candidates.classes >= 0
        subtracted = valid.sum(dim=1) > 1 if self.subtract else torch.zeros_like(valid[:, 0])
        # Read on the host once, so that the loop does not wait for the device.
        used_slots = None if valid.all() else valid
        contrasted = subtracted if len(set(subtracted.tolist())) > 1 else bool(subtracted[0])
        chunk_size = class_chunk_size(candidates.classes, self.internal_batch_size)

        total = torch.zeros(*valid.shape, *size, dtype=torch.float32, device=valid.device)
        raw_total = torch.zeros_like(total) if raw else None
        finite: list[Tensor] = []
        for run in chain(first_runs, runs):  # j in S, the scale nearest to 1 first
            weight = self._scale_weight(run, candidates, selection)
            gradients = run.channel_maxima(candidates.classes, selection.positions, chunk_size)  # Eq. 3
            if not finite:
                self._warn_about_constant_gradients(run.points, gradients)
            for gradient in gradients:  # i in L
                finite.append(gradient.isfinite().all())
                distinct = variant.distinct_map(gradient, size, self.alpha, used_slots, contrasted)  # Eq. 4, tanh
                total += _weighted(distinct, weight)
                if raw_total is not None:
                    raw_total += _weighted(variant.raw_map(gradient, size, self.alpha), weight)
        # Check the gradients, because the normalization may hide values that are not finite.
        check_finite_gradients(finite)
        sums = ClassMaps(total, candidates.classes, candidates.detected, scores[0], subtracted, raw_total)
        return sums.map_values(  # Eq. 5
            lambda maps: variant.finish(maps / len(finite)).masked_fill_(~valid[:, :, None, None], 0.0).clamp_(0, 1)
        )

    def _forward_passes(
        self, images: tuple[Tensor, ...], forward_args: tuple[Any, ...], layers: Sequence[LayerPoint]
    ) -> Iterator[ForwardPass]:
        """Runs the model once per scale, lazily."""
        for index, scale in enumerate(sort_by_distance_to_one(self.scales)):
            resized = resize_images(images, scale, self._variant.image_interpolation)
            with explain_forward_errors(self.forward_func, resized[0], images[0]):
                run = self._memory_format.run(
                    lambda x: run_forward(
                        self.forward_func, x, forward_args, layers, self._variant.reduction, guided=self.guided
                    ),
                    resized,
                )
            if self.guided and index == 0:
                check_guided_rectifiers(run)
            yield run

    def _choose_candidates(self, scores: list[Tensor], selection: Selection) -> Candidates:
        """Chooses the candidates of each image from its scores ``(N, C)`` at one scale or at all scales."""
        if selection.positions is not None and self.scales != (1.0,):
            raise ValueError(
                "a target (class, y, x) names a position of the score map, whose size differs between scales: pass "
                f"scales=(1.0,); got scales={self.scales}."
            )
        by_scale = torch.stack(scores)
        above, ranking = by_scale.amax(dim=0) > self.threshold, by_scale.sum(dim=0)
        if not self._variant.detect_by_rank:
            return selection.candidates_for(ranking, above, self.min_candidates)
        chosen = selection.candidates_for(ranking, torch.zeros_like(above), self.min_candidates)
        return chosen if selection.known is not None else Candidates(chosen.classes, chosen.classes >= 0)

    def _scale_weight(self, run: GradientRun, candidates: Candidates, selection: Selection) -> Tensor | None:
        """Weight of each candidate at one scale, ``(N, K, 1, 1)``, 0 if the variant ignores the scale; None: all 1."""
        if not self._variant.scale_gate or selection.known is not None:
            return None
        above = class_scores(run.logits, self.activation, self.pooling) > self.threshold
        counts = above.gather(1, candidates.classes.clamp(min=0)) | ~candidates.detected
        if selection.target is not None:
            counts |= candidates.classes == selection.target[:, None]
        return counts[:, :, None, None].float()

    def _resolve_layers(self, inputs: Any = None, additional_forward_args: Any = None) -> dict[str, nn.Module]:
        if self._layers is None:
            images = None if inputs is None else check_images(inputs)
            forward_args = _format_additional_forward_args(additional_forward_args) or ()
            if images is not None:
                check_differentiable(images)
                forward_args = slice_forward_args(forward_args, slice(0, 1), len(images[0]))
            with unguided_rectifiers():
                names = default_layers(self.forward_func, images, forward_args)
            self._layers = resolve_layers(self.forward_func, names[-(self._deepest or 0) :])
            self.layer = list(self._layers.values())
        return self._layers

    def _layer_points(
        self, inputs: Any, additional_forward_args: Any, attribute_to_layer_input: bool | None
    ) -> list[LayerPoint]:
        layers = self._resolve_layers(inputs, additional_forward_args)
        at_input = not self._layers_given if attribute_to_layer_input is None else attribute_to_layer_input
        return layer_points(layers, at_input)

    def _warn_about_constant_gradients(self, names: list[str], gradients: list[Tensor]) -> None:
        if not self._layers_given:
            return
        constant = torch.stack([is_constant(gradient).all() for gradient in gradients]).tolist()
        layers = [name for name, flag in zip(names, constant, strict=True) if flag]
        if layers:
            warn_caller(
                f"the gradient at {', '.join(layers)} is the same at every position, so that its map does not "
                "localize anything: no rectifier or max pool lies between it and a pooled linear head. Choose earlier "
                "layers, or layer inputs (attribute_to_layer_input=True)."
            )


def _weighted(maps: Tensor, weight: Tensor | None) -> Tensor:
    return maps if weight is None else weight * maps

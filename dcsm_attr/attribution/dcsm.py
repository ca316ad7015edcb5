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
    check_detection_settings,
    class_scores,
    select_target_map,
)
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.gradients import (
    ForwardPass,
    GradientRun,
    LayerPoint,
    check_guided_rectifiers,
    class_chunk_size,
    run_forward,
)
from dcsm_attr.attribution.guided import unguided_rectifiers
from dcsm_attr.attribution.inputs import (
    AutoMemoryFormat,
    check_batch_size,
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
    Computes Distinct Class-specific Saliency Maps: where a CNN sees each of several classes.

    Guided-backpropagation gradients of every candidate class are taken at several layers, reduced by their channel
    maximum, upsampled to the image, subtracted from each other, normalized by tanh, and averaged over layers and
    scales:

    .. math::
        M_i^c = \max_k |\uparrow \partial S_c / \partial L_{i,k}|, \quad
        \tilde M_i^c = \sum_{c' \ne c} \max(M_i^c - M_i^{c'}, 0), \quad
        \hat M^c = \frac{1}{|S||L|} \sum_{j \in S} \sum_{i \in L} \tanh(\alpha \tilde M_{j,i}^c)

    (Eq. 3 to 5). The candidates are the classes that score above a threshold, filled up with the best of the others to
    a minimum number; classes that are not in the image thus take part, to be subtracted.

    Where ``variant="paper"`` differs from the paper:

    - The channel maximum is taken before upsampling, as in both released codes (see
      :func:`dcsm_attr.attribution.maps.absolute_channel_maximum`).
    - Each subtracted map is divided by its maximum over the image before tanh. Eq. 5 does not print this, but cannot be
      used without it: gradients are about 1e-3 to 1e-6.
    - The classes are chosen at the scale nearest to 1.
    - The canvas (longest side 500, zero padding) is left to the preprocessing: the tensor is taken as it is.

    ``variant="matconvnet"`` and ``variant="caffe"`` are the two released codes, step for step, with these defects
    guarded:

    - *matconvnet*: a pair whose difference is nowhere positive is divided by its negative maximum, which flips the
      signs and adds a map near 1 everywhere; a maximum of zero gives NaN. Both pairs are skipped here.
    - *matconvnet*: where no class passes the threshold the release divides 0 by 0; here the best class is used and
      flagged (:attr:`ClassMaps.nothing_detected`).
    - *matconvnet*: the second normalization and tanh of the images that the release writes is not applied: in unaries
      it inflates the foreground. ``maps.squash(maps, 3).clamp(min=1e-20)`` gives these images. The maps are the mean
      over pairs, layers and scales, where the release sums, which makes no difference to the images.
    - *matconvnet*: it subtracts the mean of the channels B, G, R from R, G, B, and fails on images larger than 500
      pixels. Both lie in its preprocessing, not here.
    - *caffe*: its channel maximum and its upsampling are right for square maps only; here for all.
    - *caffe*: its list of class names swaps dog and dining table; names are not part of this method.
    - *caffe*: candidates are the best three, all of which count as detected; ``threshold`` has no effect.

    With a single candidate (a model with one class, or one candidate given) there is nothing to subtract: the map is
    then the raw one, with a warning and :attr:`ClassMaps.subtracted` False.

    Several threads may call one method, or several methods of one model, at the same time: each call gives what it
    gives alone, and when the last one has ended the model is what it was before the first. Until then it is in
    evaluation mode for every thread, so that none may train it, and none may change its parameters, modes or hooks.
    Calls may stand within each other too: in a hook of the user, or in the forward pass of a model that is explained.

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
                ``layer``. Wrappers of ``torch.compile`` and DistributedDataParallel are taken off.
            layer (torch.nn.Module, str, or a sequence of them, optional): The layers at which gradients are taken.
                None: the convolutions chosen by :func:`dcsm_attr.attribution.layers.default_layers`. Default: None
            device_ids (list[int], optional): Accepted as by every Captum layer method, and of no effect: DataParallel
                models are refused. Default: None
            guided (bool, optional): Guided backpropagation, or the plain gradient.
                Default: True
            subtract (bool, optional): Whether the other candidates' maps are subtracted (Eq. 4).
                Default: True
            scales (sequence of float, optional): Sizes at which gradients are taken, as ratios to the input size. None:
                the variant's own, (0.8, 1.0, 1.2), for *caffe* (1.0,). Default: None
            alpha (float, optional): Steepness of tanh.
                Default: 3.0
            activation (str, optional): How scores become probabilities for choosing candidates: "sigmoid", "softmax",
                or "auto": sigmoid for score maps and single-class models, softmax for plain classifiers. A multi-label
                classifier that returns (N, C) needs "sigmoid". Default: "auto"
            pooling (str, optional): How score maps become scores, for choosing candidates: "max" (Eq. 2), "average" or
                "logsumexp"; the one that the model was trained with. Of no effect on the gradients, and for models that
                return (N, C).
                Default: "max"
            threshold (float, optional): Probability above which a class counts as detected.
                Default: 0.5
            min_candidates (int, optional): Number of candidates of each image at least. None: the variant's own, 3, for
                *matconvnet* 4.
                Default: None
            variant (str, optional): "paper", "matconvnet" or "caffe".
                Default: "paper"
            deepest (int, optional): Where ``layer`` is None: so many of the default layers, from the last. None: all.
                Default: None
            internal_batch_size (int, optional): Bounds memory: at most this many images in one forward pass, and on an
                accelerator this many images times classes in one backward pass. None: on the CPU as many
                images as are fastest together, with additional arguments and elsewhere the whole batch, all classes.
                Default: None
        """
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, VARIANTS))}; got {variant!r}.")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {alpha}.")
        check_detection_settings(activation, pooling, threshold)
        check_batch_size(internal_batch_size)
        if min_candidates is not None and min_candidates < 1:
            raise ValueError(
                f"min_candidates must be at least 1, got {min_candidates}; subtract=False switches the contrast off."
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
        """All settings that the maps depend on, JSON-serializable; asking for them chooses the layers."""
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
        """Names of the layers. If none were given, the first access runs the model once to choose them."""
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
        Computes the distinct map of one class of each image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): Images (N, C, H, W), floating point, finite, normalized as the model
                expects; a tuple for a model with several image inputs of equal N, H and W.
            target (int, tuple, Tensor or list, optional): The class, in any of Captum's forms: an int for all images; a
                list or a 1D tensor with one class an image; for score maps also (class, y, x), the score at one
                position, which needs ``scales=(1.0,)``. A *list* never means several classes of one image: see
                :meth:`class_maps`. None: the best class of each image (of its candidates, where they are given).
                Default: None
            additional_forward_args (Any, optional): Passed to the model after the inputs.
                Default: None
            attribute_to_layer_input (bool, optional): Gradients at the input of each layer, or at its output. None: at
                the input where the layers were chosen automatically, at the output where they were named, as in Captum.
                Default: None
            candidates (sequence of int or Tensor, optional): The classes to subtract, (K,) or one row an image, the
                target among them. None: chosen from the model's scores, the target always among them. Default: None

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:
            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                The maps, (N, 1, H, W) at the size of the images, float32 in [0, 1], detached and contiguous. A tuple if
                ``inputs`` is one, with the same map for each input.

        Raises:
            AssertionError: if the target has a form that Captum does not accept.
            IndexError: if the target is out of range.
            TypeError: if inputs are not floating point tensors, or the model returns no scores.
            ValueError: if inputs are malformed; inputs, scores or gradients are not finite; the model's output is
                neither (N, C) nor (N, C, h, w); the model has no rectifier; no layer can be chosen; candidates lack the
                target; or the target names a position at several scales.
            RuntimeError: under inference mode; if a layer is not reached; if the model fails at another scale.

        Examples::

            >>> # VGG-16 takes images Nx3xHxW and returns Nx1000 scores.
            >>> model = torchvision.models.vgg16(weights="DEFAULT")
            >>> dcs = DistinctClassSaliency(model)
            >>> dcs.layers
            ('features.10', 'features.12', ..., 'features.28')
            >>> # Where does it see a bull mastiff (243), contrasted with a tabby (281)? Nx1xHxW.
            >>> attribution = dcs.attribute(images, target=243, candidates=[243, 281])
        """
        request = Request(target=target, candidates=candidates)
        maps = self._explain(inputs, request, additional_forward_args, attribute_to_layer_input)
        return select_target_map(maps, target, inputs)

    def attribute_future(self) -> None:
        """Not supported by this method."""
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
                or one row an image; they take the place of detection by threshold. Default: None
            candidates (sequence of int or Tensor, optional): The classes to subtract, all known classes among them.
                None: the known or detected classes, filled up with the best of the others to ``min_candidates``.
                Default: None
            additional_forward_args (Any, optional): As in :meth:`attribute`.
                Default: None
            attribute_to_layer_input (bool, optional): As in :meth:`attribute`.
                Default: None
            raw (bool, optional): Whether to return the maps before subtraction too, in :attr:`ClassMaps.raw`.
                Default: False

        Returns:
            *ClassMaps* with maps (N, K, H, W); see :class:`ClassMaps`.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`attribute`.
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
        check_differentiable(check_images(inputs))

        def explain(images: tuple[Tensor, ...], forward_args: tuple[Any, ...], select: SelectClasses) -> ClassMaps:
            size = (images[0].shape[2], images[0].shape[3])
            return self._average(self._forward_passes(images, forward_args, layers), select, size, raw)

        maps = explain_in_batches(
            self.forward_func, inputs, additional_forward_args, request, self.internal_batch_size, explain
        )
        # A caller who asks for one candidate only does not expect a contrast.
        if self.subtract and self.min_candidates > 1 and not maps.subtracted.all():
            warn_caller(
                "an image has a single candidate class: there is nothing to subtract, and its map is the raw one "
                "(see ClassMaps.subtracted)."
            )
        return maps

    def _average(
        self, passes: Iterable[GradientRun], select: SelectClasses, size: tuple[int, int], raw: bool
    ) -> ClassMaps:
        """Averages the contrasted maps of one batch over scales and layers: Eq. 3 to 5."""
        variant, passes = self._variant, iter(passes)
        ahead = list(passes) if variant.pool_scores else [next(passes)]
        scores = [class_scores(run.logits, self.activation, self.pooling) for run in ahead]
        selection = select(ahead[0].logits.shape)
        candidates = self._choose(scores, selection)
        valid = candidates.classes >= 0
        contrasted = valid.sum(dim=1) > 1 if self.subtract else torch.zeros_like(valid[:, 0])
        # Read on the host once, so that nothing waits for the device between the layers.
        slots = None if valid.all() else valid
        images = contrasted if len(set(contrasted.tolist())) > 1 else bool(contrasted[0])

        total = torch.zeros(*valid.shape, *size, dtype=torch.float32, device=valid.device)
        raw_total = torch.zeros_like(total) if raw else None
        finite: list[Tensor] = []
        for run in chain(ahead, passes):  # j in S, the scale nearest to 1 first
            weight = self._scale_weight(run, candidates, selection)
            chunk_size = class_chunk_size(candidates.classes, self.internal_batch_size)
            gradients = run.channel_maxima(candidates.classes, selection.positions, chunk_size)  # Eq. 3 for each i in L
            if not finite:
                self._warn_of_constant_gradients(run.points, gradients)
            for gradient in gradients:
                finite.append(gradient.isfinite().all())
                distinct = variant.distinct_map(gradient, size, self.alpha, slots, images)  # Eq. 4, and tanh of Eq. 5
                total += distinct if weight is None else weight * distinct
                if raw_total is not None:
                    unchanged = variant.raw_map(gradient, size, self.alpha)
                    raw_total += unchanged if weight is None else weight * unchanged
        # Checked on the gradients: the normalization may hide values that are not finite.
        if not torch.stack(finite).all():
            raise ValueError(
                "the model's gradients hold NaN or infinite values: they exceed the range of its number type. Check "
                "its weights, or run it in a type of wider range (float32, bfloat16)."
            )
        maps = ClassMaps(total, candidates.classes, candidates.detected, scores[0], contrasted, raw_total)
        return maps.map_values(
            lambda sums: variant.finish(sums / len(finite)).masked_fill_(~valid[:, :, None, None], 0.0).clamp_(0, 1)
        )

    def _forward_passes(
        self, images: tuple[Tensor, ...], forward_args: tuple[Any, ...], layers: Sequence[LayerPoint]
    ) -> Iterator[ForwardPass]:
        """Runs the model once per scale, when the next pass is asked for."""
        for number, scale in enumerate(sort_by_distance_to_one(self.scales)):
            resized = resize_images(images, scale, self._variant.image_interpolation)
            with explain_forward_errors(self.forward_func, resized[0], images[0]):
                run = self._memory_format.run(
                    lambda x: run_forward(
                        self.forward_func, x, forward_args, layers, self._variant.reduction, guided=self.guided
                    ),
                    resized,
                )
            if self.guided and number == 0:
                check_guided_rectifiers(run)
            yield run

    def _choose(self, scores: list[Tensor], selection: Selection) -> Candidates:
        """Chooses the candidates of each image, by the scores ``(N, C)`` of one scale or of all."""
        if selection.positions is not None and self.scales != (1.0,):
            raise ValueError(
                "a target (class, y, x) names a position of the score map, whose grid differs between scales: pass "
                f"scales=(1.0,); got scales={self.scales}."
            )
        by_scale = torch.stack(scores)
        above, ranking = by_scale.amax(dim=0) > self.threshold, by_scale.sum(dim=0)
        if not self._variant.detect_by_rank:
            return selection.candidates_for(ranking, above, self.min_candidates)
        chosen = selection.candidates_for(ranking, torch.zeros_like(above), self.min_candidates)
        return chosen if selection.known is not None else Candidates(chosen.classes, chosen.classes >= 0)

    def _scale_weight(self, run: GradientRun, candidates: Candidates, selection: Selection) -> Tensor | None:
        """Weight of each candidate at one scale ``(N, K, 1, 1)``, 0 where the variant leaves the scale out; None: 1."""
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

    def _warn_of_constant_gradients(self, names: list[str], gradients: list[Tensor]) -> None:
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

"""Distinct class-specific saliency maps as a Captum ``LayerAttribution``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr._utils.attribution import LayerAttribution
from captum.log import log_usage
from torch import Tensor, nn

from dcsm_attr.attribution.cached_gradients import CachedGradients
from dcsm_attr.attribution.candidates import Activation, Request
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.class_saliency import ClassSaliency
from dcsm_attr.attribution.gradients import LayerPoint
from dcsm_attr.attribution.guided import unguided_rectifiers
from dcsm_attr.attribution.inputs import check_differentiable, check_images, format_forward_args, slice_forward_args
from dcsm_attr.attribution.layers import Layer, default_layers, is_constant, layer_points, resolve_layers
from dcsm_attr.attribution.maps import VARIANTS, VariantName
from dcsm_attr.attribution.model import PoolingName, warn_caller

__all__ = ["DistinctClassSaliency"]


class DistinctClassSaliency(ClassSaliency, LayerAttribution):  # type: ignore[misc]
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
    - *matconvnet*: the second normalization and tanh, which the release applies to the pictures it writes, is
      :func:`dcsm_attr.attribution.maps.matconvnet_image`, and not part of the maps: as unaries it inflates the
      foreground. The maps are the mean over pairs, layers and scales, where the release sums; the picture is the same.
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
        self.variant = variant
        ClassSaliency.__init__(
            self,
            forward_func,
            VARIANTS[variant],
            guided=guided,
            subtract=subtract,
            scales=scales,
            alpha=alpha,
            activation=activation,
            pooling=pooling,
            threshold=threshold,
            min_candidates=min_candidates,
            internal_batch_size=internal_batch_size,
        )
        if deepest is not None and (layer is not None or deepest < 1):
            raise ValueError(
                "deepest takes so many of the default layers, at least 1, and does not go together with layer; got "
                f"deepest={deepest}{'' if layer is None else ' and a layer'}."
            )
        self._deepest = deepest
        self._layers_given = layer is not None
        self._layers: dict[str, nn.Module] | None = None
        if layer is not None:
            self._layers = resolve_layers(self.forward_func, layer)
        elif not isinstance(self.forward_func, nn.Module):
            raise ValueError(
                "forward_func is a function, so that no layers can be chosen for it: pass the model itself, or "
                "layer=[...]."
            )
        LayerAttribution.__init__(self, self.forward_func, layer, device_ids)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the maps depend on beside model and images, JSON-serializable."""
        return {**super().settings, "variant": self.variant, "layers": list(self.layers)}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers; where none were given, asking runs the model once to choose them."""
        return tuple(self._resolve_layers())

    def _resolve_layers(self, inputs: Any = None, additional_forward_args: Any = None) -> dict[str, nn.Module]:
        if self._layers is None:
            images = None if inputs is None else check_images(inputs)
            arguments = format_forward_args(additional_forward_args)
            if images is not None:
                check_differentiable(images)
                arguments = slice_forward_args(arguments, slice(0, 1), len(images[0]))
            with unguided_rectifiers():
                names = default_layers(self.forward_func, images, arguments)
            self._layers = resolve_layers(self.forward_func, names[-(self._deepest or 0) :])
            self.layer = list(self._layers.values())
        return self._layers

    def _points(
        self, inputs: Any, additional_forward_args: Any, attribute_to_layer_input: bool | None
    ) -> list[LayerPoint]:
        layers = self._resolve_layers(inputs, additional_forward_args)
        at_input = not self._layers_given if attribute_to_layer_input is None else attribute_to_layer_input
        return layer_points(layers, at_input)

    def _check_raw_maps(self, names: list[str], layers: list[Tensor]) -> None:
        if not self._layers_given:
            return
        constant = torch.stack([is_constant(maps).all() for maps in layers]).tolist()
        said = [name for name, flag in zip(names, constant, strict=True) if flag]
        if said:
            warn_caller(
                f"the gradient at {', '.join(said)} is the same at every position, so that its map says nothing about "
                "where: no rectifier or max pool lies between it and a pooled linear head. Choose earlier layers, or "
                "layer inputs (attribute_to_layer_input=True)."
            )

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
        points = self._points(inputs, additional_forward_args, attribute_to_layer_input)
        return self._attribute(inputs, points, Request(target=target, candidates=candidates), additional_forward_args)

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
        points = self._points(inputs, additional_forward_args, attribute_to_layer_input)
        request = Request(classes=classes, candidates=candidates)
        return self._run(inputs, points, request, additional_forward_args, raw)[0]

    def compute_gradients(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Any = None,
        candidates: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool | None = None,
    ) -> CachedGradients:
        r"""
        Takes the gradients without combining them, so that several settings of the method can share them.

        What is kept depends on the model, ``guided``, the variant's way to resize images and to reduce channels, the
        layers and the scales; alpha, subtraction, the number of candidates, and any choice among the layers, scales and
        classes that were kept are left to :meth:`class_maps_from_gradients`.

        Args:

            inputs: As in :meth:`class_maps`.
            classes: As in :meth:`class_maps`.
            candidates: As in :meth:`class_maps`.
            additional_forward_args: As in :meth:`class_maps`.
            attribute_to_layer_input: As in :meth:`class_maps`.

        Returns:
            *CachedGradients* of the candidates, about 1/100 of the memory of the maps.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`class_maps`.
            ValueError: if a layer has several tensors, which its name does not tell apart.
        """
        points = self._points(inputs, additional_forward_args, attribute_to_layer_input)
        return self._compute_gradients(
            inputs, points, Request(classes=classes, candidates=candidates), additional_forward_args
        )

    def class_maps_from_gradients(
        self, kept: CachedGradients, classes: Any = None, candidates: Any = None, *, raw: bool = False
    ) -> ClassMaps:
        r"""
        Computes what :meth:`class_maps` does from gradients that were kept.

        Args:

            kept (CachedGradients): Of a method with the same model and ``guided``, with at least the layers, scales and
                candidates of this one.
            classes: As in :meth:`class_maps`.
            candidates: As in :meth:`class_maps`.
            raw: As in :meth:`class_maps`.

        Returns:
            *ClassMaps*, bit for bit those of :meth:`class_maps` where the batch was the same.

        Raises:
            ValueError: if a layer, scale or class was not kept; classes or candidates are malformed; or scores or
                gradients are not finite.
        """
        return self._combine_cached(kept, self.layers, Request(classes=classes, candidates=candidates), raw)

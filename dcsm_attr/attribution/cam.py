"""Class activation maps (CAM) as a Captum attribution method, at several scales and mirrored as in AffinityNet."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr._utils.attribution import Attribution
from captum.log import log_usage
from torch import Tensor

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
from dcsm_attr.attribution.inputs import (
    AutoMemoryFormat,
    batch_slices,
    check_scales,
    default_batch_size,
    explain_in_batches,
    resize_images,
    slice_forward_args,
    sort_by_distance_to_one,
)
from dcsm_attr.attribution.linear_head import CamFeatures, find_cam_features
from dcsm_attr.attribution.maps import divide_by_maximum, upsample
from dcsm_attr.attribution.model import PoolingName, check_model, explain_forward_errors, raise_deferred_signals

__all__ = ["ClassActivationMaps"]


class ClassActivationMaps(Attribution):  # type: ignore[misc]
    r"""
    Computes class activation maps (CAM), summed over scales and mirrored images:

    .. math:: M^c = \sum_{s} \uparrow \mathrm{ReLU}(w_c^T f_s(x, y)) \,/\, \max_{x,y}

    Here f is the feature map before global pooling, and w the weights of the last linear layer. Both are found by
    tracing one forward pass, so no layer is named: the network must end in average pooling and a linear layer, or in a
    1 x 1 convolution to score maps, followed by any pooling. The bias is omitted, as in the paper.

    The sum over scales and mirrored images is that of AffinityNet. Differences from its released code:

    - Each sum is divided by its maximum (:func:`dcsm_attr.attribution.maps.divide_by_maximum`) instead of the maximum
      plus 1e-5, which would make small maps depend on the unit of the scores.
    - The square root that the release applies for its VGG is omitted.
    - If the classes are not known, they are detected from the scores at the scale nearest to 1, without mirroring.

    ``scales=(1.0,), mirrored=False`` gives plain CAM. Nothing is subtracted, and no gradient is computed.

    More details regarding the method can be found in the original papers: https://arxiv.org/abs/1512.04150 (B. Zhou et
    al., CVPR 2016) and https://arxiv.org/abs/1803.10464 (J. Ahn and S. Kwak, CVPR 2018, AffinityNet)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
        mirrored: bool = True,
        activation: Activation = "auto",
        pooling: PoolingName = "max",
        threshold: float = 0.5,
        internal_batch_size: int | None = None,
    ) -> None:
        r"""
        Args:

            forward_func (Callable or torch.nn.Module): The model, which takes images (N, C, H, W) and returns scores
                (N, C) or score maps (N, C, h, w), before sigmoid or softmax; or a function that calls it. Wrappers of
                ``torch.compile`` and DistributedDataParallel are removed.
            scales (sequence of float, optional): Image sizes at which maps are computed, relative to the input
                size.
                Default: (1.0, 0.5, 1.5, 2.0)
            mirrored (bool, optional): Whether to add the maps of the mirrored images at each scale.
                Default: True
            activation (str, optional): As in :class:`DistinctClassSaliency`.
                Default: "auto"
            pooling (str, optional): As in :class:`DistinctClassSaliency`.
                Default: "max"
            threshold (float, optional): As in :class:`DistinctClassSaliency`.
                Default: 0.5
            internal_batch_size (int, optional): Limits memory: the maximum number of images per forward pass, including
                mirrored ones. None: the fastest number of images on the CPU; all images of a scale with additional
                arguments and on other devices.
                Default: None
        """
        Attribution.__init__(self, check_model(forward_func, guided=False))
        check_settings(activation, pooling, threshold, internal_batch_size)
        self.scales = check_scales(scales)
        self.mirrored = mirrored
        self.activation: Activation = activation
        self.pooling: PoolingName = pooling
        self.threshold = threshold
        self.internal_batch_size = internal_batch_size
        self._memory_format = AutoMemoryFormat()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the maps depend on, JSON-serializable."""
        return {
            "method": self.get_name(),
            "scales": list(self.scales),
            "mirrored": self.mirrored,
            "activation": self.activation,
            "pooling": self.pooling,
            "threshold": self.threshold,
        }

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Computes the class activation map of one class per image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`DistinctClassSaliency.attribute`.
            target (int, tuple, Tensor or list, optional): As in :meth:`DistinctClassSaliency.attribute`, except
                positions of a score map, for which there is no class activation map.
                Default: None
            additional_forward_args (Any, optional): Passed to the model after the inputs, and again with the mirrored
                images.
                Default: None

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:
            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                The maps, (N, 1, H, W), float32 in [0, 1], detached and contiguous; a tuple if ``inputs`` is a tuple.
                Zero everywhere if no position has a positive value for the class.

        Raises:
            AssertionError: if the target has a form that Captum does not accept.
            IndexError: if the target is out of range.
            TypeError: if inputs are not floating point tensors, or the model returns no scores.
            ValueError: if inputs are malformed; inputs, scores or maps are not finite; the target names a position; or
                the model does not end in a pooled linear layer or a 1 x 1 convolution.
            RuntimeError: if the model fails at another scale.

        Examples::

            >>> # ResNet-50 takes images Nx3xHxW and returns Nx1000 scores.
            >>> model = torchvision.models.resnet50(weights="DEFAULT")
            >>> attribution = ClassActivationMaps(model).attribute(images, target=243)  # Nx1xHxW
            >>> plain = ClassActivationMaps(model, scales=(1.0,), mirrored=False)  # Zhou et al.
        """
        maps = self._explain(inputs, Request(target=target), additional_forward_args)
        return select_target_map(maps, target, inputs)

    def attribute_future(self) -> None:
        """Not implemented."""
        raise NotImplementedError("attribute_future is not implemented for ClassActivationMaps")

    def class_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Any = None,
        additional_forward_args: Any = None,
        *,
        raw: bool = False,
    ) -> ClassMaps:
        r"""
        Computes the class activation maps of all detected classes of each image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`attribute`.
            classes (sequence of int or Tensor, optional): As in :meth:`DistinctClassSaliency.class_maps`.
                Default: None
            additional_forward_args (Any, optional): As in :meth:`attribute`.
                Default: None
            raw (bool, optional): Whether to also return the maps in :attr:`ClassMaps.raw`; nothing is subtracted from
                them.
                Default: False

        Returns:
            *ClassMaps* with maps (N, K, H, W) of the known or detected classes, or of the best class if none is
            detected.

        Raises:
            TypeError, ValueError, RuntimeError: as in :meth:`attribute`.
            ValueError: if classes are out of range or named twice.
        """
        return self._explain(inputs, Request(classes=classes), additional_forward_args, raw)

    def _explain(self, inputs: Any, request: Request, additional_forward_args: Any, raw: bool = False) -> ClassMaps:
        def explain(images: tuple[Tensor, ...], forward_args: tuple[Any, ...], select: SelectClasses) -> ClassMaps:
            size = (images[0].shape[2], images[0].shape[3])
            candidates: Candidates | None = None
            for scale in sort_by_distance_to_one(self.scales):
                features = self._features(images, forward_args, scale)  # f_s and w
                if candidates is None:
                    scores = class_scores(features.logits[: len(images[0])], self.activation, self.pooling)
                    selection = select(features.logits.shape)
                    _check_no_target_position(selection)
                    candidates = selection.candidates_for(scores, scores > self.threshold, 1)
                    total = torch.zeros((), device=scores.device)
                total = total + upsample(self._rectified_maps(features, candidates.classes), size)  # M^c
            assert candidates is not None
            if not total.isfinite().all():
                raise ValueError(
                    "the model's maps contain NaN or infinite values: they exceed the range of its dtype. Check "
                    "its weights, or run it in a dtype of wider range (float32, bfloat16)."
                )
            empty = (candidates.classes < 0)[:, :, None, None]
            maps = divide_by_maximum(total).float().masked_fill_(empty, 0.0)
            subtracted = torch.zeros_like(candidates.detected[:, 0])
            return ClassMaps(maps, candidates.classes, candidates.detected, scores, subtracted, maps if raw else None)

        batch_size = self.internal_batch_size
        return explain_in_batches(
            self.forward_func, inputs, additional_forward_args, request, batch_size, explain, gradients=False
        )

    def _features(self, images: tuple[Tensor, ...], forward_args: tuple[Any, ...], scale: float) -> CamFeatures:
        """Runs the model at one scale; the mirrored images follow all others."""
        resized = resize_images(images, scale, "bicubic")  # As in the released code.
        rows = torch.arange(len(images[0]), device=images[0].device)
        views, view_rows = resized, rows
        if self.mirrored:
            views, view_rows = tuple(torch.cat([x, x.flip(-1)]) for x in resized), rows.repeat(2)
        chunk_size = self.internal_batch_size or default_batch_size(resized, forward_args)
        parts = []
        with explain_forward_errors(self.forward_func, resized[0], images[0]):
            for part in batch_slices(len(view_rows), chunk_size):
                part_args = slice_forward_args(forward_args, view_rows[part], len(rows))
                parts.append(
                    self._memory_format.run(
                        lambda x, args=part_args: find_cam_features(self.forward_func, x, args),  # type: ignore[misc]
                        tuple(x[part] for x in views),
                    )
                )
                raise_deferred_signals()
        return CamFeatures.concatenate(parts)

    def _rectified_maps(self, features: CamFeatures, classes: Tensor) -> Tensor:
        if not self.mirrored:
            return features.maps(classes).clamp_(min=0)
        maps, mirrored_maps = features.maps(classes.repeat(2, 1)).clamp_(min=0).chunk(2)
        return maps + mirrored_maps.flip(-1)


def _check_no_target_position(selection: Selection) -> None:
    if selection.positions is not None:
        raise ValueError(
            "a target (class, y, x) names a position of the score map, but a class activation map is for all "
            "positions: pass the class only."
        )

"""Class saliency of Simonyan et al. (2013), the baseline of the DCSM paper."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from captum.attr._utils.attribution import GradientAttribution
from captum.log import log_usage
from torch import Tensor, zeros_like

from dcsm_attr.attribution.candidates import (
    Activation,
    Request,
    SelectClasses,
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
    class_chunk_size,
    run_forward,
)
from dcsm_attr.attribution.inputs import (
    AutoMemoryFormat,
    explain_in_batches,
)
from dcsm_attr.attribution.maps import absolute_channel_maximum, squash
from dcsm_attr.attribution.model import PoolingName, check_model, explain_forward_errors

__all__ = ["Simonyan"]

_IMAGES = LayerPoint("images", None, at_input=True)


class Simonyan(GradientAttribution):  # type: ignore[misc]
    r"""
    Computes the class saliency of Simonyan et al., as the DCSM paper uses it as a baseline:

    .. math:: M^c = \tanh(\alpha \cdot \max_k |\partial S_c / \partial I_k| \,/\, \max_{x,y})

    The gradient is the plain one with respect to the image, at one scale; nothing is subtracted. Unlike Captum's
    ``Saliency``, it computes the maps of several classes from one forward pass, normalized to [0, 1], so that
    :class:`dcsm_attr.Segmenter` accepts it instead of DCSM.

    More details regarding the method can be found in the original paper, and in section 4.3 of the DCSM paper (Table
    1): https://arxiv.org/abs/1312.6034
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        alpha: float = 8.0,
        activation: Activation = "auto",
        pooling: PoolingName = "max",
        threshold: float = 0.5,
        internal_batch_size: int | None = None,
    ) -> None:
        r"""
        Args:

            forward_func (Callable or torch.nn.Module): As in :class:`DistinctClassSaliency`.
            alpha (float, optional): Steepness of tanh; 8 and 9 were best in Table 1 of the DCSM paper.
                Default: 8.0
            activation (str, optional): As in :class:`DistinctClassSaliency`.
                Default: "auto"
            pooling (str, optional): As in :class:`DistinctClassSaliency`.
                Default: "max"
            threshold (float, optional): As in :class:`DistinctClassSaliency`.
                Default: 0.5
            internal_batch_size (int, optional): As in :class:`DistinctClassSaliency`.
                Default: None
        """
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive, got {alpha}.")
        check_settings(activation, pooling, threshold, internal_batch_size)
        GradientAttribution.__init__(self, check_model(forward_func, guided=False))
        self.alpha = alpha
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
            "alpha": self.alpha,
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
        Computes the saliency of one class per image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`DistinctClassSaliency.attribute`; of several inputs, the
                attribution is to the first.
            target (int, tuple, Tensor or list, optional): As in :meth:`DistinctClassSaliency.attribute`.
                Default: None
            additional_forward_args (Any, optional): Passed to the model after the inputs.
                Default: None

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:
            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                The maps, (N, 1, H, W), float32 in [0, 1], detached and contiguous; a tuple if ``inputs`` is a tuple.

        Raises:
            AssertionError, IndexError, TypeError, ValueError, RuntimeError: see
                :meth:`DistinctClassSaliency.attribute`.

        Examples::

            >>> attribution = Simonyan(model).attribute(images, target=243)  # Nx1xHxW
        """
        maps = self._explain(inputs, Request(target=target), additional_forward_args)
        return select_target_map(maps, target, inputs)

    def attribute_future(self) -> None:
        """Not implemented."""
        raise NotImplementedError("attribute_future is not implemented for Simonyan")

    def class_maps(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Any = None,
        additional_forward_args: Any = None,
        *,
        raw: bool = False,
    ) -> ClassMaps:
        r"""
        Computes the saliency of all detected classes of each image, from one forward pass.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`attribute`.
            classes (sequence of int or Tensor, optional): As in :meth:`DistinctClassSaliency.class_maps`.
                Default: None
            additional_forward_args (Any, optional): As in :meth:`attribute`.
                Default: None
            raw (bool, optional): Whether to also return the maps in :attr:`ClassMaps.raw`; nothing is subtracted
                from them.
                Default: False

        Returns:
            *ClassMaps* with maps (N, K, H, W).

        Raises:
            TypeError, ValueError, RuntimeError: as in :meth:`DistinctClassSaliency.class_maps`.
        """
        return self._explain(inputs, Request(classes=classes), additional_forward_args, raw)

    def _explain(self, inputs: Any, request: Request, additional_forward_args: Any, raw: bool = False) -> ClassMaps:
        def explain(images: tuple[Tensor, ...], forward_args: tuple[Any, ...], select: SelectClasses) -> ClassMaps:
            return self._average(self._forward_passes(images, forward_args), select, raw=raw)

        return explain_in_batches(
            self.forward_func, inputs, additional_forward_args, request, self.internal_batch_size, explain
        )

    def _forward_passes(self, images: tuple[Tensor, ...], forward_args: tuple[Any, ...]) -> Iterator[ForwardPass]:
        with explain_forward_errors(self.forward_func, images[0], images[0]):
            run = self._memory_format.run(
                lambda x: run_forward(
                    self.forward_func, x, forward_args, [_IMAGES], absolute_channel_maximum, guided=False
                ),
                images,
            )
        yield run

    def _average(self, runs: Iterable[GradientRun], select: SelectClasses, *, raw: bool) -> ClassMaps:
        """Normalizes the channel maximum of each class's gradient; there is one run only, so nothing is averaged."""
        run = next(iter(runs))
        scores = class_scores(run.logits, self.activation, self.pooling)
        selection = select(run.logits.shape)
        candidates = selection.candidates_for(scores, scores > self.threshold, 1)
        chunk_size = class_chunk_size(candidates.classes, self.internal_batch_size)
        (gradient,) = run.channel_maxima(candidates.classes, selection.positions, chunk_size)
        check_finite_gradients([gradient.isfinite().all()])
        # Adding zero turns -0.0 into 0.0.
        maps = squash(gradient, self.alpha).float().add_(0.0)
        maps.masked_fill_((candidates.classes < 0)[:, :, None, None], 0.0)
        subtracted = zeros_like(candidates.detected[:, 0])
        return ClassMaps(
            maps, candidates.classes, candidates.detected, scores, subtracted, maps.clone() if raw else None
        )

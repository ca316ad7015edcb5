"""Simonyan's class saliency, the baseline of DCSM."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from captum.log import log_usage
from torch import Tensor

from dcsm_attr.attribution.cached_gradients import CachedGradients
from dcsm_attr.attribution.candidates import Activation, Request
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.class_saliency import ClassSaliency
from dcsm_attr.attribution.gradients import LayerPoint
from dcsm_attr.attribution.maps import VARIANTS
from dcsm_attr.attribution.model import PoolingName

__all__ = ["Simonyan"]


_IMAGES = LayerPoint("images", None, at_input=True)


class Simonyan(ClassSaliency):
    r"""
    Computes the class saliency of Simonyan et al., in the form in which the DCSM paper uses it as a baseline:

    .. math:: M^c = \tanh(\alpha \cdot \max_k |\partial S_c / \partial I_k| \,/\, \max_{x,y})

    One plain backward pass to the image, without guiding, subtraction, layers or scales. Unlike Captum's ``Saliency``
    it gives the maps of several classes from one forward pass, squashed to [0, 1], so that :class:`dcsm_attr.Segmenter`
    can take it in place of DCSM.

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
        ClassSaliency.__init__(
            self,
            forward_func,
            replace(VARIANTS["paper"], scales=(1.0,), min_candidates=1),
            guided=False,
            subtract=False,
            scales=None,
            alpha=alpha,
            activation=activation,
            pooling=pooling,
            threshold=threshold,
            min_candidates=None,
            internal_batch_size=internal_batch_size,
        )

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Computes the saliency of one class of each image.

        Args:

            inputs (Tensor or tuple[Tensor, ...]): As in :meth:`DistinctClassSaliency.attribute`; of several inputs, the
                first is attributed to.
            target (int, tuple, Tensor or list, optional): As in :meth:`DistinctClassSaliency.attribute`.
                Default: None
            additional_forward_args (Any, optional): Passed to the model after the inputs.
                Default: None

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**:
            - **attributions** (*Tensor* or *tuple[Tensor, ...]*):
                The maps, (N, 1, H, W), float32 in [0, 1], detached and contiguous; a tuple if ``inputs`` is one.

        Raises:
            AssertionError, IndexError, TypeError, ValueError, RuntimeError: as :meth:`DistinctClassSaliency.attribute`.

        Examples::

            >>> attribution = Simonyan(model).attribute(images, target=243)  # Nx1xHxW
        """
        return self._attribute(inputs, [_IMAGES], Request(target=target), additional_forward_args)

    def attribute_future(self) -> None:
        """Not supported by this method."""
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
            raw (bool, optional): Whether to return the maps before subtraction too, in :attr:`ClassMaps.raw`.
                Default: False

        Returns:
            *ClassMaps* with maps (N, K, H, W).

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`DistinctClassSaliency.class_maps`.
        """
        return self._run(inputs, [_IMAGES], Request(classes=classes), additional_forward_args, raw)[0]

    def compute_gradients(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        classes: Any = None,
        additional_forward_args: Any = None,
    ) -> CachedGradients:
        r"""
        Takes the gradients without combining them, so that several settings of the method can share them.

        Alpha is left to :meth:`class_maps_from_gradients`.

        Args:

            inputs: As in :meth:`class_maps`.
            classes: As in :meth:`class_maps`.
            additional_forward_args: As in :meth:`class_maps`.

        Returns:
            *CachedGradients* of the detected classes.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`class_maps`.
        """
        return self._compute_gradients(inputs, [_IMAGES], Request(classes=classes), additional_forward_args)

    def class_maps_from_gradients(self, kept: CachedGradients, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        r"""
        Computes what :meth:`class_maps` does from gradients that were kept.

        Args:

            kept (CachedGradients): Of this method with the same model.
            classes: As in :meth:`class_maps`.
            raw: As in :meth:`class_maps`.

        Returns:
            *ClassMaps*, bit for bit those of :meth:`class_maps` where the batch was the same.

        Raises:
            ValueError: if a class was not kept; classes are malformed; or scores or gradients are not finite.
        """
        return self._combine_cached(kept, [_IMAGES.name], Request(classes=classes), raw)

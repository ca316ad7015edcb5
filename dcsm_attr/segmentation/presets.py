"""Segmenters by name: the paper's settings, and the best that we know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from dcsm_attr.attribution import DistinctClassSaliency
from dcsm_attr.attribution.candidates import Activation
from dcsm_attr.attribution.model import PoolingName
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation.segmenter import Segmenter

__all__ = ["PRESETS", "TUNED_CRF", "Preset", "PresetName", "build_preset_segmenter"]


PresetName = Literal["paper", "tuned"]


@dataclass(frozen=True)
class Preset:
    """What a segmenter is made of.

    Attributes:
        deepest: so many of the default layers, from the last. None: all of them.
        min_candidates: see :class:`DistinctClassSaliency`; with 1 the classes that are there are subtracted from each
            other, and from nothing else.
        background_exponent: see :func:`dcsm_attr.attribution.maps.background`.
        crf: refines the maps.
    """

    deepest: int | None
    min_candidates: int
    background_exponent: float
    crf: DenseCRF


#: The CRF of the preset ``"tuned"``: the paper's, in which color counts three times as much.
TUNED_CRF = DenseCRF(bilateral_weight=3)

#: By name. ``"paper"``: Eq. 3 to 8 as published. ``"tuned"``: the deepest of the default layers alone, no classes that
#: are not in the picture among the candidates, a foreground that begins later, and :data:`TUNED_CRF`. It was found with
#: a SqueezeNet 1.1 that was trained on 400 VOC photographs, and the masks of others of the training set.
PRESETS: Mapping[PresetName, Preset] = {
    "paper": Preset(None, 3, 1.0, DenseCRF()),
    "tuned": Preset(1, 1, 0.35, TUNED_CRF),
}


def build_preset_segmenter(
    model: nn.Module,
    preset: PresetName,
    *,
    activation: Activation = "auto",
    pooling: PoolingName = "max",
    class_names: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Put a segmenter together by the name of its preset.

    Args:
        model: the classifier.
        preset: one of :data:`PRESETS`.
        activation: see :class:`DistinctClassSaliency`.
        pooling: see :class:`DistinctClassSaliency`.
        class_names: see :class:`Segmenter`.
        preprocess: see :class:`Segmenter`.
        architecture: see :class:`Segmenter`.

    Raises:
        ValueError: if there is no such preset, or the model has no layers that say where.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {preset!r}.")
    chosen = PRESETS[preset]
    saliency = DistinctClassSaliency(
        model,
        activation=activation,
        pooling=pooling,
        min_candidates=chosen.min_candidates,
        deepest=chosen.deepest,
    )
    return Segmenter(
        model,
        saliency=saliency,
        crf=chosen.crf,
        class_names=class_names,
        preprocess=preprocess,
        background_exponent=chosen.background_exponent,
        architecture=architecture,
    )

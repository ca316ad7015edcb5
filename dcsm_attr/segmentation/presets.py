"""Named settings of a segmenter: ``"paper"`` as published, and ``"tuned"``, the best known."""

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

__all__ = ["PRESETS", "TUNED_CRF", "PresetName", "SegmenterPreset", "build_preset_segmenter"]


PresetName = Literal["paper", "tuned"]


@dataclass(frozen=True)
class SegmenterPreset:
    """Settings of a segmenter.

    Attributes:
        num_deepest_layers: how many of the default layers to use, from the last. None: all of them.
        min_candidates: see :class:`DistinctClassSaliency`; with 1, the classes of the image are contrasted with each
            other only.
        background_exponent: see :func:`dcsm_attr.attribution.maps.background`.
        crf: the CRF that refines the maps.
    """

    num_deepest_layers: int | None
    min_candidates: int
    background_exponent: float
    crf: DenseCRF


#: The CRF of the preset ``"tuned"``: the paper's with three times the bilateral weight.
TUNED_CRF = DenseCRF(bilateral_weight=3)

#: ``"paper"``: Eq. 3 to 8 as published. ``"tuned"``: only the deepest default layer, only classes of the image as
#: candidates, a background exponent that gives less foreground, and :data:`TUNED_CRF`; found with a SqueezeNet 1.1 that
#: was trained on 400 VOC images, on the masks of other images of the training set.
PRESETS: Mapping[PresetName, SegmenterPreset] = {
    "paper": SegmenterPreset(None, 3, 1.0, DenseCRF()),
    "tuned": SegmenterPreset(1, 1, 0.35, TUNED_CRF),
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
    """Builds a segmenter with the settings of a preset.

    Args:
        model: the classifier.
        preset: name in :data:`PRESETS`.
        activation: see :class:`DistinctClassSaliency`.
        pooling: see :class:`DistinctClassSaliency`.
        class_names: see :class:`Segmenter`.
        preprocess: see :class:`Segmenter`.
        architecture: see :class:`Segmenter`.

    Raises:
        ValueError: if the preset is unknown, or the model has no layer whose gradient shows position.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {preset!r}.")
    chosen = PRESETS[preset]
    saliency = DistinctClassSaliency(
        model,
        activation=activation,
        pooling=pooling,
        min_candidates=chosen.min_candidates,
        deepest=chosen.num_deepest_layers,
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

"""Distinct Class-specific Saliency Maps (DCSM) for Captum, and the segmentation masks that follow from them.

The names below are imported when they are first used, so that ``import dcsm_attr`` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dcsm_attr.attribution import (
        ClassActivationMaps,
        ClassMaps,
        DistinctClassSaliency,
        FusedSaliency,
        GuidedRectifiers,
        Simonyan,
    )
    from dcsm_attr.crf import DenseCRF
    from dcsm_attr.segmentation import Segmentation, Segmenter

_HOMES = {
    "ClassActivationMaps": "dcsm_attr.attribution",
    "ClassMaps": "dcsm_attr.attribution",
    "DenseCRF": "dcsm_attr.crf",
    "DistinctClassSaliency": "dcsm_attr.attribution",
    "FusedSaliency": "dcsm_attr.attribution",
    "GuidedRectifiers": "dcsm_attr.attribution",
    "Segmentation": "dcsm_attr.segmentation",
    "Segmenter": "dcsm_attr.segmentation",
    "Simonyan": "dcsm_attr.attribution",
}

__all__ = [
    "ClassActivationMaps",
    "ClassMaps",
    "DenseCRF",
    "DistinctClassSaliency",
    "FusedSaliency",
    "GuidedRectifiers",
    "Segmentation",
    "Segmenter",
    "Simonyan",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Distinct Class-specific Saliency Maps (DCSM) for Captum, and segmentation masks from them.

Public names are imported on first use, so that ``import dcsm_attr`` is fast and loads no heavy dependency.
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

_MODULES = {
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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

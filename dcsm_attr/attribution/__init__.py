"""Attribution: the guided rule, the gradient engine, and the methods that use them."""

from dcsm_attr.attribution.cam import ClassActivationMaps
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.attribution.fusion import FusedSaliency
from dcsm_attr.attribution.guided import GuidedRectifiers
from dcsm_attr.attribution.simonyan import Simonyan

__all__ = ["ClassActivationMaps", "ClassMaps", "DistinctClassSaliency", "FusedSaliency", "GuidedRectifiers", "Simonyan"]

"""From a photograph to a label map."""

from dcsm_attr.segmentation.fusion import FusedSaliency
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.segmenter import Segmenter

__all__ = ["FusedSaliency", "Segmentation", "Segmenter"]

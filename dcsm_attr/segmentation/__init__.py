"""Segmentation of images from class maps."""

from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter"]

"""Fully connected CRF: the permutohedral lattice, mean field, and the public class over both backends."""

from dcsm_attr.crf.dense_crf import DenseCRF

__all__ = ["DenseCRF"]

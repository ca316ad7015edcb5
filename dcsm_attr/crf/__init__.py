"""The fully connected CRF: the public class, mean field, and Gaussian filtering on the permutohedral lattice."""

from dcsm_attr.crf.dense_crf import DenseCRF

__all__ = ["DenseCRF"]

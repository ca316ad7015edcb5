"""Class activation methods of other libraries on score map networks, which DCSM is compared with."""

from benchmarks.peers.methods import REFERENCE_METHODS, ReferenceMethod, reference_maps

__all__ = ["REFERENCE_METHODS", "ReferenceMethod", "reference_maps"]

"""The class activation methods of other libraries, on score map networks: what DCSM is measured beside."""

from benchmarks.peers.methods import REFERENCE_METHODS, ReferenceMethod, reference_maps

__all__ = ["REFERENCE_METHODS", "ReferenceMethod", "reference_maps"]

"""The class activation methods of other libraries, on score map networks: what DCSM is measured beside."""

from benchmarks.peers.methods import PEERS, Peer, peer_maps

__all__ = ["PEERS", "Peer", "peer_maps"]

"""AffinityNet (Ahn and Kwak, CVPR 2018): affinities between neighbouring positions, learned from class maps."""

from dcsm_attr.affinity.network import AffinityNet, TrainedAffinityNet, load_affinity_net, save_affinity_net
from dcsm_attr.affinity.pseudo_labels import write_confident_labels, write_pseudo_labels
from dcsm_attr.affinity.training import train_affinity_net
from dcsm_attr.affinity.walk import SemanticWalk

__all__ = [
    "AffinityNet",
    "SemanticWalk",
    "TrainedAffinityNet",
    "load_affinity_net",
    "save_affinity_net",
    "train_affinity_net",
    "write_confident_labels",
    "write_pseudo_labels",
]

"""Train AffinityNet from ground-truth masks: the upper bound of what its random walk can gain.

    python -m benchmarks.affinity_from_masks VOC_ROOT CLASSIFIER FOLDER
    python -m benchmarks.ablation affinity VOC_ROOT --weights CLASSIFIER --affinity-net FOLDER/affinity_net.safetensors

For comparison only. The settings are those of `dcsm-attr affinity`; an interrupted run resumes.
"""

import sys
from pathlib import Path

import torch

from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.models.affinity_net import AffinityNet
from dcsm_attr.models.checkpoint import TrainedAffinityNet, load_classifier
from dcsm_attr.training.affinity import SCHEDULES, train_affinity_net
from dcsm_attr.training.loop import TrainingSettings


def main() -> None:
    """Train on the masks of split train and print the path of the network."""
    root, weights, folder = sys.argv[1:]
    classifier = load_classifier(weights)
    torch.manual_seed(0)
    start = TrainedAffinityNet(
        AffinityNet(classifier.network.backbone, "mean"),
        classifier.architecture,
        classifier.preprocess,
        seed="true masks",
    )
    masks = Path(root) / "SegmentationClass"
    train_affinity_net(start, voc_collection(root, "train"), masks, folder, TrainingSettings(SCHEDULES["modern"]))
    print(Path(folder) / "affinity_net.safetensors")


if __name__ == "__main__":
    main()

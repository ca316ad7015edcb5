"""Train on images with image-level labels, then segment the first one of split val, without masks.

    python examples/train_and_segment.py IMAGES LABELS.csv
    python examples/train_and_segment.py IMAGES LABELS.csv --model resnet18 --weights FILE --steps 300 --output out

LABELS.csv has the columns id, split (train or val) and labels. Without --weights, torchvision's are downloaded once.
Writes OUTPUT/classifier and OUTPUT/first. On the command line: `dcsm-attr train IMAGES --image-labels LABELS.csv
--model squeezenet1_1 --head extended --size 320`, then `dcsm-attr segment IMAGE --weights best.safetensors
--preset tuned`.
"""

import argparse
from pathlib import Path

import torch

from dcsm_attr.datasets.collection import folder_collection
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.checkpoint import Architecture, build_classifier
from dcsm_attr.segmentation.presets import build_preset_segmenter
from dcsm_attr.training.classifier import SCHEDULES, train_classifier
from dcsm_attr.training.loop import TrainingSettings


def main() -> None:
    """Train, select the best step on split val, segment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--model", default="squeezenet1_1")
    parser.add_argument("--weights", default="DEFAULT")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=320, help="side of the network's input in pixels")
    parser.add_argument("--output", type=Path, default=Path("out"))
    given = parser.parse_args()

    training, validation = (folder_collection(given.images, given.labels, split=s) for s in ("train", "val"))
    names = training.class_names
    torch.manual_seed(0)
    architecture = Architecture(given.model, len(names), head="extended")
    classifier = build_classifier(architecture, given.weights, names, Preprocess(size=given.size))
    settings = TrainingSettings(SCHEDULES["modern"].with_changes(steps=given.steps))
    best = train_classifier(classifier, training, validation, given.output / "classifier", settings)

    segmenter = build_preset_segmenter(
        best.network, "tuned", pooling=best.pooling, class_names=names, preprocess=best.preprocess
    )
    result = segmenter.segment(validation.images[0].path)
    result.save(given.output / "first")
    print(validation.images[0].name, "shows", ", ".join(result.names))


if __name__ == "__main__":
    main()

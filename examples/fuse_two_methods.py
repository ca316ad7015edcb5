"""Compare the product of class activation maps and DCSM with its factors, in a segmenter.

    python examples/fuse_two_methods.py [--scenes N]

Runs offline. Prints the mean IoU of the masks of each method, before the CRF. The shipped network was trained with max
pooling, so its class activation maps are small spots, and the product is worse than DCSM: measure on your own network.
"""

import argparse

import torch

from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, FusedSaliency, Segmenter
from dcsm_attr.datasets.scenes import generate_scene
from dcsm_attr.demo import scene_classifier
from dcsm_attr.evaluation.metrics import confusion_matrix, mean_iou


def main() -> None:
    """Segment scenes with known classes, with three kinds of maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40)
    given = parser.parse_args()

    classifier = scene_classifier()
    scenes = [scene for i in range(given.scenes) if (scene := generate_scene(i, seed=3)).present.any()]
    images, known = [s.image for s in scenes], [s.present.nonzero()[:, 0].tolist() for s in scenes]
    truth = torch.stack([s.labels for s in scenes])
    cam, dcsm = ClassActivationMaps(classifier.network), DistinctClassSaliency(classifier.network)
    for name, saliency in {"CAM": cam, "DCSM": dcsm, "product": FusedSaliency(cam, dcsm)}.items():
        segmenter = Segmenter(classifier.network, saliency=saliency, crf=None, preprocess=classifier.preprocess)
        labels = torch.stack([result.labels for result in segmenter.segment_batch(images, known)])
        print(f"{name:<8}{mean_iou(confusion_matrix(labels, truth, 1 + len(classifier.class_names))):.1%}")


if __name__ == "__main__":
    main()

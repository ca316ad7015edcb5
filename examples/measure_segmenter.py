"""Measure your own segmenter on images with masks: IoU per class, before and after the CRF.

    dcsm-attr scenes scenes --count 100
    python examples/measure_segmenter.py scenes
    python examples/measure_segmenter.py VOCdevkit/VOC2012 --weights best.safetensors --protocol known --count 50

This segmenter has another CRF than the default; all options of `Segmenter` can be tried in the same way. --weights is a
classifier of `dcsm-attr train`; the default is the shipped classifier of generated scenes.
"""

import argparse

from dcsm_attr import DenseCRF, DistinctClassSaliency, Segmenter
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.demo import scene_classifier
from dcsm_attr.evaluation.evaluate import evaluate
from dcsm_attr.models.checkpoint import load_classifier


def main() -> None:
    """Evaluate with one protocol and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voc_root")
    parser.add_argument("--weights")
    parser.add_argument("--protocol", choices=["known", "detected"], default="detected")
    parser.add_argument("--count", type=int, default=0, help="number of images of split val; 0: all")
    given = parser.parse_args()

    classifier = load_classifier(given.weights) if given.weights else scene_classifier()
    segmenter = Segmenter(
        classifier.network,
        saliency=DistinctClassSaliency(classifier.network, pooling=classifier.pooling),
        crf=DenseCRF(bilateral_weight=4),
        class_names=classifier.class_names,
        preprocess=classifier.preprocess,
    )
    measured = evaluate(segmenter, voc_collection(given.voc_root, "val").evenly_spaced(given.count), given.protocol)
    print(f"{'IoU in percent':<16}{'before':>8}{'after':>8}")
    rows = zip(("background", *measured.class_names), measured.unrefined.iou, measured.refined.iou, strict=True)
    for name, before, after in (*rows, ("mean", measured.unrefined.mean_iou, measured.refined.mean_iou)):
        print(f"{name:<16}{100 * before:>8.1f}{100 * after:>8.1f}")


if __name__ == "__main__":
    main()

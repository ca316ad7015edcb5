"""Segment any number of images in little memory; unreadable images are skipped.

    python examples/segment_stream.py FOLDER
    python examples/segment_stream.py FOLDER --weights best.safetensors --output out/labels

--weights is a classifier of `dcsm-attr train`; the default is the shipped classifier of generated scenes. Writes a
label map in the colors of PASCAL VOC per image, OUTPUT/NAME.png.
"""

import argparse

from dcsm_attr.datasets.collection import list_images
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.demo import scene_classifier
from dcsm_attr.io import make_writable_folder
from dcsm_attr.models.checkpoint import load_classifier
from dcsm_attr.segmentation.presets import build_preset_segmenter


def main() -> None:
    """Segment the images of a folder, four at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--weights")
    parser.add_argument("--output", default="out/labels")
    given = parser.parse_args()

    classifier = load_classifier(given.weights) if given.weights else scene_classifier()
    segmenter = build_preset_segmenter(
        classifier.network,
        "paper",
        pooling=classifier.pooling,
        class_names=classifier.class_names,
        preprocess=classifier.preprocess,
    )
    paths, output = list_images(given.folder), make_writable_folder(given.output)
    results = segmenter.segment_stream(paths, batch_size=4, allowed_errors=ImageReadError)
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, ImageReadError):
            print(f"skipped: {result}")
        else:
            label_image(result.display_labels()).save(output / f"{path.stem}.png")
            print(f"{path.name}: {', '.join(result.names)}")


if __name__ == "__main__":
    main()

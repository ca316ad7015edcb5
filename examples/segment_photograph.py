"""From an image to a label map, with a torchvision network.

    python examples/segment_photograph.py PHOTO
    python examples/segment_photograph.py PHOTO --output out --model squeezenet1_1 --weights FILE

Without --weights, torchvision's are downloaded once. Writes labels.png, maps.npz, overlay.png, overview.png and
manifest.json.
"""

import argparse

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.models.weights import load_class_names, load_model


def main() -> None:
    """Segment one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph")
    parser.add_argument("--output", default="out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="DEFAULT")
    arguments = parser.parse_args()

    model = load_model(arguments.model, arguments.weights)
    segmenter = Segmenter(model, crf=DenseCRF(iterations=10), class_names=load_class_names("imagenet"))
    result = segmenter.segment(arguments.photograph, raw=True)
    print("found:", ", ".join(result.names))
    for path in result.save(arguments.output, overview=True):
        print(path)


if __name__ == "__main__":
    main()

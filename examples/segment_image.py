"""From an image to a label map, with a torchvision network.

    python examples/segment_image.py IMAGE
    python examples/segment_image.py IMAGE --output out --model squeezenet1_1 --weights FILE

Without --weights, torchvision's weights are downloaded once. Writes labels.png, maps.npz, overlay.png, overview.png and
manifest.json.
"""

import argparse

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.models.weights import load_class_names, load_model


def main() -> None:
    """Segment one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--output", default="out")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="DEFAULT")
    arguments = parser.parse_args()

    model = load_model(arguments.model, arguments.weights)
    segmenter = Segmenter(model, crf=DenseCRF(iterations=10), class_names=load_class_names("imagenet"))
    result = segmenter.segment(arguments.image, raw=True)
    print("found:", ", ".join(result.names))
    for path in result.save(arguments.output, overview=True):
        print(path)


if __name__ == "__main__":
    main()

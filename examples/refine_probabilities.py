"""The dense CRF alone, on label probabilities of any network.

    python examples/refine_probabilities.py IMAGE PROBABILITIES.npy
    python examples/refine_probabilities.py IMAGE PROBABILITIES.npy --output labels.png --color 3

PROBABILITIES.npy is an array (L, H, W) in [0, 1] with one map per label and the size of the image, for example from
`numpy.save("probabilities.npy", scores.softmax(dim=1)[0].numpy())`.
"""

import argparse

import numpy as np
import torch

from dcsm_attr import DenseCRF
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.masks import label_image


def main() -> None:
    """Refine the probabilities of one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("probabilities")
    parser.add_argument("--color", type=float, default=1.0, help="weight of color")
    parser.add_argument("--output", default="labels.png")
    given = parser.parse_args()

    image = torch.from_numpy(np.array(read_image(given.image))).permute(2, 0, 1)
    probabilities = torch.from_numpy(np.load(given.probabilities)).float()
    crf = DenseCRF(bilateral_weight=given.color)
    labels = crf(probabilities[None], image[None])[0].argmax(dim=0)
    changed = (labels != probabilities.argmax(dim=0)).float().mean()
    label_image(labels.numpy()).save(given.output)
    print(f"{given.output}: {changed:.1%} of the pixels have a new label")


if __name__ == "__main__":
    main()

"""Make any saliency method stochastic, and label pixels by FickleNet's rule: where one of many maps is confident.

    python examples/stochastic_maps.py
    python examples/stochastic_maps.py --samples 50 --dropout 0.3

A layer that drops channels in evaluation mode too is put into the head of the shipped network, so that DCSM gives other
maps in each run. Runs offline, on a generated scene; prints how much of the objects is covered by one map and by all.
"""

import argparse

import torch
from torch import Tensor, nn

from dcsm_attr import DistinctClassSaliency
from dcsm_attr.datasets.scenes import generate_scene
from dcsm_attr.models.scene_net import MEAN, STD, load_scene_net
from dcsm_attr.wsss.ficklenet import aggregate_maps


class AlwaysDropout(nn.Module):
    """Dropout of channels that is active in evaluation mode, with a random generator of its own.

    A saliency method sets the model to evaluation mode and restores PyTorch's random state, so that ``nn.Dropout``
    would drop nothing.
    """

    def __init__(self, probability: float, seed: int = 0) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels of ``(N, D, h, w)`` and scale up the others."""
        kept = torch.rand(*x.shape[:2], 1, 1, generator=self.generator) >= self.probability
        return x * kept.to(x) / (1 - self.probability)


def main() -> None:
    """Map one scene many times and aggregate the maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20, help="number of maps per class")
    parser.add_argument("--dropout", type=float, default=0.5, help="probability that a channel is dropped")
    arguments = parser.parse_args()

    model = load_scene_net()
    model.classifier.insert(2, AlwaysDropout(arguments.dropout))
    method = DistinctClassSaliency(model)
    scene = generate_scene(3, seed=1)
    image = (scene.image[None] / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    classes = scene.present.nonzero()[:, 0].tolist()
    maps = [method.class_maps(image, classes).select_classes(classes) for _ in range(arguments.samples)]
    objects = scene.labels > 0
    for count in (1, arguments.samples):
        labels = aggregate_maps(maps[:count]).labels(classes)
        right = (labels == scene.labels) & objects
        print(f"{count} maps: {100 * right.sum() / objects.sum():.1f} % of the objects' pixels have the right label")


if __name__ == "__main__":
    main()

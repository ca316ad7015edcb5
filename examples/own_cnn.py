"""A CNN of your own, whatever its forward pass looks like: the layers that are chosen for it, and layers that you name.

    python examples/own_cnn.py

Runs offline, with weights drawn at random: it shows how to call, not what a trained network sees.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcsm_attr import DistinctClassSaliency


class TwoPaths(nn.Module):
    """Functional rectifiers, a shared convolution, two paths that meet, and one logit per class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(16, 16, 5, padding=2), nn.Conv2d(16, 16, 1)
        self.shared, self.end = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, C)`` before sigmoid."""
        x = F.max_pool2d(self.stem(images).relu_(), 2)
        x = torch.cat([self.wide(x), self.narrow(x)], dim=1).relu()
        x = F.max_pool2d(F.relu(self.shared(F.relu(self.shared(x)))), 2)
        return self.fc(F.relu(self.end(x)).mean(dim=(2, 3)))


def main() -> None:
    """Attribute with layers that are chosen, and with the same ones named."""
    torch.manual_seed(0)
    model, images = TwoPaths(classes=5).eval(), torch.randn(2, 3, 64, 64)
    # A plain classifier's scores are read as a softmax; of a multi-label classifier that has to be said.
    chosen = DistinctClassSaliency(model, activation="sigmoid")
    print("chosen:", ", ".join(chosen.layers))
    # Where layers are named, maps are those of their outputs, as in Captum, unless their inputs are asked for.
    named = DistinctClassSaliency(model, [*chosen.layers[:-1], model.end], activation="sigmoid")
    at_inputs = named.class_maps(images, candidates=[0, 1, 2], attribute_to_layer_input=True).maps
    same = torch.equal(at_inputs, chosen.class_maps(images, candidates=[0, 1, 2]).maps)
    print("named, at their inputs:", "the same maps" if same else "other maps", tuple(at_inputs.shape))


if __name__ == "__main__":
    main()

"""Your own CNN with any forward pass: the default layers, and layers by name.

    python examples/own_cnn.py

Runs offline with random weights: it shows the calls, not useful maps.
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
    """Attribute with the default layers, and with the same layers by name."""
    torch.manual_seed(0)
    model, images = TwoPaths(classes=5).eval(), torch.randn(2, 3, 64, 64)
    # Scores (N, C) are converted by softmax by default; a multi-label classifier needs activation="sigmoid".
    chosen = DistinctClassSaliency(model, activation="sigmoid")
    print("chosen:", ", ".join(chosen.layers))
    # Maps of named layers are those of their outputs, as in Captum, unless attribute_to_layer_input is set.
    named = DistinctClassSaliency(model, [*chosen.layers[:-1], model.end], activation="sigmoid")
    at_inputs = named.class_maps(images, candidates=[0, 1, 2], attribute_to_layer_input=True).maps
    same = torch.equal(at_inputs, chosen.class_maps(images, candidates=[0, 1, 2]).maps)
    print("by name, at their inputs:", "the same maps" if same else "other maps", tuple(at_inputs.shape))


if __name__ == "__main__":
    main()

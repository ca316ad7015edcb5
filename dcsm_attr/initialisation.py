"""How a new layer of class scores begins."""

from torch import nn

__all__ = ["begin_unsure"]

# Most classes are absent from most pictures: a probability of 0.1 to begin with.
_NEW_BIAS = -2.2


def begin_unsure(layer: nn.Conv2d) -> None:
    """Draw the weights of a new layer of class scores, from PyTorch's global generator: each class is improbable.

    Args:
        layer: with a bias.
    """
    # Small beside the inputs, which for rectified class scores reach ten and more.
    nn.init.normal_(layer.weight, std=1 / layer.in_channels)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, _NEW_BIAS)

"""Transformers, which look like CNNs from outside."""

from torch import nn

__all__ = ["attention_of"]

# Modules through which class evidence travels by attention, by class name: torchvision's and timm's among them.
_ATTENTION = {
    "Attention",
    "Attention2d",
    "AttentionCl",
    "AttentionRope",
    "EvaAttention",
    "MultiheadAttention",
    "RelativePositionalMultiHeadAttention",
    "ShiftedWindowAttention",
    "ShiftedWindowAttentionV2",
    "WindowAttention",
    "WindowMultiHeadAttention",
}


def attention_of(model: nn.Module) -> str | None:
    """The class name of the first attention layer of a transformer; None for a CNN."""
    return next((type(m).__name__ for m in model.modules() if type(m).__name__ in _ATTENTION), None)

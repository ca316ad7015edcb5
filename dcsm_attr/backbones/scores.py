"""The scores in what a model returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["checked_scores", "scores_of"]

# torchvision's segmentation models, its GoogLeNet and Inception with auxiliary heads, and others after them.
_NAMES = ("out", "logits")


def scores_of(output: Any) -> Tensor:
    """Find the scores in what a model returns; auxiliary heads are left out.

    Args:
        output: a tensor; or a mapping or named tuple that holds one under ``out`` (torchvision's segmentation models)
            or ``logits`` (its GoogLeNet and Inception, where auxiliary heads are in use).

    Returns:
        The tensor, of whatever shape.

    Raises:
        TypeError: if nothing says which tensor holds the scores.
    """
    if isinstance(output, Tensor):
        return output
    for name in _NAMES:
        scores = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(scores, Tensor):
            return scores
    raise TypeError(
        "the model must return a tensor of scores, (N, C) or (N, C, h, w), or hold one under 'out' or 'logits'; it "
        f"returned {_outline(output)}. Wrap it in a module that picks the scores, whose forward is e.g. return "
        "self.model(x)['name'] or self.model(x)[0]."
    )


def checked_scores(output: Any, images: int) -> Tensor:
    """Find the scores in what a model returns, one for each class of each image.

    Args:
        output: as in :func:`scores_of`.
        images: N, the number of images that the model was given.

    Returns:
        ``(N, C)`` or ``(N, C, h, w)``.

    Raises:
        TypeError: as :func:`scores_of`.
        ValueError: if the scores have another shape.
    """
    scores = scores_of(output)
    if scores.ndim not in (2, 4) or scores.shape[0] != images or scores.shape[1] == 0:
        raise ValueError(
            f"the model must return scores of shape (N, C) or (N, C, h, w) with N = {images}; it returned "
            f"{tuple(scores.shape)}."
        )
    return scores


def _outline(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(repr, output)) or 'nothing'}"
    return f"{kind} of {len(output)}" if isinstance(output, (tuple, list)) else kind

"""The loss of AffinityNet."""

import torch
from torch import Tensor

from dcsm_attr.affinity.labels import PairLabels

__all__ = ["affinity_loss"]

# Of the release.
_SMALLEST = 1e-5


def affinity_loss(affinities: Tensor, labels: PairLabels) -> Tensor:
    r"""Cross entropy of affinities, balanced between pairs of the foreground, of the background, and different ones.

    .. math::
        L = \frac14 L^+_{fg} + \frac14 L^+_{bg} + \frac12 L^-,\quad
        L^+ = -\overline{\log W_{ij}},\quad L^- = -\overline{\log (1 - W_{ij})}

    Each mean is over the pairs of its kind in the whole batch (Ahn and Kwak, Eq. 5 to 8; the weights and the 1e-5 in
    the logarithms and the counts are the release's).

    Args:
        affinities: ``(N, P, h, w)`` in [0, 1].
        labels: of the same pairs.

    Returns:
        Scalar, float32; zero where no pair is known.
    """
    values = affinities.float()
    different = _mean(torch.log(1.0 + _SMALLEST - values), labels.different)
    foreground, background = (
        _mean(torch.log(values + _SMALLEST), equal) for equal in (labels.foreground, labels.background)
    )
    return -(foreground / 4 + background / 4 + different / 2)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    # The others may be infinite: chosen, not multiplied by zero.
    return torch.where(chosen, values, 0.0).sum() / (chosen.sum() + _SMALLEST)

r"""Mean field inference for a fully connected CRF with Potts compatibility.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm
1), for the energy of Eq. 6 and 8 of DCSM.
"""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Pairwise", "mean_field"]

# Far enough from where exponentials of four-byte numbers overflow or lose digits.
_SAFE = 80.0
# Values that fit into the cache of one core: messages are read and turned into probabilities before they leave it.
_BLOCK = 2**18


class Pairwise(Protocol):
    r"""The pairwise terms: :math:`\sum_m w_m \tilde K_m`, in two steps."""

    def on_vertices(self, q: Tensor) -> Tensor:
        """What all points ``(P, V)`` say, gathered, in memory of its own."""
        ...

    def messages(self, on_vertices: Tensor, points: slice) -> Tensor:
        """What some of the points hear of it, ``(p, V)``, in fresh memory."""
        ...


def mean_field(unary: Tensor, pairwise: Pairwise | None, iterations: int) -> Tensor:
    r"""Approximate the marginals :math:`Q` of the CRF.

    Starts at :math:`Q = softmax(-U)`; each iteration sets :math:`Q \propto \exp(-U + \sum_m w_m \tilde K_m Q)`, which
    is the Potts model up to a term equal for all labels of a point.

    Args:
        unary: ``(P, ..., L)`` energies :math:`U`, for example negative log probabilities; dimensions in the middle
            count labellings of the same points, which do not see each other.
        pairwise: the pairwise terms, applied to the columns of ``(P, V)``. None: there are none.
        iterations: 0 returns the start.

    Returns:
        ``(P, ..., L)``, summing to one over the labels.
    """
    # The labels of a point side by side in memory: all of them are read together.
    unary = unary.contiguous()
    q = torch.empty_like(unary)
    step = len(q) if q.device.type != "cpu" else max(1, _BLOCK // q[0].numel())
    blocks = [slice(start, start + step) for start in range(0, len(q), step)]
    for points in blocks:
        q[points] = _over_labels(-unary[points])
    if pairwise is None:
        return q
    for _ in range(iterations):
        on_vertices = pairwise.on_vertices(q.flatten(1))
        for points in blocks:
            heard = pairwise.messages(on_vertices, points).view_as(unary[points])
            q[points] = _over_labels(heard.sub_(unary[points]))
    return q


def _over_labels(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; may overwrite its argument.

    On the CPU, :func:`torch.softmax` is slow along so short a dimension (65,536 points of 4 labels: 2.4 ms, these three
    steps 0.3 ms). Without its subtraction of the maximum they are as exact wherever no exponential overflows.
    """
    if logits.device.type != "cpu":
        return torch.softmax(logits, dim=-1)
    lowest, highest = logits.aminmax()
    if not (lowest > -_SAFE and highest < _SAFE):  # Neither if one is not a number.
        return torch.softmax(logits, dim=-1)
    return logits.exp_().div_(logits.sum(dim=-1, keepdim=True))

r"""Mean field inference for a fully connected CRF with Potts compatibility.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm
1), for the energy of Eq. 6 and 8 of DCSM.
"""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["mean_field"]

# So few labels make rows too short for a vectorised softmax on the CPU (two cores, 187,500 points: 4 labels 2.2 ms
# along the first dimension, 6.5 ms along the last; 21 labels 9 and 2.5 ms).
_FEW_LABELS = 12


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
    q = _over_labels(-unary)
    if pairwise is None:
        return q
    step = len(q) if q.device.type != "cpu" else max(1, _BLOCK // q[0].numel())
    blocks = [slice(start, start + step) for start in range(0, len(q), step)]
    for _ in range(iterations):
        on_vertices = pairwise.on_vertices(q.flatten(1))
        for points in blocks:
            heard = pairwise.messages(on_vertices, points).view_as(unary[points])
            q[points] = _over_labels(heard.sub_(unary[points]))
    return q


def _over_labels(logits: Tensor) -> Tensor:
    """Softmax over the last dimension.

    Where labels are few on the CPU, not by :func:`torch.softmax` along the first dimension, whose last bits depend on
    where a point lies: what a photograph gets must not depend on the others of its batch.
    """
    if logits.device.type != "cpu" or logits.shape[-1] > _FEW_LABELS:
        return torch.softmax(logits, dim=-1)
    by_label = logits.movedim(-1, 0).contiguous()
    exponentials = (by_label - by_label.amax(dim=0)).exp_()
    total = exponentials[0].clone()
    for of_label in exponentials[1:]:
        total += of_label
    return exponentials.div_(total).movedim(0, -1).contiguous()

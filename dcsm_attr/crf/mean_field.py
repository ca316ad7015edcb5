r"""Mean field inference for a fully connected CRF with Potts compatibility.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm
1), for the energy of Eq. 6 and 8 of DCSM.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["mean_field"]

# So few labels make rows too short for a vectorised softmax on the CPU (two cores, 187,500 points: 4 labels 2.2 ms
# along the first dimension, 6.5 ms along the last; 21 labels 9 and 2.5 ms).
_FEW_LABELS = 12


def mean_field(unary: Tensor, pairwise: Callable[[Tensor], Tensor] | None, iterations: int) -> Tensor:
    r"""Approximate the marginals :math:`Q` of the CRF.

    Starts at :math:`Q = softmax(-U)`; each iteration sets :math:`Q \propto \exp(-U + \sum_m w_m \tilde K_m Q)`, which
    is the Potts model up to a term equal for all labels of a point.

    Args:
        unary: ``(P, ..., L)`` energies :math:`U`, for example negative log probabilities; dimensions in the middle
            count labellings of the same points, which do not see each other.
        pairwise: :math:`\sum_m w_m \tilde K_m`, applied to the columns of ``(P, V)``; the result is overwritten. None:
            there is none.
        iterations: 0 returns the start.

    Returns:
        ``(P, ..., L)``, summing to one over the labels.
    """
    q = _over_labels(-unary)
    if pairwise is None:
        return q
    for _ in range(iterations):
        q = _over_labels(pairwise(q.flatten(1)).view_as(q).sub_(unary))
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

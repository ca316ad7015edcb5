r"""Mean field inference for a fully connected CRF with Potts compatibility.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm
1), for the energy of Eq. 6 and 8 of DCSM.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dcsm_attr.crf.permutohedral import PermutohedralLattice

__all__ = ["GaussianKernel", "mean_field"]

# Keeps the normalisation finite where the lattice gives a point nothing, as the reference library does.
_SMALLEST_MASS = 1e-20


@dataclass(frozen=True)
class GaussianKernel:
    """One weighted Gaussian of Eq. 8, symmetrically normalised: :math:`w D^{-1/2} K D^{-1/2}` with :math:`D = K 1`.

    Attributes:
        lattice: filters with :math:`K`.
        weight: :math:`w`, times the penalty of the Potts model.
        normalisation: ``(P, 1)``, :math:`D^{-1/2}`.
    """

    lattice: PermutohedralLattice
    weight: float
    normalisation: Tensor

    @staticmethod
    def build(features: Tensor, weight: float, groups: Tensor | None = None) -> "GaussianKernel":
        """Build the lattice and the normalisation.

        Args:
            features: ``(P, d)``, coordinates divided by the kernel's standard deviations.
            weight: see :attr:`weight`.
            groups: ``(P,)`` int64, the image of each point. None: one image.
        """
        lattice = PermutohedralLattice(features, groups)
        mass = lattice.filter(features.new_ones(len(features), 1))
        return GaussianKernel(lattice, weight, (mass + _SMALLEST_MASS).rsqrt())

    def message(self, q: Tensor) -> Tensor:
        """What each point hears of the labels around it, shaped as ``q``: larger where its neighbours agree."""
        columns = self.lattice.filter(q.flatten(1) * self.normalisation)
        return columns.mul_(self.normalisation).mul_(self.weight).view_as(q)


def mean_field(unary: Tensor, kernels: Sequence[GaussianKernel], iterations: int) -> Tensor:
    r"""Approximate the marginals :math:`Q` of the CRF.

    Starts at :math:`Q = softmax(-U)`; each iteration sets :math:`Q \propto \exp(-U + \sum_m w_m \tilde K_m Q)`, which
    is the Potts model up to a term equal for all labels of a point.

    Args:
        unary: ``(P, ..., L)`` energies :math:`U`, for example negative log probabilities; dimensions in the middle
            count labellings of the same points, which do not see each other.
        kernels: the pairwise terms.
        iterations: 0 returns the start.

    Returns:
        ``(P, ..., L)``, summing to one over the labels.
    """
    q = _over_labels(-unary)
    for _ in range(iterations):
        agreement = -unary
        for kernel in kernels:
            agreement = agreement.add_(kernel.message(q))
        q = _over_labels(agreement)
    return q


def _over_labels(logits: Tensor) -> Tensor:
    """Softmax over the last dimension, a few labels long: there the CPU is several times faster along the first.

    Not by :func:`torch.softmax`, whose last bits along the first dimension depend on where a point lies: what a
    photograph gets must not depend on the others of its batch.
    """
    by_label = logits.movedim(-1, 0).contiguous()
    exponentials = (by_label - by_label.amax(dim=0)).exp_()
    total = exponentials[0].clone()
    for of_label in exponentials[1:]:
        total += of_label
    return exponentials.div_(total).movedim(0, -1).contiguous()

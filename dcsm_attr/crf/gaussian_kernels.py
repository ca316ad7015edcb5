r"""The pairwise terms of Eq. 8: weighted Gaussians over the same points, normalised and applied together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcsm_attr.crf.permutohedral import PermutohedralLattice
from dcsm_attr.crf.row_sums import RowSums

__all__ = ["GaussianKernels"]

# Keeps the normalisation finite where the lattice gives a point nothing, as the reference library does.
_SMALLEST_MASS = 1e-20


@dataclass(frozen=True)
class GaussianKernels:
    r"""The sum of weighted Gaussians :math:`\sum_m w_m D_m^{-1/2} K_m D_m^{-1/2}` with :math:`D_m = K_m 1`.

    All lattices are splatted and sliced at once, and weights and normalisations are part of these: an iteration of mean
    field reads and writes the labels of each point once.

    Attributes:
        splat: points to the vertices of all lattices, one lattice after the other.
        blurs: for each lattice its number of vertices, and its blurs.
        slices: vertices to points.
    """

    splat: RowSums
    blurs: tuple[tuple[int, tuple[RowSums, ...]], ...]
    slices: RowSums

    @staticmethod
    def build(weighted: Sequence[tuple[PermutohedralLattice, float]]) -> "GaussianKernels":
        """Normalise the kernels and put them together.

        Args:
            weighted: one lattice or more over the same points, each with its :math:`w`, times the penalty of the Potts
                model.
        """
        points, starts, splat_weights, corners, slice_weights = [], [], [], [], []
        vertices = entries = 0
        for lattice, weight in weighted:
            splat, slices = lattice.splat, lattice.slices
            assert splat.first is not None
            mass = lattice.filter(splat.weights.new_ones(len(slices.rows), 1))
            normalisation = (mass + _SMALLEST_MASS).rsqrt()
            points.append(splat.rows)
            starts.append(splat.first + entries)
            splat_weights.append(splat.weights * normalisation.index_select(0, splat.rows)[:, 0])
            corners.append(slices.rows + vertices)
            slice_weights.append(slices.weights * (normalisation * (weight * lattice.gain)))
            vertices += lattice.vertices
            entries += len(splat.rows)
        return GaussianKernels(
            RowSums(torch.cat(points), torch.cat(splat_weights), torch.cat(starts)),
            tuple((lattice.vertices, lattice.blurs) for lattice, _ in weighted),
            RowSums(torch.cat(corners, dim=1), torch.cat(slice_weights, dim=1)),
        )

    def on_vertices(self, q: Tensor) -> Tensor:
        """Splat and blur the labels of all points, ``(P, V)``; :meth:`messages` reads the result."""
        on_vertices = self.splat(q)
        blurred = []
        parts = torch.split(on_vertices, [count for count, _ in self.blurs])
        for part, (_, blurs) in zip(parts, self.blurs, strict=True):
            for blur in blurs:
                part = blur(part)
            blurred.append(part)
        return torch.cat(blurred)

    def messages(self, on_vertices: Tensor, points: slice) -> Tensor:
        """What some of the points hear of the labels around them, ``(p, V)``: larger where neighbours agree."""
        return RowSums(self.slices.rows[points], self.slices.weights[points])(on_vertices)

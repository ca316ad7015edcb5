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
        lattices = [lattice for lattice, _ in weighted]
        points = torch.cat([lattice.splat.rows for lattice in lattices])
        splat_weights = torch.cat([lattice.splat.weights for lattice in lattices])
        corners = torch.cat([lattice.slices.rows for lattice in lattices], dim=1)
        slice_weights = torch.cat([lattice.slices.weights for lattice in lattices], dim=1)
        starts = []
        vertices = entries = 0
        column = 0
        for lattice, weight in weighted:
            splat, count = lattice.splat, lattice.slices.rows.shape[1]
            assert splat.first is not None
            mass = lattice.filter(splat.weights.new_ones(len(corners), 1))
            normalisation = mass.add_(_SMALLEST_MASS).rsqrt_()
            starts.append(splat.first + entries)
            of_entries = slice(entries, entries + len(splat.rows))
            splat_weights[of_entries] *= normalisation.index_select(0, splat.rows)[:, 0]
            of_corners = slice(column, column + count)
            corners[:, of_corners] += vertices
            slice_weights[:, of_corners] *= normalisation.mul_(weight * lattice.gain)
            vertices, entries, column = vertices + lattice.vertices, of_entries.stop, of_corners.stop
        return GaussianKernels(
            RowSums(points, splat_weights, torch.cat(starts)),
            tuple((lattice.vertices, lattice.blurs) for lattice in lattices),
            RowSums(corners, slice_weights),
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

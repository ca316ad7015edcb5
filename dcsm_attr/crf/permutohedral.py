r"""Gaussian filtering in ``d`` dimensions on the permutohedral lattice, in plain tensor operations.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010 (*ABD*).
Points in feature space are spread over the ``d + 1`` vertices of the simplex that encloses each (*splat*), the vertices
are blurred along the lattice's ``d + 1`` directions, and the points read their simplex again (*slice*). The cost grows
with the number of points, not with its square.

The vertices are made unique by sorting packed integer keys. The index of the image is part of the key, so that a batch
of images is one lattice with no connection between them.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PermutohedralLattice"]

_KEY_RANGE = 2**63 - 1


@dataclass(frozen=True)
class _Simplices:
    """The enclosing simplex of each point.

    Attributes:
        keys: ``(P, d + 1)`` int64, a packed key for each vertex.
        weights: ``(P, d + 1)``, barycentric, summing to one.
        steps: ``(d + 1,)`` int64, what moving by one along a direction adds to a key.
    """

    keys: Tensor
    weights: Tensor
    steps: Tensor


class PermutohedralLattice:
    """The lattice of one set of points; builds once, filters any number of values on them.

    Attributes:
        vertices: number of lattice vertices.
    """

    def __init__(self, features: Tensor, groups: Tensor | None = None) -> None:
        """Build the lattice.

        Args:
            features: ``(P, d)`` floating point: coordinates divided by the standard deviations of the Gaussian.
            groups: ``(P,)`` int64, not negative: points of different groups (images) do not see each other. None: one
                group.

        Raises:
            ValueError: if the features spread so far that packed keys would overflow 64 bits.
        """
        points, self._dimensions = features.shape
        simplices = _enclosing_simplices(features, groups)
        corners = self._dimensions + 1
        keys, vertex, counts = torch.unique(simplices.keys.flatten(), return_inverse=True, return_counts=True)
        self.vertices = len(keys)
        self._vertex_of_corner = vertex.view(points, corners)
        self._weights = simplices.weights
        # The same incidence, seen from the vertices: which points, with which weights.
        order = vertex.argsort(stable=True)
        self._point_of_entry = order.div(corners, rounding_mode="floor")
        self._weight_of_entry = simplices.weights.flatten()[order]
        self._first_entry = F.pad(counts.cumsum(0)[:-1], (1, 0))
        self._neighbours = [
            (_position(keys, keys + step, self.vertices), _position(keys, keys - step, self.vertices))
            for step in simplices.steps
        ]

    def filter(self, values: Tensor) -> Tensor:
        """Convolve values with the Gaussian of unit variance in feature space; not normalised.

        Args:
            values: ``(P, V)``, with the dtype of the features.

        Returns:
            ``(P, V)``.
        """
        on_vertices = values.new_zeros(self.vertices + 1, values.shape[1])
        # The last row stands for all vertices that do not exist; it stays zero.
        on_vertices[:-1] = F.embedding_bag(
            self._point_of_entry,
            values,
            self._first_entry,
            mode="sum",
            per_sample_weights=self._weight_of_entry,
        )
        for forward, backward in self._neighbours:
            blurred = on_vertices[forward].add_(on_vertices[backward])
            on_vertices[:-1].add_(blurred, alpha=0.5)
        sliced = F.embedding_bag(self._vertex_of_corner, on_vertices, mode="sum", per_sample_weights=self._weights)
        # Three taps (1/2, 1, 1/2) along each direction multiply a constant by this number, less at the lattice's rim.
        return sliced.mul_(1 / (1 + 2.0**-self._dimensions))


def _position(keys: Tensor, wanted: Tensor, missing: int) -> Tensor:
    """Index of each wanted key in the sorted keys, ``missing`` where it is not there."""
    index = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
    return torch.where(keys[index] == wanted, index, missing)


def _elevated(features: Tensor) -> Tensor:
    """Embed points in the hyperplane of ``d + 1`` coordinates that sum to zero (ABD, section 3.1), ``(d + 1, P)``.

    Scaled so that blurring the vertices with (1/2, 1, 1/2) gives a Gaussian of unit variance in feature space.
    """
    points, dimensions = features.shape
    # Rounded to the working precision, as in the reference library.
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=features.dtype).item()
    elevated = features.new_empty(dimensions + 1, points)
    tail = features.new_zeros(points)
    # Term by term, in the working precision: pixels lie on the faces of simplices by the thousand (integer coordinates,
    # grey colours), and rounding decides which vertices exist. Summed like this, the reference library has the same
    # ones.
    for axis in range(dimensions, 0, -1):
        scaled = features[:, axis - 1] * (1 / math.sqrt(axis * (axis + 1)) * deviation)
        elevated[axis] = tail - axis * scaled
        tail = tail + scaled
    elevated[0] = tail
    return elevated


def _enclosing_simplices(features: Tensor, groups: Tensor | None) -> _Simplices:
    points, dimensions = features.shape
    corners = dimensions + 1
    elevated = _elevated(features)
    # The nearest point whose coordinates are all multiples of d + 1 ...
    multiples = torch.round(elevated * (1 / corners))
    origin = multiples * corners
    excess = multiples.sum(dim=0).round_()
    # ... made to sum to zero: ranked by their distance from it, the outermost coordinates are moved (ABD, section 3.2).
    distance = elevated - origin
    rank = torch.argsort(torch.argsort(distance, dim=0, descending=True, stable=True), dim=0) + excess.long()
    too_low, too_high = rank < 0, rank > dimensions
    rank = rank + corners * (too_low.long() - too_high.long())
    origin = origin + corners * (too_low.to(origin.dtype) - too_high.to(origin.dtype))
    distance = elevated - origin
    # Coordinates in descending order of their distance: consecutive differences are the barycentric weights.
    ordered = torch.empty_like(distance).scatter_(0, rank, distance)
    weights = ordered[:-1].sub(ordered[1:]).flip(0) / corners
    weights = torch.cat([1 - (ordered[:1] - ordered[-1:]) / corners, weights])

    base, strides = _packed(origin[:-1].long(), groups, corners)
    strides = F.pad(strides, (0, 1))
    stride_by_rank = torch.empty(corners, points, dtype=torch.long, device=features.device)
    stride_by_rank.scatter_(0, rank, strides[:, None].expand(-1, points))
    # Vertex r adds r to all coordinates and takes d + 1 off the r ones that are ranked last.
    taken_off = F.pad(stride_by_rank.flip(0).cumsum(0)[:-1], (0, 0, 1, 0))
    keys = base + torch.arange(corners, device=features.device)[:, None] * strides.sum() - corners * taken_off
    return _Simplices(keys.T.contiguous(), weights.T.contiguous(), strides.sum() - corners * strides)


def _packed(coordinates: Tensor, groups: Tensor | None, margin: int) -> tuple[Tensor, Tensor]:
    """Pack coordinates ``(d, P)`` and group into one number each, in a mixed radix with a margin on both sides."""
    rows = coordinates if groups is None else torch.cat([coordinates, groups[None]])
    lowest = rows.amin(dim=1) - margin
    extents = (rows.amax(dim=1) - lowest + margin + 1).tolist()
    strides = [1]
    for extent in extents[:-1]:
        strides.append(strides[-1] * extent)
    if strides[-1] * extents[-1] > _KEY_RANGE:
        raise ValueError(
            "the features spread over too many lattice cells to be told apart in 64 bits: use larger standard "
            f"deviations, or fewer images at once; extents were {extents}."
        )
    packing = torch.tensor(strides, device=rows.device)
    return ((rows - lowest[:, None]) * packing[:, None]).sum(dim=0), packing[: len(coordinates)]

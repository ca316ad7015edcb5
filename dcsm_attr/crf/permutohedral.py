r"""Gaussian filtering in ``d`` dimensions on the permutohedral lattice, in plain tensor operations.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010 (*ABD*).
Values of points are distributed over the ``d + 1`` vertices of the enclosing simplex (*splat*), blurred along the
``d + 1`` directions of the lattice (*blur*), and interpolated at the points (*slice*). The cost is linear in the number
of points. :class:`GaussianKernels` combines several lattices over the same points into the pairwise term of Eq. 8;
:class:`RowSums` is the sparse product that all steps share.

Vertices are made unique by sorting packed integer keys. All coordinates of a vertex are congruent modulo d + 1, so a
key consists of quotients and one remainder; for usual images it fits into four bytes, which sort in half the time of
eight. The index of the image is part of the key, so a batch is one lattice without connections between its images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GaussianKernels", "PermutohedralLattice", "RowSums"]

# Keeps the normalization finite where a point has no mass, as in the reference library.
_MIN_MASS = 1e-20
# Largest key per integer type.
_KEY_RANGES = {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}


class PermutohedralLattice:
    """The lattice of one set of points, which filters any number of values on them.

    Attributes:
        vertices: number M of lattice vertices.
        gain: factor of the blurred values that makes the kernel one at its center.
        splat: points to vertices, ``(M, P)``.
        blurs: along each direction, ``(M, M)``.
        slices: vertices to points, ``(P, M)``.
    """

    def __init__(self, features: Tensor, groups: Tensor | None = None) -> None:
        """Builds the lattice.

        Args:
            features: ``(P, d)`` floating point: coordinates divided by the standard deviations of the Gaussian.
            groups: ``(P,)`` int64, not negative: points of different groups (images) are not connected. None: one
                group.

        Raises:
            ValueError: if the range of the features is so large that packed keys would overflow 64 bits.
        """
        points, dimensions = features.shape
        corners = dimensions + 1
        simplices = _enclosing_simplices(features, groups)
        weights = simplices.weights.T.contiguous()
        # One sort gives the vertices, the start of each, and its points in their order.
        ordered, entry = simplices.keys.T.flatten().sort(stable=True)
        begins = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
        first = begins.nonzero().flatten()
        keys = ordered[first]
        # int32 halves the memory traffic.
        integers = torch.int32 if len(entry) < 2**31 else torch.int64
        vertex = torch.empty_like(entry, dtype=integers)
        vertex.scatter_(0, entry, begins.cumsum(0, dtype=integers).sub_(1))
        self.vertices = len(keys)
        # A value of 1 at a vertex keeps 1 there after all blurs, plus 2 ** -(d + 1) for each of two closed paths: one
        # step along every direction (the steps sum to zero), or one step against every direction.
        self.gain = 1 / (1 + 2.0**-dimensions)
        points_of_entries = entry.div(corners, rounding_mode="floor").to(integers)
        self.splat = RowSums(points_of_entries, weights.take(entry), first.to(integers))
        self.blurs = tuple(_blur(keys, simplices.ahead(keys, i), weights.dtype, integers) for i in range(corners))
        self.slices = RowSums(vertex.view(points, corners), weights)

    def filter(self, values: Tensor) -> Tensor:
        """Convolves values with the Gaussian of unit variance in feature space, without normalization.

        Args:
            values: ``(P, V)``, with the dtype of the features.

        Returns:
            ``(P, V)``.
        """
        vertex_values = self.splat(values)
        for blur in self.blurs:
            vertex_values = blur(vertex_values)
        return self.slices(vertex_values).mul_(self.gain)


@dataclass(frozen=True)
class RowSums:
    """A sparse matrix whose rows are weighted sums of rows of its operand.

    Attributes:
        rows: int32 or int64 indices; ``(R, k)`` if each of the R sums has k entries, otherwise ``(E,)``, one sum after
            the other.
        weights: floating point, same shape as ``rows``.
        first: ``(R,)``, same dtype as ``rows``: start of each sum in ``rows``. None: ``rows`` is ``(R, k)``.
    """

    rows: Tensor
    weights: Tensor
    first: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Multiplies values ``(Q, V)``, with the dtype of the weights; returns ``(R, V)``."""
        return F.embedding_bag(self.rows, values, self.first, mode="sum", per_sample_weights=self.weights)


@dataclass(frozen=True)
class GaussianKernels:
    r"""The sum of weighted Gaussians :math:`\sum_m w_m D_m^{-1/2} K_m D_m^{-1/2}` with :math:`D_m = K_m 1`.

    Splatting and slicing include all lattices, weights and normalizations, so an iteration of mean field reads and
    writes the labels of each point once.

    Attributes:
        splat: points to the vertices of all lattices, one lattice after the other.
        blurs: per lattice its number of vertices and its blurs.
        slices: vertices to points.
    """

    splat: RowSums
    blurs: tuple[tuple[int, tuple[RowSums, ...]], ...]
    slices: RowSums

    @staticmethod
    def build(weighted: Sequence[tuple[PermutohedralLattice, float]]) -> "GaussianKernels":
        """Normalizes and combines kernels.

        Args:
            weighted: at least one lattice over the same points, each with its weight :math:`w` (times the Potts
                penalty).
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
            normalization = mass.add_(_MIN_MASS).rsqrt_()
            starts.append(splat.first + entries)
            of_entries = slice(entries, entries + len(splat.rows))
            splat_weights[of_entries] *= normalization.index_select(0, splat.rows)[:, 0]
            of_corners = slice(column, column + count)
            corners[:, of_corners] += vertices
            slice_weights[:, of_corners] *= normalization.mul_(weight * lattice.gain)
            vertices, entries, column = vertices + lattice.vertices, of_entries.stop, of_corners.stop
        return GaussianKernels(
            RowSums(points, splat_weights, torch.cat(starts)),
            tuple((lattice.vertices, lattice.blurs) for lattice in lattices),
            RowSums(corners, slice_weights),
        )

    def vertex_values(self, q: Tensor) -> Tensor:
        """Splats and blurs the labels of all points, ``(P, V)``; the result is an input of :meth:`messages`."""
        vertex_values = self.splat(q)
        blurred = []
        parts = torch.split(vertex_values, [count for count, _ in self.blurs])
        for part, (_, blurs) in zip(parts, self.blurs, strict=True):
            for blur in blurs:
                part = blur(part)
            blurred.append(part)
        return torch.cat(blurred)

    def messages(self, vertex_values: Tensor, points: slice) -> Tensor:
        """Returns the messages to some of the points, ``(p, V)``: the filtered labels of their neighbors."""
        return RowSums(self.slices.rows[points], self.slices.weights[points])(vertex_values)


@dataclass(frozen=True)
class _Simplices:
    """The enclosing simplex of each point.

    Attributes:
        keys: ``(d + 1, P)`` int32 or int64, a packed key per vertex.
        weights: ``(d + 1, P)``, barycentric coordinates, summing to one.
        strides: ``(d + 1,)``, increase of a key when the quotient of a coordinate grows by one. The last coordinate is
            not stored, because all coordinates sum to zero; its stride is 0.
    """

    keys: Tensor
    weights: Tensor
    strides: tuple[int, ...]

    def ahead(self, keys: Tensor, direction: int) -> Tensor:
        """Returns the keys of the next vertices in a direction: its coordinate shrinks by d, all others grow by one."""
        corners = len(self.strides)
        # At the last remainder, adding one to a coordinate carries over to its quotient.
        carries = (keys % corners == corners - 1).to(keys.dtype).mul_(sum(self.strides) - corners)
        return carries.add_(keys).add_(1 - self.strides[direction])


def _enclosing_simplices(features: Tensor, groups: Tensor | None) -> _Simplices:
    points, dimensions = features.shape
    corners = dimensions + 1
    elevated = _elevate(features)
    # The nearest point whose coordinates are all multiples of d + 1 ...
    multiples = torch.round(elevated * (1 / corners))
    origin = multiples * corners
    excess = multiples.sum(dim=0).round_()
    # ... changed so that they sum to zero: the coordinates with the largest distance are moved (ABD, section 3.2).
    rank = _descending_ranks(elevated - origin).add_(excess.to(torch.int8))
    turn = (rank < 0).to(torch.int8).sub_((rank > dimensions).to(torch.int8))
    multiples += turn
    rank = rank.add_(turn, alpha=corners).long()
    distance = elevated.sub_(torch.mul(multiples, corners, out=origin))
    # Coordinates in descending order of their distance: consecutive differences are the barycentric weights.
    ordered = torch.empty_like(distance).scatter_(0, rank, distance)
    weights = ordered[:-1].sub(ordered[1:]).flip(0) / corners
    weights = torch.cat([1 - (ordered[:1] - ordered[-1:]) / corners, weights])

    base, strides = _pack_keys(multiples[:-1], groups)
    stride_of = torch.tensor(strides, dtype=base.dtype, device=base.device)
    stride_by_rank = torch.empty(corners, points, dtype=base.dtype, device=base.device)
    stride_by_rank.scatter_(0, rank, stride_of[:, None].expand(-1, points))
    # Vertex r adds r to all coordinates and subtracts d + 1 from the r coordinates of the lowest rank.
    keys = torch.empty_like(stride_by_rank)
    keys[0] = base
    for r in range(1, corners):
        torch.sub(keys[r - 1], stride_by_rank[corners - r], out=keys[r]).add_(1)
    return _Simplices(keys, weights, strides)


def _elevate(features: Tensor) -> Tensor:
    """Embed points in the hyperplane of ``d + 1`` coordinates that sum to zero (ABD, section 3.1), ``(d + 1, P)``.

    Scaled so that blurring the vertices with (1/2, 1, 1/2) gives a Gaussian of unit variance in feature space.
    """
    points, dimensions = features.shape
    # Rounded to the working precision, as in the reference library.
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=features.dtype, device="cpu").item()
    elevated = features.new_empty(dimensions + 1, points)
    tail = features.new_zeros(points)
    # Summed term by term in the working precision, as in the reference library: many pixels lie on faces of simplices
    # (integer coordinates, gray colors), where rounding decides which vertices exist.
    for axis in range(dimensions, 0, -1):
        scaled = features[:, axis - 1] * (1 / math.sqrt(axis * (axis + 1)) * deviation)
        elevated[axis] = tail - axis * scaled
        tail = tail + scaled
    elevated[0] = tail
    return elevated


def _descending_ranks(distance: Tensor) -> Tensor:
    """Returns the rank of each row within its column, int8, 0 for the largest; ties keep their order.

    Counting larger values is much faster than sorting for a few rows.
    """
    rows = len(distance)
    ranks = torch.zeros(distance.shape, dtype=torch.int8, device=distance.device)
    for i in range(rows):
        for j in range(i + 1, rows):
            later = distance[j] > distance[i]
            ranks[i] += later
            ranks[j] += ~later
    return ranks


def _pack_keys(quotients: Tensor, groups: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """Packs the quotients ``(d, P)`` of the remainder-zero vertices, and the groups, into one integer key per point.

    The keys are mixed-radix numbers with the remainder as first digit. The ranges include a margin for the other
    vertices of a simplex and their neighbors, so that different vertices have different keys.
    """
    rows = [*quotients] if groups is None else [*quotients, groups]
    ends = torch.stack([torch.stack([row.amin(), row.amax()]).double() for row in rows]).tolist()
    spans = [highest - lowest + 4 for lowest, highest in ends]
    corners = len(quotients) + 1
    needed = corners * math.prod(spans)
    types = [integers for integers, largest in _KEY_RANGES.items() if needed <= largest]
    if not types:  # Also if a span is not finite.
        raise ValueError(
            "the features span too many lattice cells for 64-bit keys: use larger standard "
            f"deviations, or fewer images at once; extents were {spans}."
        )
    strides = [corners * math.prod(map(int, spans[:i])) for i in range(len(rows))]
    key = torch.zeros(quotients.shape[1], dtype=types[0], device=quotients.device)
    for row, (lowest, _), stride in zip(rows, ends, strides, strict=True):
        key.add_(row.to(types[0]).add_(2 - int(lowest)), alpha=stride)
    return key, (*strides[: len(quotients)], 0)


def _blur(keys: Tensor, wanted: Tensor, dtype: torch.dtype, integers: torch.dtype) -> RowSums:
    """Builds the blur along one direction: a vertex plus half of its two neighbors, where they exist."""
    count = len(keys)
    own = torch.arange(count, device=keys.device)
    ahead = torch.searchsorted(keys, wanted).clamp_(max=count - 1)
    has_ahead = keys[ahead] == wanted
    # A vertex is behind the one ahead of it; the extra last entry collects vertices without one.
    behind = own.new_full((count + 1,), -1).scatter_(0, torch.where(has_ahead, ahead, count), own)[:-1]
    has_behind = behind >= 0
    rows = torch.stack([own, torch.where(has_ahead, ahead, own), torch.where(has_behind, behind, own)], dim=1)
    weights = torch.stack([torch.ones_like(has_ahead), has_ahead, has_behind], dim=1).to(dtype)
    weights[:, 1:] *= 0.5
    return RowSums(rows.to(integers), weights)

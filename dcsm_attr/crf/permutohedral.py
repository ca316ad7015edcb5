r"""Gaussian filtering in ``d`` dimensions on the permutohedral lattice, in plain tensor operations.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010 (*ABD*).
Points in feature space are spread over the ``d + 1`` vertices of the simplex that encloses each (*splat*), the vertices
are blurred along the lattice's ``d + 1`` directions, and the points read their simplex again (*slice*). The cost grows
with the number of points, not with its square.

The vertices are made unique by sorting packed integer keys. The coordinates of a vertex are all congruent modulo d + 1,
so that quotients and one remainder make a key: small enough for four bytes with photographs, which sort in half the
time. The index of the image is part of the key, so that a batch of images is one lattice with no connection between
them.

Weighted sums of rows: what splatting, blurring and slicing have in common.

The pairwise terms of Eq. 8: weighted Gaussians over the same points, normalized and applied together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["GaussianKernels", "PermutohedralLattice", "RowSums"]


@dataclass(frozen=True)
class RowSums:
    """A sparse matrix, as sums of weighted rows of what it is applied to.

    Attributes:
        rows: int32 or int64: which rows; ``(R, k)`` where each of the R sums has k, else ``(E,)``, one sum after the
            other.
        weights: floating point, shaped as ``rows``.
        first: ``(R,)`` of the type of ``rows``: where each sum begins in ``rows``. None: ``rows`` is ``(R, k)``.
    """

    rows: Tensor
    weights: Tensor
    first: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Sum rows of ``(Q, V)``, with the dtype of the weights, to ``(R, V)``."""
        return F.embedding_bag(self.rows, values, self.first, mode="sum", per_sample_weights=self.weights)


_KEY_RANGES = {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}


@dataclass(frozen=True)
class _Simplices:
    """The enclosing simplex of each point.

    Attributes:
        keys: ``(d + 1, P)`` int32 or int64, a packed key for each vertex.
        weights: ``(d + 1, P)``, barycentric, summing to one.
        strides: ``(d + 1,)``, what one more of a coordinate's quotient adds to a key; the last coordinate is not part
            of it, as all of them sum to zero.
    """

    keys: Tensor
    weights: Tensor
    strides: tuple[int, ...]

    def ahead(self, keys: Tensor, direction: int) -> Tensor:
        """The keys one step further: all coordinates grow by one, that of the direction shrinks by d."""
        corners = len(self.strides)
        # From the last remainder on, adding one to a coordinate adds one to its quotient.
        carries = (keys % corners == corners - 1).to(keys.dtype).mul_(sum(self.strides) - corners)
        return carries.add_(keys).add_(1 - self.strides[direction])


class PermutohedralLattice:
    """The lattice of one set of points; builds once, filters any number of values on them.

    Attributes:
        vertices: number M of lattice vertices.
        gain: what the result of the blurs is to be multiplied with.
        splat: points to vertices, ``(M, P)``.
        blurs: along each direction, ``(M, M)``.
        slices: vertices to points, ``(P, M)``.
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
        points, dimensions = features.shape
        corners = dimensions + 1
        simplices = _enclosing_simplices(features, groups)
        weights = simplices.weights.T.contiguous()
        # One sort gives all: the vertices, where each begins, and which points it has, in their order.
        ordered, entry = simplices.keys.T.flatten().sort(stable=True)
        begins = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
        first = begins.nonzero().flatten()
        keys = ordered[first]
        # Half the memory traffic wherever the numbers fit.
        integers = torch.int32 if len(entry) < 2**31 else torch.int64
        vertex = torch.empty_like(entry, dtype=integers)
        vertex.scatter_(0, entry, begins.cumsum(0, dtype=integers).sub_(1))
        self.vertices = len(keys)
        # Makes the kernel one at its center. Of a value at a vertex 1 stays there in all blurs, and 2 ** -(d + 1) comes
        # back on each of two ways: a step along every direction, which sum to zero, or a step against each.
        self.gain = 1 / (1 + 2.0**-dimensions)
        points_of_entries = entry.div(corners, rounding_mode="floor").to(integers)
        self.splat = RowSums(points_of_entries, weights.take(entry), first.to(integers))
        self.blurs = tuple(_blur(keys, simplices.ahead(keys, i), weights.dtype, integers) for i in range(corners))
        self.slices = RowSums(vertex.view(points, corners), weights)

    def filter(self, values: Tensor) -> Tensor:
        """Convolve values with the Gaussian of unit variance in feature space; not normalized.

        Args:
            values: ``(P, V)``, with the dtype of the features.

        Returns:
            ``(P, V)``.
        """
        vertex_values = self.splat(values)
        for blur in self.blurs:
            vertex_values = blur(vertex_values)
        return self.slices(vertex_values).mul_(self.gain)


def _blur(keys: Tensor, wanted: Tensor, dtype: torch.dtype, integers: torch.dtype) -> RowSums:
    """Each of the sorted vertices and half of its two neighbors; one that does not exist counts with weight zero."""
    count = len(keys)
    own = torch.arange(count, device=keys.device)
    ahead = torch.searchsorted(keys, wanted).clamp_(max=count - 1)
    has_ahead = keys[ahead] == wanted
    # Who has one ahead is behind it; the last row takes those that have none.
    behind = own.new_full((count + 1,), -1).scatter_(0, torch.where(has_ahead, ahead, count), own)[:-1]
    has_behind = behind >= 0
    rows = torch.stack([own, torch.where(has_ahead, ahead, own), torch.where(has_behind, behind, own)], dim=1)
    weights = torch.stack([torch.ones_like(has_ahead), has_ahead, has_behind], dim=1).to(dtype)
    weights[:, 1:] *= 0.5
    return RowSums(rows.to(integers), weights)


def _elevate(features: Tensor) -> Tensor:
    """Embed points in the hyperplane of ``d + 1`` coordinates that sum to zero (ABD, section 3.1), ``(d + 1, P)``.

    Scaled so that blurring the vertices with (1/2, 1, 1/2) gives a Gaussian of unit variance in feature space.
    """
    points, dimensions = features.shape
    # Rounded to the working precision, as in the reference library.
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=features.dtype, device="cpu").item()
    elevated = features.new_empty(dimensions + 1, points)
    tail = features.new_zeros(points)
    # Term by term, in the working precision: pixels lie on the faces of simplices by the thousand (integer coordinates,
    # gray colors), and rounding decides which vertices exist. Summed like this, the reference library has the same
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
    elevated = _elevate(features)
    # The nearest point whose coordinates are all multiples of d + 1 ...
    multiples = torch.round(elevated * (1 / corners))
    origin = multiples * corners
    excess = multiples.sum(dim=0).round_()
    # ... made to sum to zero: ranked by their distance from it, the outermost coordinates are moved (ABD, section 3.2).
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
    # Vertex r adds r to all coordinates and takes d + 1 off the r ones that are ranked last.
    keys = torch.empty_like(stride_by_rank)
    keys[0] = base
    for r in range(1, corners):
        torch.sub(keys[r - 1], stride_by_rank[corners - r], out=keys[r]).add_(1)
    return _Simplices(keys, weights, strides)


def _descending_ranks(distance: Tensor) -> Tensor:
    """The rank of each row in each column, int8, 0 for the largest; of equal ones the first comes first.

    By counting the larger ones: for a handful of rows much faster than sorting.
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
    """Pack the coordinates of remainder zero ``(d, P)``, divided by d + 1, and the group into one integer each.

    In a mixed radix, the remainder first. The vertices of a simplex lie up to one below, and their neighbors up to one
    around these: no two get the same key.
    """
    rows = [*quotients] if groups is None else [*quotients, groups]
    ends = torch.stack([torch.stack([row.amin(), row.amax()]).double() for row in rows]).tolist()
    spans = [highest - lowest + 4 for lowest, highest in ends]
    corners = len(quotients) + 1
    needed = corners * math.prod(spans)
    types = [integers for integers, largest in _KEY_RANGES.items() if needed <= largest]
    if not types:  # Nor is there one if a span is not finite.
        raise ValueError(
            "the features spread over too many lattice cells to be told apart in 64 bits: use larger standard "
            f"deviations, or fewer images at once; extents were {spans}."
        )
    strides = [corners * math.prod(map(int, spans[:i])) for i in range(len(rows))]
    key = torch.zeros(quotients.shape[1], dtype=types[0], device=quotients.device)
    for row, (lowest, _), stride in zip(rows, ends, strides, strict=True):
        key.add_(row.to(types[0]).add_(2 - int(lowest)), alpha=stride)
    return key, (*strides[: len(quotients)], 0)


# Keeps the normalization finite where the lattice gives a point nothing, as the reference library does.
_MIN_MASS = 1e-20


@dataclass(frozen=True)
class GaussianKernels:
    r"""The sum of weighted Gaussians :math:`\sum_m w_m D_m^{-1/2} K_m D_m^{-1/2}` with :math:`D_m = K_m 1`.

    All lattices are splatted and sliced at once, and weights and normalizations are part of these: an iteration of mean
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
        """Normalize the kernels and put them together.

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
        """Splat and blur the labels of all points, ``(P, V)``; :meth:`messages` reads the result."""
        vertex_values = self.splat(q)
        blurred = []
        parts = torch.split(vertex_values, [count for count, _ in self.blurs])
        for part, (_, blurs) in zip(parts, self.blurs, strict=True):
            for blur in blurs:
                part = blur(part)
            blurred.append(part)
        return torch.cat(blurred)

    def messages(self, vertex_values: Tensor, points: slice) -> Tensor:
        """What some of the points hear of the labels around them, ``(p, V)``: larger where neighbors agree."""
        return RowSums(self.slices.rows[points], self.slices.weights[points])(vertex_values)

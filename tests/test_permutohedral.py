"""The lattice compared with a plain Python reference and with the Gaussian that it approximates."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.crf.permutohedral import PermutohedralLattice, _enclosing_simplices


def _reference_filter(features, values):
    """Splat, blur, slice with a dictionary of vertices, point by point, as in section 3 of Adams et al."""
    count, d = features.shape
    deviation = math.sqrt(2 / 3) * (d + 1)
    table, simplices = {}, []
    for p in range(count):
        scaled = [features[p, i] * deviation / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
        elevated = [sum(scaled[j:]) - (j * scaled[j - 1] if j else 0) for j in range(d + 1)]
        origin = [round(e / (d + 1)) * (d + 1) for e in elevated]
        excess = sum(origin) // (d + 1)
        order = sorted(range(d + 1), key=lambda i: -(elevated[i] - origin[i]))
        rank = [0] * (d + 1)
        for position, i in enumerate(order):
            rank[i] = position + excess
        for i in range(d + 1):
            if rank[i] < 0:
                rank[i] += d + 1
                origin[i] += d + 1
            elif rank[i] > d:
                rank[i] -= d + 1
                origin[i] -= d + 1
        weights = [0.0] * (d + 2)
        for i in range(d + 1):
            share = (elevated[i] - origin[i]) / (d + 1)
            weights[d - rank[i]] += share
            weights[d + 1 - rank[i]] -= share
        weights[0] += 1 + weights[d + 1]
        corners = []
        for r in range(d + 1):
            key = tuple(origin[i] + (r if rank[i] <= d - r else r - (d + 1)) for i in range(d + 1))
            corners.append((key, weights[r]))
            table.setdefault(key, np.zeros(values.shape[1]))
            table[key] = table[key] + weights[r] * values[p]
        simplices.append(corners)
    for axis in range(d + 1):
        blurred = {}
        for key, value in table.items():
            step = [1] * (d + 1)
            step[axis] -= d + 1
            ahead = tuple(a + b for a, b in zip(key, step, strict=True))
            behind = tuple(a - b for a, b in zip(key, step, strict=True))
            blurred[key] = value + 0.5 * (table.get(ahead, 0) + table.get(behind, 0))
        table = blurred
    norm = 1 / (1 + 2.0**-d)
    return np.array([sum(w * table[key] for key, w in corners) for corners in simplices]) * norm


@given(st.integers(1, 6), st.integers(1, 60), st.integers(0, 10_000), st.floats(0.2, 6))
@settings(max_examples=60, deadline=None)
def test_filter_equals_the_reference(dimensions, points, seed, spread):
    random = np.random.default_rng(seed)
    features, values = random.normal(size=(points, dimensions)) * spread, random.normal(size=(points, 3))
    lattice = PermutohedralLattice(torch.from_numpy(features))
    result = lattice.filter(torch.from_numpy(values))
    np.testing.assert_allclose(result.numpy(), _reference_filter(features, values), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 6), st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_barycentric_weights_are_a_convex_combination(dimensions, seed, on_faces):
    features = torch.randn(50, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3
    if on_faces:
        features = features.round()
    weights = _enclosing_simplices(features, None).weights
    torch.testing.assert_close(weights.sum(0), torch.ones(50, dtype=torch.float64))
    assert weights.min() >= -1e-12


def test_filter_approximates_the_gaussian():
    features = torch.rand(700, 3, dtype=torch.float64) * 6
    values = torch.rand(700, 2, dtype=torch.float64)
    lattice = PermutohedralLattice(features).filter(values)
    exact = torch.exp(-0.5 * torch.cdist(features, features) ** 2) @ values
    # Up to one constant factor, which normalized filtering removes.
    factor = (lattice * exact).sum() / lattice.square().sum()
    assert (factor * lattice - exact).abs().max() < 0.06 * exact.max()


def test_groups_are_independent():
    features, values = torch.randn(90, 5), torch.rand(90, 4)
    groups = torch.arange(90) % 3
    together = PermutohedralLattice(features, groups).filter(values)
    for g in range(3):
        alone = PermutohedralLattice(features[groups == g]).filter(values[groups == g])
        assert torch.equal(together[groups == g], alone)


def test_equal_points_share_their_vertices():
    lattice = PermutohedralLattice(torch.zeros(10, 2))
    # All points lie in one simplex with three vertices.
    assert lattice.vertices == 3
    result = lattice.filter(torch.arange(10.0)[:, None])
    assert torch.allclose(result, result[:1].expand(10, 1))


def test_filtering_is_linear_and_positive():
    lattice = PermutohedralLattice(torch.randn(60, 3, dtype=torch.float64))
    matrix = lattice.filter(torch.eye(60, dtype=torch.float64))
    values = torch.randn(60, 2, dtype=torch.float64)
    torch.testing.assert_close(matrix @ values, lattice.filter(values))
    assert matrix.min() >= 0
    assert matrix.diagonal().min() > 0


@pytest.mark.parametrize("spread", [1e6, 1e300, math.inf])
def test_rejects_features_with_too_large_a_range(spread):
    features = torch.randn(8, 5, dtype=torch.float64) * spread
    with pytest.raises(ValueError, match="larger standard deviations"):
        PermutohedralLattice(features)

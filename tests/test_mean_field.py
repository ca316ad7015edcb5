"""Mean field against the exact kernels sums in float64, and its properties."""

import pytest
import torch

from dcsm_attr.crf import dense_crf
from dcsm_attr.crf.dense_crf import mean_field
from dcsm_attr.crf.permutohedral import GaussianKernels, PermutohedralLattice


class _Exact:
    """A kernel with the full matrix instead of the lattice."""

    def __init__(self, features, weight):
        matrix = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        normalization = matrix.sum(1, keepdim=True).rsqrt()
        self.matrix = weight * normalization * matrix * normalization.T

    def vertex_values(self, q):
        return q.clone()

    def messages(self, q, points):
        return self.matrix[points] @ q


def _lattice_kernels(features, weight):
    return GaussianKernels.build([(PermutohedralLattice(features), weight)])


def _problem(points=120, labels=3):
    features = torch.rand(points, 2, dtype=torch.float64) * 4
    return features, torch.rand(points, labels, dtype=torch.float64) * 3


def test_updates_equal_the_formula_term_by_term():
    features, unary = _problem(30)
    k = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    d = k.sum(1)
    normalized = k / (d[:, None] * d[None]).sqrt()
    q = torch.zeros_like(unary)
    for i in range(30):
        q[i] = torch.exp(-unary[i]) / torch.exp(-unary[i]).sum()
    for _ in range(4):
        new = torch.zeros_like(q)
        for i in range(30):
            energy = -unary[i].clone()
            for j in range(30):
                energy += 2.5 * normalized[i, j] * q[j]
            new[i] = torch.exp(energy) / torch.exp(energy).sum()
        q = new
    torch.testing.assert_close(mean_field(unary, _Exact(features, 2.5), 4), q, rtol=1e-10, atol=1e-12)


def test_the_lattice_approximates_the_exact_sums():
    features, unary = _problem(600)
    lattice = mean_field(unary, _lattice_kernels(features, 3.0), 10)
    exact = mean_field(unary, _Exact(features, 3.0), 10)
    assert (lattice.argmax(1) == exact.argmax(1)).double().mean() >= 0.98
    assert (lattice - exact).abs().mean() < 0.02


def test_without_kernels_or_iterations_it_is_the_softmax():
    features, unary = _problem()
    expected = torch.softmax(-unary, 1)
    # Sums over the labels may round differently.
    for q in (mean_field(unary, None, 5), mean_field(unary, _lattice_kernels(features, 1.0), 0)):
        torch.testing.assert_close(q, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shift", [0.0, 1e3, -1e3])
@pytest.mark.parametrize("scale", [1.0, 70.0, 200.0, 1e5])
@pytest.mark.parametrize("shape", [(50, 3), (50, 4, 2), (9, 2, 5, 3)])
def test_energies_of_any_size(shape, scale, shift):
    """Including energies whose exponentials overflow or vanish."""
    unary = torch.randn(shape) * scale + shift
    expected = torch.softmax(-unary.double(), -1)
    torch.testing.assert_close(mean_field(unary, None, 0).double(), expected, rtol=1e-4, atol=1e-30)


def test_the_unary_is_not_changed():
    features, unary = _problem()
    before = unary.clone()
    mean_field(unary, _lattice_kernels(features, 2.0), 3)
    assert torch.equal(unary, before)


@pytest.mark.parametrize("exact", [True, False])
def test_labelings_of_the_same_points_are_independent(exact):
    features, _ = _problem()
    unary = torch.rand(120, 2, 3, 4, dtype=torch.float64) * 3
    kernels = (_Exact if exact else _lattice_kernels)(features, 2.0)
    together = mean_field(unary, kernels, 5)
    assert together.shape == unary.shape
    for i in range(2):
        for j in range(3):
            alone = mean_field(unary[:, i, j], kernels, 5)
            torch.testing.assert_close(together[:, i, j], alone, rtol=1e-10, atol=1e-12)


def test_combined_kernels_equal_the_sum_of_single_kernels():
    """The expected sum applies each lattice's own filter with its normalization and weight."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(200, d, dtype=torch.float64, generator=generator) for d in (2, 5)]
    weights = (0.7, 4.0)
    lattices = [PermutohedralLattice(of_kernel) for of_kernel in features]
    q = torch.rand(200, 6, dtype=torch.float64, generator=generator)
    expected = torch.zeros_like(q)
    for lattice, weight in zip(lattices, weights, strict=True):
        mass = lattice.filter(torch.ones(200, 1, dtype=torch.float64))
        expected += weight * lattice.filter(q / mass.sqrt()) / mass.sqrt()
    kernels = GaussianKernels.build(list(zip(lattices, weights, strict=True)))
    vertex_values = kernels.vertex_values(q)
    for points in (slice(0, 200), slice(3, 77), slice(199, 400)):
        torch.testing.assert_close(kernels.messages(vertex_values, points), expected[points], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("labels", [2, 4, 12, 13, 21])
def test_the_result_of_a_point_does_not_depend_on_its_position(labels):
    unary = torch.rand(1000, labels) * 10
    whole = mean_field(unary, None, 0)
    for start, end in ((1, 8), (3, 500), (999, 1000)):
        assert torch.equal(mean_field(unary[start:end], None, 0), whole[start:end])


def test_blocks_do_not_change_the_result(monkeypatch):
    features, unary = _problem(600)
    whole = mean_field(unary, _lattice_kernels(features, 2.0), 4)
    monkeypatch.setattr(dense_crf, "_BLOCK", 70)
    assert torch.equal(mean_field(unary, _lattice_kernels(features, 2.0), 4), whole)


def test_permuting_labels_permutes_the_result():
    features, unary = _problem(labels=4)
    kernels = _lattice_kernels(features, 2.0)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(mean_field(unary[:, order], kernels, 5), mean_field(unary, kernels, 5)[:, order])


def test_uniform_unaries_stay_uniform():
    features, _ = _problem()
    q = mean_field(torch.zeros(120, 4, dtype=torch.float64), _lattice_kernels(features, 5.0), 10)
    torch.testing.assert_close(q, torch.full_like(q, 0.25))


def test_neighbors_agree():
    """Two distant clusters; in each, one point of five has another unary and is overruled."""
    features = torch.cat([torch.zeros(5, 2), torch.full((5, 2), 50.0)]).double()
    unary = torch.zeros(10, 2, dtype=torch.float64)
    unary[:4, 1], unary[4, 0] = 1.0, 0.5
    unary[5:9, 0], unary[9, 1] = 1.0, 0.5
    q = mean_field(unary, _lattice_kernels(features, 4.0), 10)
    assert q.argmax(1).tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("iterations", [1, 10])
def test_probabilities_sum_to_one(iterations):
    features, unary = _problem()
    q = mean_field(unary, _lattice_kernels(features, 2.0), iterations)
    torch.testing.assert_close(q.sum(1), torch.ones(120, dtype=torch.float64))

"""Claims of the pages on theory that no other test checks."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from dcsm_attr import DenseCRF, GuidedRectifiers
from dcsm_attr.attribution.layers import is_constant
from dcsm_attr.attribution.maps import subtract
from dcsm_attr.crf.permutohedral import GaussianKernels, PermutohedralLattice
from dcsm_attr.wsss.region_growing import TRAINING_CRF


def _gradient(network):
    """The gradient of one average-pooled score with respect to the input maps."""
    maps = torch.randn(1, 6, 12, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.double().eval()(maps).mean((2, 3))[0, 1], maps)
    return gradient


def test_gradients_are_constant_in_space_below_linear_layers_and_vary_below_gates():
    """dcsm.md: behind a pooled head, pointwise linear layers keep the gradient constant within the border."""
    pointwise = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Dropout(), nn.Conv2d(6, 4, 1))
    assert is_constant(_gradient(pointwise)).all()
    wider = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), pointwise)
    gradient = _gradient(wider)
    assert is_constant(gradient[..., 2:-2, 2:-2]).all()
    assert not is_constant(gradient).any()
    for gate in (nn.ReLU(), nn.MaxPool2d(2)):
        assert not is_constant(_gradient(nn.Sequential(gate, wider))[..., 4:-4, 4:-4]).any()


@pytest.mark.parametrize("guided", [False, True])
def test_the_seeds_of_two_classes_differ_by_position_only_behind_a_rectified_head(guided):
    """dcsm.md: behind a linear head, the difference of two classes' seeds is the same vector everywhere."""

    def difference(head):
        maps = torch.randn(1, 6, 5, 7, dtype=torch.float64, requires_grad=True)
        with GuidedRectifiers() if guided else nullcontext():
            first, second = head(maps)[0].sum((1, 2))
        seeds = [torch.autograd.grad(score, maps, retain_graph=True)[0] for score in (first, second)]
        return seeds[0] - seeds[1]

    assert is_constant(difference(nn.Conv2d(6, 2, 1).double())).all()
    rectified = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 2, 1)).double()
    assert not is_constant(difference(rectified)).any()


def test_eq_4_gives_the_highest_candidate_its_distance_from_the_mean_times_the_count():
    maps = torch.rand(1, 12, 4, 5, dtype=torch.float64)
    distinct = subtract(maps).gather(1, maps.argmax(1, keepdim=True))
    torch.testing.assert_close(distinct, 12 * (maps.amax(1, keepdim=True) - maps.mean(1, keepdim=True)))


@pytest.mark.parametrize(("dimensions", "across"), [(1, 2000), (2, 100), (3, 40)])
def test_the_lattice_has_the_covariance_of_the_gaussian(dimensions, across):
    """background-and-crf.md: 1/2 of the blurs, 1/12 each of splat and slice, times the square of the scale, are 1."""
    axis = torch.linspace(-6, 6, across, dtype=torch.float64)
    # Rotated, so that the grid of the points is not aligned with the lattice.
    turn = torch.linalg.qr(torch.randn(dimensions, dimensions, dtype=torch.float64)).Q
    points = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions) @ turn
    moments = torch.cat([torch.ones_like(points[:, :1]), points, points**2], dim=1)
    filtered = PermutohedralLattice(points).filter(moments)
    middle = points.norm(dim=1) < 2
    mass, first, second = filtered[middle].split([1, dimensions, dimensions], dim=1)
    own = points[middle]
    spread = (second - 2 * own * first + own**2 * mass).sum(dim=0) / mass.sum()
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=0.01)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_the_gain_of_the_lattice_makes_the_kernel_one_at_a_vertex(dimensions):
    points = torch.randn(20_000, dimensions, dtype=torch.float64)
    points[0] = 0
    alone = torch.zeros(len(points), 1, dtype=torch.float64)
    alone[0] = 1
    filtered = PermutohedralLattice(points).filter(alone)
    assert filtered[0].item() == pytest.approx(1, abs=1e-12)


def test_a_symmetrically_normalized_kernel_has_eigenvalues_between_zero_and_one():
    features = torch.rand(200, 2, dtype=torch.float64) ** 3 * 9
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    normalized = kernel * kernel.sum(1).rsqrt() * kernel.sum(1).rsqrt()[:, None]
    eigenvalues = torch.linalg.eigvalsh(normalized)
    assert eigenvalues[-1].item() == pytest.approx(1)
    assert eigenvalues[0] > -1e-12


def test_widths_in_pixels_scale_with_the_size_of_the_image():
    """seeded-networks.md: an image enlarged twofold with kernels twice as wide gives the same result."""
    image = (torch.rand(1, 3, 6, 8) * 4).floor().repeat_interleave(6, 2).repeat_interleave(6, 3).mul(60).to(torch.uint8)
    unsure = torch.softmax(torch.rand(1, 3, 36, 48) * 2, dim=1)
    settings = {"bilateral_weight": 4.0, "gaussian_weight": 2.0}
    small = DenseCRF(bilateral_xy=8, gaussian_xy=3, **settings)(unsure, image)
    twice, twice_unsure = (x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (image, unsure))
    wider = DenseCRF(bilateral_xy=16, gaussian_xy=6, **settings)(twice_unsure, twice)[..., ::2, ::2]
    as_wide = DenseCRF(bilateral_xy=8, gaussian_xy=3, **settings)(twice_unsure, twice)[..., ::2, ::2]
    moved, apart = (small - unsure).abs().mean(), (as_wide - small).abs().mean()
    assert (wider - small).abs().mean() < 0.03 * moved
    assert apart > 0.1 * moved


def test_the_smoothness_of_the_training_crf_reaches_no_neighbor():
    """seeded-networks.md: a quarter of a pixel wide, its normalized kernel is the identity."""
    positions = torch.cartesian_prod(torch.arange(41.0), torch.arange(41.0))
    kernel = GaussianKernels.build([(PermutohedralLattice(positions / TRAINING_CRF.gaussian_xy), 1.0)])
    q = torch.rand(len(positions), 3)
    torch.testing.assert_close(kernel.messages(kernel.vertex_values(q), slice(None)), q)

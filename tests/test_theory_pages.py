"""The pages under docs/: names that exist, and those derivations that no other test computes."""

import re
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torch import nn

from dcsm_attr import DenseCRF, GuidedRectifiers
from dcsm_attr.attribution.layers import is_constant
from dcsm_attr.attribution.maps import subtract
from dcsm_attr.crf.permutohedral import GaussianKernels, PermutohedralLattice
from dcsm_attr.wsss.region_growing import TRAINING_CRF

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

# Not files and folders.
_DOTTED = re.compile(r"(?<![\w./-])dcsm_attr(?:\.(?!md\b)[A-Za-z_]\w*)+(?![\w/-])")

_FUNCTIONS = {
    name for file in TESTS.glob("*.py") for name in re.findall(r"^def (test_\w+)", file.read_text("utf-8"), re.M)
}


def _exists(name):
    try:
        resolve_name(name)
    except AttributeError:
        # The fields of a dataclass are attributes of its objects, not always of the class.
        owner, _, attribute = name.rpartition(".")
        described = resolve_name(owner) if owner != "dcsm_attr" else None
        return is_dataclass(described) and attribute in {field.name for field in fields(described)}
    except ImportError as error:
        # A module that needs a package which is not installed is there all the same.
        return error.name is not None and not error.name.startswith("dcsm_attr")
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_name_on_a_page_exists(page):
    names = set(_DOTTED.findall(page.read_text(encoding="utf-8")))
    assert [name for name in sorted(names) if not _exists(name)] == []


def test_names_that_do_not_exist_are_noticed():
    there = ["dcsm_attr.attribution.maps.subtract", "dcsm_attr.Segmentation.labels", "dcsm_attr.crf"]
    wrong = ["dcsm_attr.nonsense", "dcsm_attr.attribution.maps.nonsense", "dcsm_attr.Segmentation.nonsense"]
    assert [_exists(name) for name in there + wrong] == [True] * 3 + [False] * 3
    page = f"`{there[0]}(maps)`, {wrong[1]}. dcsm_attr/attribution/maps.py tests/dcsm_attr.py dcsm_attr.md"
    assert _DOTTED.findall(page) == [there[0], wrong[1]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_test_that_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"tests/(\w+\.py)", text))
    assert [name for name in sorted(files) if not (TESTS / name).is_file()] == []
    functions = set(re.findall(r"(?<=[:`])test_\w+(?=`)", text))
    assert sorted(functions - _FUNCTIONS) == []


def _gradient(network):
    """Of one score behind average pooling, with respect to a map."""
    maps = torch.randn(1, 6, 12, 12, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.double().eval()(maps).mean((2, 3))[0, 1], maps)
    return gradient


def test_what_lies_between_a_tensor_and_the_pool_decides_whether_its_gradient_says_where():
    """dcsm.md: steps that are linear and treat positions alike keep it constant within the border; gates do not."""
    pointwise = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.Dropout(), nn.Conv2d(6, 4, 1))
    assert is_constant(_gradient(pointwise)).all()
    wider = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), pointwise)
    gradient = _gradient(wider)
    assert is_constant(gradient[..., 2:-2, 2:-2]).all()
    assert not is_constant(gradient).any()
    for gate in (nn.ReLU(), nn.MaxPool2d(2)):
        assert not is_constant(_gradient(nn.Sequential(gate, wider))[..., 4:-4, 4:-4]).any()


@pytest.mark.parametrize("guided", [False, True])
def test_the_seeds_of_two_classes_differ_by_position_behind_a_rectified_head_alone(guided):
    """dcsm.md: behind a linear head the difference of two classes' seeds is one vector, behind a rectified one not."""

    def difference(head):
        maps = torch.randn(1, 6, 5, 7, dtype=torch.float64, requires_grad=True)
        with GuidedRectifiers() if guided else nullcontext():
            first, second = head(maps)[0].sum((1, 2))
        seeds = [torch.autograd.grad(score, maps, retain_graph=True)[0] for score in (first, second)]
        return seeds[0] - seeds[1]

    assert is_constant(difference(nn.Conv2d(6, 2, 1).double())).all()
    rectified = nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU(), nn.Conv2d(9, 2, 1)).double()
    assert not is_constant(difference(rectified)).any()


def test_the_highest_of_many_candidates_gets_its_distance_from_their_mean():
    maps = torch.rand(1, 12, 4, 5, dtype=torch.float64)
    distinct = subtract(maps).gather(1, maps.argmax(1, keepdim=True))
    torch.testing.assert_close(distinct, 12 * (maps.amax(1, keepdim=True) - maps.mean(1, keepdim=True)))


@pytest.mark.parametrize(("dimensions", "across"), [(1, 2000), (2, 100), (3, 40)])
def test_the_lattice_has_the_covariance_of_the_gaussian(dimensions, across):
    """background-and-crf.md: 1/2 of the blurs, 1/12 each of splat and slice, times the square of the scale, are 1."""
    axis = torch.linspace(-6, 6, across, dtype=torch.float64)
    # Turned, so that the grid of the points and the lattice have nothing to do with each other.
    turn = torch.linalg.qr(torch.randn(dimensions, dimensions, dtype=torch.float64)).Q
    points = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions) @ turn
    moments = torch.cat([torch.ones_like(points[:, :1]), points, points**2], dim=1)
    heard = PermutohedralLattice(points).filter(moments)
    middle = points.norm(dim=1) < 2
    mass, first, second = heard[middle].split([1, dimensions, dimensions], dim=1)
    own = points[middle]
    spread = (second - 2 * own * first + own**2 * mass).sum(dim=0) / mass.sum()
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=0, atol=0.01)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_the_lattices_gain_makes_the_kernel_one_at_a_vertex(dimensions):
    points = torch.randn(20_000, dimensions, dtype=torch.float64)
    points[0] = 0
    alone = torch.zeros(len(points), 1, dtype=torch.float64)
    alone[0] = 1
    heard = PermutohedralLattice(points).filter(alone)
    assert heard[0].item() == pytest.approx(1, abs=1e-12)


def test_a_kernel_that_is_normalized_symmetrically_has_eigenvalues_between_zero_and_one():
    features = torch.rand(200, 2, dtype=torch.float64) ** 3 * 9
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    normalized = kernel * kernel.sum(1).rsqrt() * kernel.sum(1).rsqrt()[:, None]
    eigenvalues = torch.linalg.eigvalsh(normalized)
    assert eigenvalues[-1].item() == pytest.approx(1)
    assert eigenvalues[0] > -1e-12


def test_widths_in_pixels_go_with_the_size_of_the_image():
    """seeded-networks.md: every pixel four times, twice as far apart, is the same scene to kernels twice as wide."""
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

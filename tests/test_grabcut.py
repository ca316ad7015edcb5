"""GrabCut from saliency: pictures whose objects are known, what repeats, and what is refused."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.ablation.grabcut import grabcut, grabcut_labels
from dcsm_attr.datasets.scenes import generate_scene


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2", reason='GrabCut is an extra: pip install "dcsm_attr[grabcut]"')


def make_image(*squares, size=(60, 80), seed=0):
    """Squares ``(top, left, side, color)`` on gray, with noise; and the truth of each, ``(K, H, W)`` bool."""
    rng = np.random.default_rng(seed)
    pixels = np.full((*size, 3), 110.0)
    truth = np.zeros((len(squares), *size), dtype=bool)
    for region, (top, left, side, color) in zip(truth, squares, strict=True):
        region[top : top + side, left : left + side] = True
        pixels[region] = color
    noisy = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    return noisy, torch.from_numpy(truth)


def noisy_saliency(region, seed=0):
    """High in parts of the region only, with noise that is larger than what tells its other parts from the rest."""
    generator = torch.Generator().manual_seed(seed)
    noise, parts = torch.rand(2, *region.shape, generator=generator)
    return 0.3 * noise + 0.2 * region + 0.5 * (region & (parts < 0.5))


RED, BLUE = (220, 40, 40), (40, 60, 220)


def test_the_whole_square_is_found_from_saliency_in_parts_of_it(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    saliency = noisy_saliency(truth)
    seeds = saliency >= saliency.quantile(0.95)
    assert seeds.sum() < truth.sum() / 2
    region = grabcut(image, saliency)
    assert region.dtype == torch.bool
    assert torch.equal(region, truth)


def test_an_object_that_is_mostly_unknown_is_found_by_its_color(cv2):
    # Nearly half of the picture, of which 5 % are seeds; one cut is enough.
    image, (truth,) = make_image((4, 4, 50, RED), size=(60, 90))
    generator = torch.Generator().manual_seed(0)
    rank = torch.rand(truth.shape, generator=generator)
    saliency = torch.where(truth, 1 + rank, rank)
    assert torch.equal(grabcut(image, saliency, iterations=1), truth)
    assert torch.equal(grabcut(image, saliency), truth)


def test_only_the_largest_component_is_kept(cv2):
    image, truth = make_image((10, 8, 24, RED), (30, 55, 12, RED))
    saliency = noisy_saliency(truth.any(dim=0))
    assert torch.equal(grabcut(image, saliency), truth[0])


def test_the_scale_of_the_saliency_does_not_count(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    saliency = noisy_saliency(truth)
    assert torch.equal(grabcut(image, saliency), grabcut(image, 1e-6 * saliency - 3e-6))


def test_maps_that_are_zero_almost_everywhere_have_seeds(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    few = torch.zeros(truth.shape)
    few[20:28, 26:34] = 1.0
    # Of 4800 pixels 64: both quantiles are zero, and every pixel is a seed.
    assert torch.equal(grabcut(image, few), few > 0)
    half = truth.float()
    # More than 5 % at the maximum: no pixel lies above the upper quantile.
    assert torch.equal(grabcut(image, half), truth)


def test_the_same_input_gives_the_same_output_whatever_opencv_drew_before(cv2):
    # On this scene the color models differ with the centers that OpenCV draws for them.
    scene = generate_scene(0)
    image = scene.image.permute(1, 2, 0).numpy()
    saliency = torch.rand(128, 128) + (scene.labels > 0)
    cv2.setRNGSeed(1)
    first = grabcut(image, saliency)
    cv2.setRNGSeed(2)
    assert torch.equal(grabcut(image, saliency), first)


def test_opencvs_random_state_is_left_as_it_was(cv2):
    def drawn():
        return cv2.randu(np.zeros((1, 8), dtype=np.uint8), 0, 255).tolist()

    image, (truth,) = make_image((15, 20, 26, RED))
    cv2.setRNGSeed(5)
    expected = [drawn(), drawn()]
    cv2.setRNGSeed(5)
    first = drawn()
    grabcut(image, noisy_saliency(truth))
    assert [first, drawn()] == expected


def test_the_input_is_left_as_it_was(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    saliency = noisy_saliency(truth)
    pixels, values = image.copy(), saliency.clone()
    grabcut(image[:, ::-1], saliency.flip(1).requires_grad_())
    assert np.array_equal(image, pixels)
    assert torch.equal(saliency, values)


def test_a_constant_map_has_an_empty_region(cv2):
    image, _ = make_image()
    region = grabcut(image, torch.full((60, 80), 0.5))
    assert region.dtype == torch.bool
    assert region.shape == (60, 80)
    assert not region.any()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9), (3, 3)])
def test_tiny_images(cv2, size):
    image = np.zeros((*size, 3), dtype=np.uint8)
    image[-1, -1] = 255
    saliency = torch.zeros(size)
    saliency[-1, -1] = 1.0
    expected = torch.zeros(size, dtype=torch.bool)
    # A single pixel is as salient as all the others.
    expected[-1, -1] = size != (1, 1)
    assert torch.equal(grabcut(image, saliency), expected)


def test_each_class_is_cut_from_its_own_map(cv2):
    image, truth = make_image((6, 6, 26, RED), (26, 44, 28, BLUE))
    maps = torch.stack([noisy_saliency(truth[0], 1), noisy_saliency(truth[1], 2)])
    labels = grabcut_labels(image, maps)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, truth[0] * 1 + truth[1] * 2)
    assert torch.equal(grabcut_labels(image, maps.flip(0)), truth[0] * 2 + truth[1] * 1)


def test_a_pixel_of_two_regions_goes_to_the_larger_map(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    saliency = noisy_saliency(truth)
    left = torch.arange(80) < 33
    maps = torch.stack([saliency, torch.where(left, 2 * saliency, 0.5 * saliency)])
    # Both maps have the same order of pixels on each side, and seeds on the object: both regions are the square.
    assert torch.equal(grabcut(image, maps[1]), truth)
    assert torch.equal(grabcut_labels(image, maps), truth * torch.where(left, 2, 1))
    assert torch.equal(grabcut_labels(image, saliency.expand(2, -1, -1)), truth * 1)


def test_classes_without_a_region_and_no_class_at_all(cv2):
    image, (truth,) = make_image((15, 20, 26, RED))
    maps = torch.stack([torch.full((60, 80), 9.0), noisy_saliency(truth)])
    assert torch.equal(grabcut_labels(image, maps), truth * 2)
    assert torch.equal(grabcut_labels(image, maps[:0]), torch.zeros(60, 80, dtype=torch.int64))


IMAGE_ARRAY, MAP = np.zeros((4, 5, 3), dtype=np.uint8), torch.rand(4, 5)


@pytest.mark.parametrize(
    ("image", "saliency", "options", "error", "message"),
    [
        (IMAGE_ARRAY.astype(float), MAP, {}, TypeError, "image must be uint8, got float64"),
        (IMAGE_ARRAY[..., 0], MAP, {}, ValueError, r"shape \(H, W, 3\) with at least one pixel, got \(4, 5\)"),
        (IMAGE_ARRAY[:0], MAP[:0], {}, ValueError, r"at least one pixel, got \(0, 5, 3\)"),
        (IMAGE_ARRAY, MAP.T, {}, ValueError, r"size of its image, \(4, 5\); got \(5, 4\)"),
        (IMAGE_ARRAY, MAP / 0, {}, ValueError, "saliency must be finite"),
        (IMAGE_ARRAY, MAP, {"foreground_quantile": 0.2}, ValueError, "got background_quantile=0.3, foreground_quan"),
        (IMAGE_ARRAY, MAP, {"foreground_quantile": 1.2}, ValueError, "quantiles must lie between 0 and 1"),
        (IMAGE_ARRAY, MAP, {"iterations": 0}, ValueError, "iterations must be at least 1, got 0"),
    ],
)
def test_bad_arguments(cv2, image, saliency, options, error, message):
    with pytest.raises(error, match=message):
        grabcut(image, saliency, **options)


def test_maps_that_do_not_fit():
    with pytest.raises(ValueError, match=r"maps must have shape \(K, H, W\).*\(4, 5\); got \(4, 5\)"):
        grabcut_labels(IMAGE_ARRAY, MAP)


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "dcsm_attr\[grabcut\]"'):
        grabcut(IMAGE_ARRAY, MAP)

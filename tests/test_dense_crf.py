"""DenseCRF: agreement of the backends, batches, alternative labelings, and rejected arguments."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dcsm_attr import DenseCRF
from dcsm_attr.crf import dense_crf as dense_crf_module

DEEPLAB = {"bilateral_weight": 10, "bilateral_xy": 80, "bilateral_rgb": 13, "gaussian_weight": 3, "gaussian_xy": 3}


def _image(height, width, seed=0):
    """Smooth colors with noise, gray and saturated areas, where rounding decides on lattice vertices."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 6, generator=generator)
    image = (
        F.interpolate(coarse, (height, width), mode="bilinear") * 255
        + torch.randn(1, 3, height, width, generator=generator) * 6
    )
    image[..., : height // 4, : width // 4] = 128
    image[..., -height // 5 :, :] = 255
    return image.clamp(0, 255).to(torch.uint8)


def _probabilities(count, labels, height, width, seed=0):
    coarse = torch.randn(count, labels, 6, 7, generator=torch.Generator().manual_seed(seed)) * 3
    return F.interpolate(coarse, (height, width), mode="bilinear").softmax(1)


@pytest.mark.parametrize("labels", [2, 4, 21])
@pytest.mark.parametrize("settings", [{}, DEEPLAB], ids=["paper", "deeplab"])
def test_backends_agree(labels, settings):
    pytest.importorskip("pydensecrf", reason="the reference CRF is an extra: pip install 'dcsm_attr[pydensecrf]'")
    image, probabilities = _image(90, 120), _probabilities(1, labels, 90, 120)
    ours = DenseCRF(**settings)(probabilities, image)
    reference = DenseCRF(**settings, backend="pydensecrf")(probabilities, image)
    assert (ours - reference).abs().max() < 1e-3
    assert torch.equal(ours.argmax(1), reference.argmax(1))
    assert (ours - probabilities).abs().max() > 0.1


@pytest.mark.parametrize("removed", ["bilateral_weight", "gaussian_weight"])
def test_backends_agree_without_one_of_the_kernels(removed):
    pytest.importorskip("pydensecrf", reason="the reference CRF is an extra: pip install 'dcsm_attr[pydensecrf]'")
    image, probabilities = _image(40, 50), _probabilities(1, 3, 40, 50)
    ours = DenseCRF(**{**DEEPLAB, removed: 0})(probabilities, image)
    reference = DenseCRF(**{**DEEPLAB, removed: 0}, backend="pydensecrf")(probabilities, image)
    assert (ours - reference).abs().max() < 1e-3
    assert (ours - DenseCRF(**DEEPLAB)(probabilities, image)).abs().max() > 0.01


@pytest.mark.parametrize("labels", [2, 4, 21])
@pytest.mark.parametrize("settings", [{}, DEEPLAB], ids=["paper", "deeplab"])
def test_backends_agree_on_images(shared, labels, settings):
    pytest.importorskip("pydensecrf", reason="the reference CRF is an extra: pip install 'dcsm_attr[pydensecrf]'")
    for name in ("dog-and-cat.png", "puppy-and-kitten.jpg", "horse-and-rider.jpg"):
        pixels = np.array(Image.open(shared / "images" / name).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        probabilities = _probabilities(1, labels, *pixels.shape[:2])
        ours = DenseCRF(**settings)(probabilities, image)
        reference = DenseCRF(**settings, backend="pydensecrf")(probabilities, image)
        assert (ours - reference).abs().max() < 1e-3
        assert (ours.argmax(1) == reference.argmax(1)).float().mean() >= 0.999


def test_a_batch_equals_single_images_bit_for_bit():
    images = torch.cat([_image(40, 50, seed) for seed in range(3)])
    probabilities = _probabilities(3, 4, 40, 50)
    together = DenseCRF()(probabilities, images)
    for n in range(3):
        assert torch.equal(together[n], DenseCRF()(probabilities[n : n + 1], images[n : n + 1])[0])


@pytest.mark.parametrize("settings", [{}, DEEPLAB, {"bilateral_weight": 0}, {"iterations": 0}])
def test_alternatives_equal_single_calls(settings):
    image, probabilities = _image(40, 50), _probabilities(5, 4, 40, 50)
    probabilities[3] = probabilities[3].argmax(0) == torch.arange(4)[:, None, None]
    crf = DenseCRF(**settings)
    together = crf.refine_alternatives(probabilities, image[0])
    for one, refined in zip(probabilities, together, strict=True):
        assert (refined - crf(one[None], image)[0]).abs().max() < 1e-5
    assert ((together - probabilities).abs().max() > 0.1) == (settings != {"iterations": 0})
    assert (together.dtype, together.requires_grad) == (torch.float32, False)


def test_alternatives_with_pydensecrf_equal_single_calls():
    pytest.importorskip("pydensecrf", reason="the reference CRF is an extra: pip install 'dcsm_attr[pydensecrf]'")
    image, probabilities = _image(40, 50), _probabilities(3, 4, 40, 50)
    reference = DenseCRF(backend="pydensecrf")
    together = reference.refine_alternatives(probabilities, image[0])
    assert torch.equal(together, torch.cat([reference(one[None], image) for one in probabilities]))
    assert (together - DenseCRF().refine_alternatives(probabilities, image[0])).abs().max() < 1e-3


def test_no_lattice_is_built_twice(monkeypatch):
    dimensions = []
    original = dense_crf_module.PermutohedralLattice

    def counted(features, groups):
        dimensions.append(features.shape[1])
        return original(features, groups)

    monkeypatch.setattr(dense_crf_module, "PermutohedralLattice", counted)
    crf = DenseCRF(iterations=1)
    crf.refine_alternatives(_probabilities(6, 3, 12, 14), _image(12, 14)[0])
    assert dimensions == [2, 5], "one lattice per kernel for all labelings"
    dimensions.clear()
    crf(_probabilities(3, 3, 12, 14), _image(12, 14).expand(3, 3, 12, 14))
    assert dimensions == [2, 5, 5, 5], "one position lattice for all images"


def test_rejects_bad_alternatives():
    image = _image(12, 14)[0]
    for probabilities, other_image, error, message in (
        (_probabilities(2, 3, 12, 14), image[:, :5], ValueError, r"images must have shape .*\(2, 3, 12, 14\)"),
        (_probabilities(2, 3, 12, 14), image / 255, TypeError, "uint8"),
        (2 * _probabilities(2, 3, 12, 14), image, ValueError, r"in \[0, 1\]"),
        (_probabilities(2, 3, 12, 14)[0], image, ValueError, r"\(N, L, H, W\)"),
    ):
        with pytest.raises(error, match=message):
            DenseCRF().refine_alternatives(probabilities, other_image)


def test_recovers_regions_from_noisy_unaries():
    truth = torch.zeros(1, 48, 64, dtype=torch.long)
    truth[0, 10:38, 12:40] = 1
    truth[0, 20:44, 44:60] = 2
    colors = torch.tensor([[60, 90, 60], [200, 60, 50], [60, 80, 220]])
    image = (colors[truth].permute(0, 3, 1, 2) + torch.randn(1, 3, 48, 64) * 8).clamp(0, 255).to(torch.uint8)
    probabilities = (F.one_hot(truth, 3).permute(0, 3, 1, 2) * 1.2 + torch.randn(1, 3, 48, 64)).softmax(1)
    before = (probabilities.argmax(1) == truth).float().mean()
    after = (DenseCRF(**DEEPLAB)(probabilities, image).argmax(1) == truth).float().mean()
    assert before < 0.85
    assert after > 0.97


def test_weights_of_zero_leave_the_clamped_unary():
    probabilities = _probabilities(1, 3, 12, 14)
    probabilities[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    result = DenseCRF(bilateral_weight=0, gaussian_weight=0)(probabilities, _image(12, 14))
    expected = probabilities.clamp(min=1e-5)
    torch.testing.assert_close(result, expected / expected.sum(1, keepdim=True))


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_one_label_stays_certain(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    result = DenseCRF(backend=backend)(torch.ones(1, 1, 9, 11), _image(9, 11))
    assert torch.equal(result, torch.ones(1, 1, 9, 11))


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (23, 1)])
def test_thin_images(size):
    result = DenseCRF()(_probabilities(2, 3, *size), torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8))
    torch.testing.assert_close(result.sum(1), torch.ones(2, *size))
    assert torch.isfinite(result).all()


def test_keeps_dtype_and_input():
    probabilities = _probabilities(1, 3, 12, 14).double().requires_grad_()
    before = probabilities.clone()
    result = DenseCRF()(probabilities, _image(12, 14))
    assert (result.dtype, result.requires_grad) == (torch.float64, False)
    assert torch.equal(probabilities, before)


@pytest.mark.parametrize(
    ("probabilities", "images", "error", "message"),
    [
        (torch.rand(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, r"\(N, L, H, W\)"),
        (torch.rand(1, 0, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, r"\(N, L, H, W\)"),
        (
            torch.rand(1, 2, 4, 4),
            torch.zeros(1, 3, 5, 4, dtype=torch.uint8),
            ValueError,
            r"\(1, 3, 4, 4\).*\(1, 3, 5, 4\)",
        ),
        (torch.rand(1, 2, 4, 4), torch.zeros(1, 4, 4, 3, dtype=torch.uint8), ValueError, "N, 3, H, W"),
        (torch.rand(1, 2, 4, 4), torch.rand(1, 3, 4, 4), TypeError, r"uint8.*\(255 \* images\)"),
        (
            torch.ones(1, 2, 4, 4, dtype=torch.int64),
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            TypeError,
            "floating point",
        ),
        (
            torch.full((1, 2, 4, 4), 1.5),
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            ValueError,
            r"in \[0, 1\]; got 1.5",
        ),
        (torch.full((1, 2, 4, 4), torch.nan), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), ValueError, "NaN"),
    ],
)
def test_rejects_bad_arguments(probabilities, images, error, message):
    with pytest.raises(error, match=message):
        DenseCRF()(probabilities, images)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bilateral_xy", 0, "bilateral_xy is a standard deviation"),
        ("gaussian_xy", -3, "gaussian_xy is a standard deviation"),
        ("bilateral_rgb", float("nan"), "bilateral_rgb is a standard deviation"),
        ("gaussian_weight", -1, "gaussian_weight must not be negative"),
        ("iterations", -1, "iterations must not be negative"),
        ("backend", "numpy", "'auto', 'torch', 'triton', 'pydensecrf'"),
    ],
)
def test_rejects_bad_settings(name, value, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF(**{name: value})


def test_names_the_missing_reference_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r"dcsm_attr\[pydensecrf\]"):
        DenseCRF(backend="pydensecrf")(_probabilities(1, 2, 4, 4), _image(4, 4))

"""Tests that process-wide settings (default dtype and device, deterministic algorithms) change no result."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import PooledCNN

from dcsm_attr import ClassActivationMaps, DenseCRF, DistinctClassSaliency, FusedSaliency, Segmenter, Simonyan
from dcsm_attr.attribution.cached_gradients import class_maps_from_gradients, compute_gradients
from dcsm_attr.attribution.fusion import fuse_maps, heat_maps
from dcsm_attr.datasets.preprocess import Preprocess


@contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic():
    """Uninitialized memory is filled with NaN, and what rounds differently from run to run is an error."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "float64 by default": lambda: _default_dtype(torch.float64),
    "bfloat16 by default": lambda: _default_dtype(torch.bfloat16),
    # A device whose tensors hold no values: whatever is made there by default cannot be used.
    "another device by default": lambda: torch.device("meta"),
    "deterministic algorithms": _deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "no gradients": torch.no_grad,
}


@pytest.fixture(params=SETTINGS.values(), ids=SETTINGS)
def setting(request):
    return request.param


def _assert_equal(results, expected):
    for result, of_expected in zip(results, expected, strict=True):
        assert (result.dtype, result.device) == (of_expected.dtype, of_expected.device)
        assert torch.equal(result, of_expected)


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_maps(setting, vgg, images, variant):
    def results():
        # The layers are chosen anew.
        dcs = DistinctClassSaliency(vgg, variant=variant, scales=(0.8, 1.0))
        by_name = DistinctClassSaliency(vgg, dcs.layers, variant=variant, subtract=False)
        detected, known = dcs.class_maps(images, raw=True), dcs.class_maps(images, [[1], [0, 2]])
        kept = compute_gradients(dcs, images, candidates=[2, 0])
        return [
            *(dcs.attribute(images), dcs.attribute(images, [1, 2]), dcs.attribute(images, -1, candidates=[[3, 1]] * 2)),
            *(detected.maps, detected.raw, detected.classes, detected.detected, detected.scores, known.maps),
            *(
                by_name.attribute(images),
                kept.run(1.0).maps[0],
                class_maps_from_gradients(dcs, kept, candidates=[0, 2]).maps,
            ),
            *(Simonyan(vgg).attribute(images, (2,)), dcs.class_maps(images)[1].best()),
        ]

    expected = results()
    with setting():
        found = results()
    _assert_equal(found, expected)


def test_class_activation_maps_and_their_fusion(setting, vgg, images):
    def results():
        cam = ClassActivationMaps(vgg, scales=(1.0, 0.8))
        known = cam.class_maps(images, [[1], [0, 2]])
        product = FusedSaliency(cam, DistinctClassSaliency(vgg, "features.5")).class_maps(images, [[1], [0, 2]])
        return [cam.attribute(images), cam.attribute(images, [1, 2]), known.maps, known.scores, product.maps]

    expected = results()
    with setting():
        found = results()
    _assert_equal(found, expected)


def test_positions(setting, vgg, images):
    dcs = DistinctClassSaliency(vgg, "features.5", scales=(1.0,))
    expected = dcs.attribute(images, [(1, 0, 0), (2, 4, 5)])
    with setting():
        found = dcs.attribute(images, [(1, 0, 0), (2, 4, 5)])
    _assert_equal([found], [expected])


def test_crf(setting):
    probabilities = torch.rand(2, 3, 9, 11).softmax(1)
    pictures = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)

    def results():
        return [DenseCRF()(probabilities, pictures), DenseCRF().refine_alternatives(probabilities, pictures[0])]

    expected = results()
    with setting():
        found = results()
    _assert_equal(found, expected)


@pytest.mark.parametrize("canvas", ["paper", "matconvnet", "caffe"])
def test_segmentations(setting, vgg, canvas):
    segmenter = Segmenter(vgg, preprocess=Preprocess(canvas, size=32), crf=DenseCRF(iterations=2))
    image_array = np.random.default_rng(0).integers(0, 255, (20, 26, 3), dtype=np.uint8)
    tensor = torch.rand(3, 18, 24)

    def results():
        of_both = [segmenter.segment(image_array), segmenter.segment(tensor, [1])]
        return [value for s in of_both for value in (s.labels, s.probabilities, s.unrefined, s.class_maps.maps)]

    expected = results()
    with setting():
        found = results()
    _assert_equal(found, expected)


def test_fusion(setting, vgg, images):
    logits = vgg(images).detach()
    expected = fuse_maps(heat_maps(logits, (20, 24)), torch.ones(2, 4, 20, 24))
    ones = torch.ones(2, 4, 20, 24)
    with setting():
        found = fuse_maps(heat_maps(logits, (20, 24)), ones)
    _assert_equal([found], [expected])


def test_a_model_of_half_precision_gives_float32_maps(images):
    model = PooledCNN().eval().bfloat16()
    for variant in ("paper", "matconvnet", "caffe"):
        result = DistinctClassSaliency(model, "conv2", variant=variant).class_maps(images.bfloat16(), raw=True)
        assert {result.maps.dtype, result.raw.dtype, result.scores.dtype} == {torch.float32}
    result = ClassActivationMaps(model).class_maps(images.bfloat16())
    assert {result.maps.dtype, result.scores.dtype} == {torch.float32}

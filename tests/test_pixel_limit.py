"""The pixel limit against decompression bombs, and that PIL's own limit is restored."""

import threading

import numpy as np
import pytest
from PIL import Image

from dcsm_attr import Segmenter
from dcsm_attr.datasets.images import ImageReadError, pixel_limit, read_image
from dcsm_attr.datasets.preprocess import Preprocess

SIDE = 20
FORMATS = ("png", "jpg", "gif", "bmp", "webp", "tif")


def limit_of_pil():
    return Image.MAX_IMAGE_PIXELS


@pytest.fixture
def small_limit(monkeypatch):
    """Sets PIL's own limit, and its double, far below the size of the test images."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    yield 100
    assert limit_of_pil() == 100


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("extension", FORMATS)
def test_large_files_are_rejected_unless_the_limit_is_raised(tmp_path, small_limit, extension):
    path = tmp_path / f"image.{extension}"
    Image.new("RGB", (SIDE, SIDE), "red").save(path)
    with pytest.raises(ImageReadError, match=rf"image\.{extension}: has more than 100 pixels.*--max-pixels"):
        read_image(path)
    assert read_image(path, max_pixels=SIDE**2).size == (SIDE, SIDE)
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(path, max_pixels=SIDE**2 - 1)


def test_a_limit_below_that_of_pil(image_path):
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(image_path, max_pixels=399)
    assert read_image(image_path, max_pixels=400).size == (SIDE, SIDE)


def test_pil_without_a_limit(image_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(image_path).size == (SIDE, SIDE)
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(image_path, max_pixels=399)
    assert Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("limit", [0, -5])
def test_rejects_limits_below_one(image_path, limit):
    with pytest.raises(ValueError, match=f"max_pixels must be at least 1, got {limit}"):
        read_image(image_path, max_pixels=limit)


def test_the_segmenter_has_a_limit(vgg, image_path, small_limit):
    with pytest.raises(ImageReadError, match="more than 100 pixels"):
        Segmenter(vgg, preprocess=Preprocess(size=24)).segment(image_path)
    segmenter = Segmenter(vgg, crf=None, preprocess=Preprocess(size=24), max_pixels=SIDE**2)
    assert segmenter.segment(image_path).labels.shape == (SIDE, SIDE)
    assert [result.labels.shape for result in segmenter.segment_stream([image_path] * 3)] == [(SIDE, SIDE)] * 3


@pytest.mark.timeout(30)
def test_the_last_thread_restores_the_limit_of_pil(small_limit):
    """Two overlapping blocks, left in both orders."""
    for first_out in (0, 1):
        inside, leave = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

        def block(number, inside=inside, leave=leave):
            with pixel_limit((1000, 500)[number]):
                inside[number].set()
                leave[number].wait()

        threads = [threading.Thread(target=block, args=(number,)) for number in range(2)]
        for number, thread in enumerate(threads):
            thread.start()
            inside[number].wait()
        assert limit_of_pil() == 1000
        with pixel_limit(None) as limit:
            assert limit == small_limit, "other readers keep the original limit"
        leave[first_out].set()
        threads[first_out].join()
        assert limit_of_pil() == (500, 1000)[first_out]
        leave[1 - first_out].set()
        threads[1 - first_out].join()
        assert limit_of_pil() == small_limit


def test_an_exception_restores_the_limit_of_pil(small_limit):
    with pytest.raises(KeyboardInterrupt), pixel_limit(1000):
        assert limit_of_pil() == 1000
        raise KeyboardInterrupt
    assert limit_of_pil() == small_limit

"""The limit against decompression bombs: refused, lowered, raised, and PIL's own as it was."""

import threading

import numpy as np
import pytest
from PIL import Image

from dcsm_attr import Segmenter
from dcsm_attr.datasets.images import ImageReadError, pixel_limit, read_image
from dcsm_attr.datasets.preprocess import Preprocess

SIDE = 20
FORMATS = ("png", "jpg", "gif", "bmp", "webp", "tif")


def pils_own():
    return Image.MAX_IMAGE_PIXELS


@pytest.fixture
def small_limit(monkeypatch):
    """PIL's own limit, and its double, far below the pictures of these tests."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    yield 100
    assert pils_own() == 100


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_it_is_refused_by_default_and_read_where_the_limit_is_raised(tmp_path, small_limit, ending):
    path = tmp_path / f"picture.{ending}"
    Image.new("RGB", (SIDE, SIDE), "red").save(path)
    with pytest.raises(ImageReadError, match=rf"picture\.{ending}: has more than 100 pixels.*--max-pixels"):
        read_image(path)
    assert read_image(path, max_pixels=SIDE**2).size == (SIDE, SIDE)
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(path, max_pixels=SIDE**2 - 1)


def test_a_limit_below_that_of_pil(picture):
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(picture, max_pixels=399)
    assert read_image(picture, max_pixels=400).size == (SIDE, SIDE)


def test_a_program_without_a_limit_keeps_none(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(picture).size == (SIDE, SIDE)
    with pytest.raises(ImageReadError, match="more than 399 pixels"):
        read_image(picture, max_pixels=399)
    assert Image.MAX_IMAGE_PIXELS is None


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_is_none(picture, limit):
    with pytest.raises(ValueError, match=f"max_pixels must be at least 1, got {limit}"):
        read_image(picture, max_pixels=limit)


def test_the_segmenter_has_one(vgg, picture, small_limit):
    with pytest.raises(ImageReadError, match="more than 100 pixels"):
        Segmenter(vgg, preprocess=Preprocess(size=24)).segment(picture)
    segmenter = Segmenter(vgg, crf=None, preprocess=Preprocess(size=24), max_pixels=SIDE**2)
    assert segmenter.segment(picture).labels.shape == (SIDE, SIDE)
    assert [result.labels.shape for result in segmenter.segment_stream([picture] * 3)] == [(SIDE, SIDE)] * 3


@pytest.mark.timeout(30)
def test_pils_own_limit_is_put_back_by_the_last_thread(small_limit):
    """Two blocks that overlap, entered and left in every order."""
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
        assert pils_own() == 1000
        with pixel_limit(None) as limit:
            assert limit == small_limit, "a reader without a limit of its own must not profit"
        leave[first_out].set()
        threads[first_out].join()
        assert pils_own() == (500, 1000)[first_out]
        leave[1 - first_out].set()
        threads[1 - first_out].join()
        assert pils_own() == small_limit


def test_it_is_put_back_after_an_exception(small_limit):
    with pytest.raises(KeyboardInterrupt), pixel_limit(1000):
        assert pils_own() == 1000
        raise KeyboardInterrupt
    assert pils_own() == small_limit

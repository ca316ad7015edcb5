"""Reading images of every mode and source, and errors for unreadable ones."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dcsm_attr.datasets import images
from dcsm_attr.datasets.images import ImageReadError, read_image


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "HSV", "YCbCr"])
def test_modes(image, mode):
    converted = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    assert read_image(converted).mode == "RGB"
    expected = converted.convert("RGB")
    assert np.abs(np.asarray(read_image(converted), int) - np.asarray(expected, int)).max() <= 1


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "tiff", "webp"])
def test_files(image, tmp_path, extension):
    path = tmp_path / f"mein Bild – ü.{extension}"
    image.save(path)
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(opened.convert("RGB")))


def test_transparency_is_composited_over_white():
    half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    half.putpixel((1, 0), (200, 0, 0, 255))
    assert np.asarray(read_image(half)).tolist() == [[[255, 255, 255], [200, 0, 0]]]


def test_16_bit_levels_are_scaled_to_8_bits():
    levels = np.array([[0, 257, 65535]], dtype=np.uint16)
    assert np.asarray(read_image(Image.fromarray(levels)))[..., 0].tolist() == [[0, 1, 255]]


def test_exif_orientation_is_applied(image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees clockwise.
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (8, 12)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(tmp_path / "moving.gif"))[0, 0].tolist() == [255, 0, 0]
    with Image.open(tmp_path / "moving.gif") as opened:
        opened.seek(1)
        assert np.asarray(read_image(opened))[0, 0].tolist() == [255, 0, 0]


def test_arrays_and_tensors(image):
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for source in (array, tensor, tensor / 255, (tensor / 255).double()):
        assert np.array_equal(np.asarray(read_image(source)), array)
    assert np.array_equal(np.asarray(read_image(array[..., 0]))[..., 2], array[..., 0])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3)), "uint8 of shape.*float64"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"\(0, 4, 3\)"),
        (torch.zeros(4, 4, 3), r"\(3, H, W\), got \(4, 4, 3\)"),
        (torch.zeros(1, 3, 4, 4), r"\(3, H, W\)"),
        (torch.full((3, 4, 4), 2.0), "not normalized.* to 2"),
        (torch.full((3, 4, 4), torch.nan), "not normalized"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
    ],
)
def test_rejects_arrays_and_tensors_that_are_not_images(source, message):
    with pytest.raises(ImageReadError, match=message):
        read_image(source)


def test_rejects_other_sources():
    with pytest.raises(TypeError, match="got int"):
        read_image(5)


def _bomb(path, side):
    """A valid PNG header that announces side x side pixels, with almost no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_rejects_unreadable_files(image, tmp_path):
    whole = tmp_path / "whole.png"
    image.save(whole)
    cases = {
        "missing.png": (None, "there is no such file"),
        "empty.png": (b"", "not an image"),
        "text.jpg": (b"hello", "not an image"),
        "truncated.png": (whole.read_bytes()[:60], "cannot be read"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=f"{name}: {message}"):
            read_image(tmp_path / name)
    with pytest.raises(ImageReadError, match="not a file, but a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("side", [11_000, 20_000])
def test_rejects_decompression_bombs(tmp_path, side):
    _bomb(tmp_path / "bomb.png", side)
    with pytest.raises(ImageReadError, match="more than 89478485 pixels.*raise the limit: max_pixels, .* --max-pix"):
        read_image(tmp_path / "bomb.png")


def test_rejecting_bombs_uses_no_warning_filter(image, tmp_path, monkeypatch):
    """Warning filters are shared by all threads, so reading must not change them."""
    filters = []
    original = images._to_rgb
    monkeypatch.setattr(images, "_to_rgb", lambda opened: filters.append(list(warnings.filters)) or original(opened))
    _bomb(tmp_path / "bomb.png", 11_000)
    image.save(tmp_path / "image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_image(tmp_path / "image.png")
        assert filters == [list(warnings.filters)]
        with pytest.raises(ImageReadError, match="more than 89478485 pixels"):
            read_image(tmp_path / "bomb.png")
    assert len(filters) == 1, "the bomb was not decoded"


def test_the_limit_can_be_raised(tmp_path, monkeypatch):
    _bomb(tmp_path / "bomb.png", 11_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageReadError, match="cannot be read"):
        read_image(tmp_path / "bomb.png")

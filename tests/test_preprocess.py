"""The three canvases, normalization, and resizing maps back to the image."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcsm_attr.datasets.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def _open_image(width, height, color=(200, 100, 50)):
    return Image.new("RGB", (width, height), color)


def _normalize(color):
    return [(c / 255 - m) / s for c, m, s in zip(color, IMAGENET_MEAN, IMAGENET_STD, strict=True)]


@pytest.mark.parametrize(
    ("width", "height", "inner"), [(250, 125, (250, 500)), (1000, 2000, (500, 250)), (333, 500, (500, 333))]
)
def test_the_paper_canvas(width, height, inner):
    prepared = Preprocess()(_open_image(width, height))
    assert prepared.tensor.shape == (3, 500, 500)
    assert tuple(prepared.pixels.shape[1:]) == inner
    assert (prepared.top, prepared.left) == (0, 0)
    assert prepared.tensor[:, 0, 0].tolist() == pytest.approx(_normalize((200, 100, 50)), rel=1e-5)
    outside = prepared.tensor[:, inner[0] :, :] if inner[0] < 500 else prepared.tensor[:, :, inner[1] :]
    assert outside.numel() == 0 or outside.count_nonzero() == 0


@pytest.mark.parametrize(("length", "start"), [(500, 0), (499, 1), (498, 1), (375, 63), (100, 200)])
def test_the_matconvnet_canvas_starts_where_the_release_does(length, start):
    # The release computes the 1-based start (500 - n + mod(n, 2)) / 2 + 1.
    prepared = Preprocess("matconvnet")(_open_image(length, 100))
    assert prepared.left == (500 - length + length % 2) // 2 == start
    assert prepared.tensor[:, 250, start].tolist() != prepared.tensor[:, 250, 0].tolist() or start == 0
    if start:
        # Zeros before normalization: black, not the mean.
        assert prepared.tensor[:, 0, 0].tolist() == pytest.approx(_normalize((0, 0, 0)), rel=1e-5)
    assert torch.equal(prepared.crop(prepared.tensor)[:, 0, 0], prepared.crop(prepared.tensor)[:, -1, -1])


def test_the_matconvnet_canvas_rejects_large_images():
    with pytest.raises(ValueError, match=r"\(501, 10\) exceeds its 500 pixels"):
        Preprocess("matconvnet")(_open_image(501, 10))


def test_the_caffe_canvas_stretches():
    image = _open_image(100, 300)
    image.paste((0, 0, 255), (0, 0, 50, 300))
    prepared = Preprocess("caffe")(image)
    assert prepared.tensor.shape == (3, 512, 512)
    halves = prepared.pixels[:, :, 250], prepared.pixels[:, :, 262]
    for half, color in zip(halves, ((0, 0, 255), (200, 100, 50)), strict=True):
        assert torch.equal(half, torch.tensor(color, dtype=torch.uint8)[:, None].expand(3, 512))
    assert torch.equal(prepared.crop(prepared.tensor), prepared.tensor)


def test_cropping_and_restoring_recover_the_image():
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (100, 200, 3)).copy())
    prepared = Preprocess(size=400, mean=(0, 0, 0), std=(1, 1, 1))(image)
    restored = prepared.restore(prepared.crop(prepared.tensor))
    assert restored.shape == (3, 100, 200)
    assert (restored[0] - torch.from_numpy(ramp / 255)).abs().max() < 0.01


def test_an_image_of_the_canvas_size_is_not_resampled():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    prepared = Preprocess(size=40)(Image.fromarray(noise))
    assert np.array_equal(prepared.pixels.permute(1, 2, 0).numpy(), noise)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": "square"}, "'paper', 'matconvnet', 'caffe'"),
        ({"size": 0}, "at least 1"),
        ({"std": (1, 0, 1)}, "std must be positive"),
    ],
)
def test_rejects_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)


@pytest.mark.parametrize("canvas", ["paper", "matconvnet", "caffe"])
def test_pixels_undo_the_normalization(canvas):
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    preprocess = Preprocess(canvas, 48)
    prepared = preprocess(image)
    assert torch.equal(prepared.crop(preprocess.pixels(prepared.tensor)), prepared.pixels)
    both = torch.stack([prepared.tensor, prepared.tensor.flip(-1)])
    assert torch.equal(preprocess.pixels(both)[1], preprocess.pixels(prepared.tensor).flip(-1))

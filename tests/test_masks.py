"""Masks: pixel values are labels regardless of colors, errors for invalid masks, VOC colors and overlays."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dcsm_attr.datasets.masks import (
    VOC_CLASSES,
    MaskError,
    classes_in_mask,
    label_image,
    overlay,
    read_mask,
    voc_colors,
)

LABELS = np.array([[0, 1, 20], [255, 15, 7]], dtype=np.uint8)


@pytest.mark.parametrize("kind", ["palette", "gray", "black palette", "16 bits"])
def test_pixel_values_are_labels_regardless_of_colors(tmp_path, kind):
    images = {
        "palette": label_image(LABELS),
        "gray": Image.fromarray(LABELS),
        "black palette": label_image(LABELS),
        "16 bits": Image.fromarray(LABELS.astype(np.uint16)),
    }
    images["black palette"].putpalette([0] * 768)
    images[kind].save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", (2, 3))
    assert mask.dtype == torch.int64
    assert mask.tolist() == LABELS.tolist()


def test_transparency_does_not_hide_labels(tmp_path):
    label_image(LABELS).save(tmp_path / "mask.png", transparency=0)
    assert read_mask(tmp_path / "mask.png").tolist() == LABELS.tolist()


def test_1_bit_masks(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", class_count=1).tolist() == [[1, 0]]


def test_rejects_labels_above_the_number_of_classes(tmp_path):
    path = tmp_path / "mask.png"
    label_image(np.array([[0, 9, 255]])).save(path)
    assert read_mask(path, class_count=9).tolist() == [[0, 9, 255]]
    with pytest.raises(MaskError, match=r"mask\.png: labels must be 0 .background., 1 to 8 .*255 .void.; got 9\."):
        read_mask(path, class_count=8)


def test_the_first_five_invalid_labels_are_named(tmp_path):
    label_image(np.arange(18, 30)[None]).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=r"1 to 20 .*; got 21, 22, 23, 24, 25 and 4 more"):
        read_mask(tmp_path / "mask.png")


def test_rejects_masks_of_another_size(tmp_path):
    label_image(LABELS).save(tmp_path / "mask.png")
    with pytest.raises(MaskError, match=r"mask\.png: .*image, 2 x 3 pixels; it has 3 x 2"):
        read_mask(tmp_path / "mask.png", (3, 2))


@pytest.mark.parametrize(("mode", "extension"), [("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("F", "tiff")])
def test_rejects_colors_and_floating_point(tmp_path, mode, extension):
    path = tmp_path / f"mask.{extension}"
    Image.fromarray(LABELS).convert(mode).save(path)
    with pytest.raises(MaskError, match=rf"mask\.{extension}: a mask must be a palette or gray .* the mode {mode}\."):
        read_mask(path)


def test_rejects_unreadable_files(tmp_path):
    whole = tmp_path / "whole.png"
    label_image(LABELS).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:-30])
    (tmp_path / "text.png").write_text("no image")
    for name, message in [
        ("none", "there is no such file"),
        ("half", "cannot be read"),
        ("text", "not an image"),
    ]:
        with pytest.raises(MaskError, match=rf"{name}\.png: {message}"):
            read_mask(tmp_path / f"{name}.png")


def test_classes_in_mask():
    assert classes_in_mask(torch.from_numpy(LABELS.astype(np.int64))) == (0, 6, 14, 19)
    assert classes_in_mask(torch.tensor([[0, 255]])) == ()


@given(st.lists(st.sampled_from([0, 1, 2, 3, 20, 255]), min_size=1, max_size=12))
def test_classes_are_the_labels_of_pixels(labels):
    shown = classes_in_mask(torch.tensor([labels]))
    assert list(shown) == [c for c in range(len(VOC_CLASSES)) if c + 1 in labels]


# Colors


def test_colors_equal_those_of_the_development_kit():
    colors = voc_colors()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    for label, color in known.items():
        assert tuple(colors[label]) == color
    assert len({tuple(c) for c in colors.tolist()}) == 256
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[19]) == (20, "aeroplane", "tvmonitor")


def test_label_images_survive_a_file(tmp_path):
    labels = np.array([[0, 1, 20], [255, 15, 7]])
    label_image(labels).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), labels)
        assert np.array_equal(np.array(image.convert("RGB")), voc_colors()[labels])


@pytest.mark.parametrize("label", [-1, 256])
def test_rejects_labels_beyond_8_bits(label):
    with pytest.raises(ValueError, match="between 0 and 255"):
        label_image(np.array([[0, label]]))


def test_real_masks_have_the_same_palette(shared):
    folder = shared / "data" / "voc2012-subset" / "SegmentationClass"
    mask = next(iter(sorted(folder.iterdir())))
    with Image.open(mask) as image:
        palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
        assert np.array_equal(palette, voc_colors()[: len(palette)])


def test_overlay():
    image = np.full((3, 4, 3), 100, dtype=np.uint8)
    labels = np.zeros((3, 4), dtype=np.int64)
    labels[:, 2:] = 1
    result = overlay(image, labels, opacity=0.5)
    assert (result[:, :2] == 100).all()
    assert (result[:, 2] == 255).all()
    assert (result[:, 3] == (114, 50, 50)).all()
    other = overlay(image, labels, opacity=1, colors=np.array([[9, 9, 9], [1, 2, 3]], dtype=np.uint8))
    assert (other[:, 3] == (1, 2, 3)).all()
    assert (other[:, :2] == 100).all()

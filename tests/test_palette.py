"""VOC colors, palette images and overlays."""

import numpy as np
import pytest
from PIL import Image

from dcsm_attr.datasets.masks import VOC_CLASSES, label_image, overlay, voc_colors


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

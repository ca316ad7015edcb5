"""Figures draw the maps unscaled, with the right titles and legends."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dcsm_attr import Segmenter
from dcsm_attr.datasets.masks import overlay, voc_colors
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation.visualization import plot_attribution, plot_labels, plot_maps

NAMES = ("ant", "a very long name of a class, indeed too long", "cow", "dog")


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (36, 60, 3), dtype=np.uint8))


@pytest.fixture
def segmenter(vgg):
    return Segmenter(vgg, class_names=NAMES, preprocess=Preprocess(size=40))


def _titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def _drawn(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return np.asarray(axes.images[-1].get_array())


def test_overview_of_a_segmentation(segmenter, image):
    result = segmenter.segment(image, ["ant", "dog"], raw=True)
    figure = result.overview()
    scores = result.class_maps.scores[0]
    titles = _titles(figure)
    assert titles[0] == "image"
    assert titles.count("before the CRF") == titles.count("after the CRF") == 1
    for slot, c in enumerate(result.candidates):
        name = f"{'a very long name of a c…' if c == 1 else NAMES[c]}  {scores[c]:.2f}"
        role = "" if c in result.classes else " (contrast only)"
        assert np.array_equal(_drawn(figure, f"{name}\nraw{role}"), result.class_maps.raw[0, slot].numpy())
        assert np.array_equal(_drawn(figure, f"{name}\ndistinct{role}"), result.class_maps.maps[0, slot].numpy())
    assert np.array_equal(_drawn(figure, "after the CRF"), np.asarray(result.overlay()))
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    texts = [text.get_text() for text in legend.get_texts()]
    for c, text in zip(result.classes, texts, strict=True):
        share = float((result.labels == c + 1).float().mean())
        assert text == f"{NAMES[c]}  {float(scores[c]):.2f}, {share:.0%} of the image"


def test_overview_marks_a_fallback(segmenter, vgg, image):
    with torch.no_grad():
        vgg.classifier[2].bias.fill_(-9)
    figure = segmenter.segment(image).overview()
    (legend,) = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert "no class above the threshold" in legend.get_title().get_text()
    assert not any("raw" in title for title in _titles(figure))


def test_overview_without_a_crf_has_one_label_map(vgg, image):
    figure = Segmenter(vgg, crf=None, preprocess=Preprocess(size=40)).segment(image).overview()
    assert [t for t in _titles(figure) if "CRF" in t] == ["labels, no CRF"]


def test_overview_has_the_shape_of_the_image_and_is_not_blank(segmenter, image):
    figure = segmenter.segment(image, raw=True).overview()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    assert pixels.shape[0] < pixels.shape[1]
    assert pixels[..., :3].std() > 20


@pytest.mark.parametrize("with_raw", [True, False])
def test_plot_attribution(with_raw):
    image = np.zeros((6, 8, 3), dtype=np.uint8)
    maps = [("ant", np.random.default_rng(0).random((6, 8))), ("bee", np.zeros((6, 8)))]
    raw = [np.full((6, 8), 0.25), np.full((6, 8), 0.75)] if with_raw else []
    figure = plot_attribution(image, maps, raw)
    expected = ["image", "ant\nraw", "bee\nraw", "distinct", "distinct"] if with_raw else ["image", "ant", "bee"]
    assert _titles(figure) == expected
    drawn = [np.asarray(axes.images[-1].get_array()) for axes in figure.axes if axes.get_title()]
    for found, values in zip(drawn[1:], [*raw, *(values for _, values in maps)], strict=True):
        assert np.array_equal(found, values)


def test_plot_maps_uses_one_color_scale():
    image = np.zeros((6, 8, 3), dtype=np.uint8)
    rows = {"ant": [torch.rand(6, 8), torch.rand(3, 4)], "bee": [torch.zeros(6, 8), torch.full((3, 4), 0.5)]}
    figure = plot_maps(image, rows, ["fine", "coarse"])
    assert [axes.get_title() for axes in figure.axes] == ["fine", "coarse", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["ant", "", "bee", ""]
    drawn = [axes.images[-1] for axes in figure.axes]
    for one, values in zip(drawn, [*rows["ant"], *rows["bee"]], strict=True):
        assert np.array_equal(np.asarray(one.get_array()), values.numpy())
        assert one.get_clim() == (0, 1)
        assert one.get_extent() == figure.axes[0].images[0].get_extent(), "coarse maps cover the image"


def test_plot_maps_needs_a_map_for_each_column():
    with pytest.raises(ValueError, match="2 columns; 'ant' has 1"):
        plot_maps(np.zeros((6, 8, 3), dtype=np.uint8), {"ant": [np.zeros((6, 8))]}, ["one", "two"])


def test_plot_labels_has_the_colors_of_its_legend():
    image = np.full((6, 8, 3), 200, dtype=np.uint8)
    labels = torch.zeros(6, 8, dtype=torch.int64)
    labels[2:, 3:] = 2
    figure = plot_labels(image, [("empty", torch.zeros_like(labels)), ("one object", labels)], ["ant", "bee"])
    assert _titles(figure) == ["empty", "one object"]
    assert np.array_equal(_drawn(figure, "empty"), image)
    assert np.array_equal(_drawn(figure, "one object"), overlay(image, labels.numpy()))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ant", "bee"]
    shown = [np.array(patch.get_facecolor()[:3]) * 255 for patch in legend.get_patches()]
    np.testing.assert_allclose(shown, voc_colors()[1:3], atol=1e-6)


def test_show_uses_pyplot(segmenter, image, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    segmenter.segment(image).show()
    (figure,) = shown
    assert np.asarray(figure.axes[0].images[0].get_array()).std() > 20
    plt.close("all")

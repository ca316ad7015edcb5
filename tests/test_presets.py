"""Presets of segmenters."""

import json
import warnings

import pytest
import torch
from conftest import TinyVGG
from PIL import Image
from typer.testing import CliRunner

from dcsm_attr import DenseCRF, DistinctClassSaliency
from dcsm_attr.attribution import maps as eq
from dcsm_attr.attribution.layers import default_layers
from dcsm_attr.cli import app
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.checkpoint import Architecture, build_classifier, save_network
from dcsm_attr.segmentation.presets import build_preset_segmenter

PREPROCESS = Preprocess(size=48)


@pytest.fixture
def image():
    return Image.effect_noise((48, 36), 90).convert("RGB")


def test_the_paper_preset_is_the_default_segmenter(vgg):
    segmenter = build_preset_segmenter(vgg, "paper")
    assert segmenter.settings["saliency"] == DistinctClassSaliency(vgg).settings
    assert (segmenter.crf, segmenter.background_exponent) == (DenseCRF(), 1.0)


def test_the_tuned_preset_equals_its_settings(vgg, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A single candidate is intended here.
        alone = build_preset_segmenter(vgg, "tuned", preprocess=PREPROCESS).segment(image, [2])
        both = build_preset_segmenter(vgg, "tuned", preprocess=PREPROCESS).segment(image, [2, 0])
    prepared = PREPROCESS(image)
    for segmentation, classes in ((alone, [2]), (both, [2, 0])):
        layers = default_layers(vgg)[-1:]
        candidates = list(segmentation.classes)
        assert sorted(candidates) == sorted(classes), "only classes of the image are candidates"
        by_name = DistinctClassSaliency(vgg, layers, subtract=len(classes) > 1, min_candidates=1)
        found = by_name.class_maps(prepared.tensor[None], candidates, candidates, attribute_to_layer_input=True)
        probabilities = eq.label_probabilities(prepared.crop(found.maps), found.detected, 0.35)
        assert torch.allclose(segmentation.unrefined, probabilities[0], atol=1e-6)
        refined = DenseCRF(3, 30, 10, 1, 3)(probabilities, prepared.pixels[None])
        assert torch.allclose(segmentation.probabilities, refined[0], atol=1e-5)


def test_the_deepest_layers(vgg, images):
    every = DistinctClassSaliency(vgg).layers
    assert DistinctClassSaliency(vgg, deepest=2).layers == every[-2:]
    assert DistinctClassSaliency(vgg, deepest=99).layers == every
    by_name = DistinctClassSaliency(vgg, every[-1]).attribute(images, 1, attribute_to_layer_input=True)
    assert torch.equal(DistinctClassSaliency(vgg, deepest=1).attribute(images, 1), by_name)


@pytest.mark.parametrize("options", [{"deepest": 0}, {"deepest": 1, "layer": "features.5"}])
def test_deepest_is_checked(vgg, options):
    with pytest.raises(ValueError, match="deepest is the number of default layers to use"):
        DistinctClassSaliency(vgg, **options)


def test_rejects_an_unknown_preset():
    with pytest.raises(ValueError, match="preset must be one of 'paper', 'tuned'; got 'best'"):
        build_preset_segmenter(TinyVGG(), "best")


def test_on_the_command_line(tmp_path, image):
    names = ("ant", "bee", "cat")
    built = build_classifier(Architecture("squeezenet1_1", 3, "features.6", "linear"), None, names, PREPROCESS)
    save_network(built, tmp_path / "net.safetensors")
    image.save(tmp_path / "photo.png")
    arguments = ["segment", "photo.png", "--weights", "net.safetensors", "--classes", "bee", "--device", "cpu"]

    def manifest(*options):
        out = tmp_path / "-".join(("out", *options))
        inputs = [str(tmp_path / a) if a.endswith((".png", ".safetensors")) else a for a in arguments]
        result = CliRunner().invoke(app, [*inputs, "--output", str(out), *options])
        assert result.exit_code == 0, result.output
        return json.loads((out / "photo" / "manifest.json").read_text())["settings"]

    tuned, changed = manifest("--preset", "tuned"), manifest("--preset", "tuned", "--background", "0.5", "--no-crf")
    assert tuned["crf"]["bilateral_weight"] == 3
    assert (tuned["background_exponent"], tuned["saliency"]["min_candidates"]) == (0.35, 1)
    assert len(tuned["saliency"]["layers"]) == 1
    assert changed["crf"] is None
    assert changed["background_exponent"] == 0.5
    assert changed["saliency"] == tuned["saliency"]

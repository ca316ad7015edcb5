"""Real images with ImageNet weights; skipped if they are absent."""

import json
from pathlib import Path

import pytest

from benchmarks import animal_share
from dcsm_attr import Segmenter
from dcsm_attr.models.weights import load_class_names, load_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BOXES = json.loads((BENCHMARKS / "animal_boxes.json").read_text())


@pytest.fixture(scope="module")
def segmenter(shared):
    network = load_model("squeezenet1_1", shared / "models" / "squeezenet1_1-imagenet1k.safetensors")
    return Segmenter(network, class_names=load_class_names("imagenet"))


@pytest.mark.parametrize("file_name", ["dog-and-cat.png", "puppy-and-kitten.jpg"])
def test_subtraction_puts_more_of_each_map_on_its_own_animal(segmenter, shared, file_name):
    for name, share in animal_share.shares(segmenter, shared / "images" / file_name).items():
        assert share["distinct"] > share["raw"] + 0.1, name
        assert share["distinct"] > 1.5 * share["area"], name


def test_each_animal_gets_its_own_label(segmenter, shared):
    """After the CRF, what is labeled as an animal lies in the box drawn around it by eye.

    It is a part of the animal only: the network was trained to tell a thousand classes apart by their most telling
    parts, not to find all of a few.
    """
    animals = BOXES["puppy-and-kitten.jpg"]
    result = segmenter.segment(shared / "images" / "puppy-and-kitten.jpg", list(animals))
    for name, boxes in animals.items():
        labeled = result.labels == result.class_names.index(name) + 1
        mask = animal_share.animal_mask(boxes, result.image.shape[:2])
        assert labeled.float().mean() > 0.01, name
        assert (labeled & mask).sum() > 0.95 * labeled.sum(), name


def test_unknown_classes_are_detected(segmenter, shared):
    result = segmenter.segment(shared / "images" / "dog-and-cat.png")
    assert "bull mastiff" in [result.class_names[c] for c in result.candidates]
    assert set(result.labels.unique().tolist()) <= {0, *(c + 1 for c in result.classes)}

"""Segmenter: input types, Eq. 7 and the CRF, independence of the batch, and saving."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcsm_attr import DenseCRF, DistinctClassSaliency, Segmenter, Simonyan
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.datasets.masks import voc_colors
from dcsm_attr.datasets.preprocess import Preprocess

NAMES = ("ant", "bee", "cow", "dog")
SMALL = Preprocess(size=40)


@pytest.fixture
def image():
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 255, (30, 50, 3), dtype=np.uint8)).resize((60, 36))


@pytest.fixture
def segmenter(vgg):
    with torch.no_grad():
        vgg.classifier[2].bias.copy_(torch.tensor([0.5, 0.3, -0.6, -0.7]))
    return Segmenter(vgg, class_names=NAMES, preprocess=SMALL)


def test_results_do_not_depend_on_the_input_type(segmenter, image, tmp_path):
    path = tmp_path / "ein Bild – ü.png"
    image.save(path)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = segmenter.segment(image)
    for source in (path, str(path), array, tensor, tensor / 255):
        result = segmenter.segment(source)
        assert torch.equal(result.labels, expected.labels)
        torch.testing.assert_close(result.probabilities, expected.probabilities)
    assert segmenter.segment(path).source == str(path)
    assert expected.source is None


def test_labels_probabilities_and_names_agree(segmenter, image):
    result = segmenter.segment(image)
    height, width = image.height, image.width
    assert result.labels.shape == (height, width)
    assert result.labels.dtype == torch.int64
    assert result.probabilities.shape == (1 + len(result.classes), height, width)
    torch.testing.assert_close(result.probabilities.sum(0), torch.ones(height, width))
    values = torch.tensor([0, *(c + 1 for c in result.classes)])
    assert torch.equal(result.labels, values[result.probabilities.argmax(0)])
    assert result.names == tuple(NAMES[c] for c in result.classes)
    assert not result.fallback
    assert np.array_equal(result.image, np.array(image))
    with pytest.raises(AttributeError):
        result.labels = None


def test_contrast_candidates_are_not_in_the_result(segmenter, image):
    result = segmenter.segment(image, ["cow"])
    assert result.classes == (2,)
    assert len(result.candidates) == 3
    assert set(result.labels.unique().tolist()) <= {0, 3}
    assert result.class_maps.detected.tolist() == [[True, False, False]]


def test_unaries_are_the_background_rule_on_the_canvas(vgg, image):
    """Without resizing and CRF the result is Eq. 7 and an argmax."""
    square = image.resize((40, 40))
    segmenter = Segmenter(vgg, crf=None, preprocess=SMALL)
    result = segmenter.segment(square, [0, 3])
    x = SMALL(square).tensor[None]
    maps = DistinctClassSaliency(vgg).class_maps(x, classes=[0, 3])
    kept = [k for k in range(3) if maps.classes[0, k] in (0, 3)]
    foreground = maps.maps[0, kept]
    background = 1 - foreground.amax(0, keepdim=True)
    expected = torch.cat([background, foreground])
    torch.testing.assert_close(result.probabilities, expected / expected.sum(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(result.probabilities, result.unrefined)


def test_background_exponent(vgg, image):
    square = image.resize((40, 40))
    parts = {"crf": None, "preprocess": SMALL}
    result = Segmenter(vgg, **parts, background_exponent=2).segment(square, [0, 3])
    maps = DistinctClassSaliency(vgg).class_maps(SMALL(square).tensor[None], classes=[0, 3])
    foreground = maps.maps[0, [k for k in range(3) if maps.classes[0, k] in (0, 3)]]
    expected = torch.cat([(1 - foreground.amax(0, keepdim=True)) ** 2, foreground])
    torch.testing.assert_close(result.probabilities, expected / expected.sum(0), rtol=1e-5, atol=1e-6)
    assert result.settings["background_exponent"] == 2
    paper = Segmenter(vgg, **parts).segment(square, [0, 3])
    assert paper.settings["background_exponent"] == 1
    assert (result.labels > 0).sum() > (paper.labels > 0).sum()


@pytest.mark.parametrize("exponent", [0, -1, float("nan"), float("inf")])
def test_rejects_bad_exponents(vgg, exponent):
    with pytest.raises(ValueError, match="background_exponent must be positive, got"):
        Segmenter(vgg, background_exponent=exponent)


def test_the_crf_refines_the_unaries_with_the_image_on_the_canvas(segmenter, image):
    square = image.resize((40, 40))
    result = segmenter.segment(square)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    torch.testing.assert_close(result.probabilities, DenseCRF()(result.unrefined[None], pixels)[0])
    assert (result.probabilities - result.unrefined).abs().max() > 0.01


def test_a_batch_of_different_sizes_equals_single_images(segmenter, image):
    images = [image, image.resize((36, 60)), image.crop((5, 5, 45, 30)), image.transpose(0)]
    classes = [["ant"], [1, 2], ["bee", "dog"], [3]]
    for known in (None, classes):
        together = segmenter.segment_batch(images, known)
        for i, result in enumerate(together):
            alone = segmenter.segment(images[i], None if known is None else known[i])
            assert result.classes == alone.classes
            torch.testing.assert_close(result.probabilities, alone.probabilities, rtol=0, atol=1e-4)
            assert (result.labels == alone.labels).float().mean() > 0.999


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 0.2)])
def test_a_model_of_another_dtype(vgg, image, dtype, tolerance):
    expected = Segmenter(vgg, preprocess=SMALL, crf=None).segment(image, [0, 2])
    result = Segmenter(vgg.to(dtype), preprocess=SMALL, crf=None).segment(image, [0, 2])
    assert result.probabilities.dtype == torch.float32
    assert (result.probabilities - expected.probabilities).abs().mean() < tolerance


def test_nothing_detected_falls_back_to_the_best_class(segmenter, vgg, image):
    with torch.no_grad():
        vgg.classifier[2].bias.fill_(-9)
    result = segmenter.segment(image)
    assert result.fallback
    assert result.classes == (int(result.class_maps.scores[0].argmax()),)
    assert result.manifest()["nothing_detected"] is True


def test_another_saliency_method(vgg, image):
    square = image.resize((40, 40))
    result = Segmenter(vgg, saliency=Simonyan(vgg), preprocess=SMALL).segment(square, [1])
    assert result.settings["saliency"]["method"] == "Simonyan"
    assert result.names == ("class 1",)
    expected = Simonyan(vgg).class_maps(SMALL(square).tensor[None], [1]).maps
    torch.testing.assert_close(result.class_maps.maps, expected, rtol=0, atol=1e-6)


def test_save(segmenter, image, tmp_path):
    result = segmenter.segment(image, raw=True)
    written = result.save(tmp_path / "a" / "b", overview=True, provenance={"weights": "mine.pth"})
    folder = tmp_path / "a" / "b"
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in written)
    assert {p.name for p in written} == {"labels.png", "maps.npz", "overlay.png", "overview.png", "manifest.json"}
    labels = Image.open(folder / "labels.png")
    assert labels.mode == "P"
    assert np.array_equal(np.array(labels), result.labels.numpy())
    assert np.array_equal(np.array(labels.getpalette(), dtype=np.uint8).reshape(-1, 3), voc_colors())
    with np.load(folder / "maps.npz") as arrays:
        assert np.array_equal(arrays["maps"], result.class_maps.maps[0].numpy())
        assert np.array_equal(arrays["raw"], result.class_maps.raw[0].numpy())
        assert arrays["classes"].tolist() == list(result.candidates)
        assert np.array_equal(arrays["probabilities"], result.probabilities.numpy())
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert manifest["size"] == [36, 60]
    assert [entry["name"] for entry in manifest["candidates"]] == [NAMES[c] for c in result.candidates]
    assert manifest["label_values"] == {
        str(c + 1): {"class": c, "name": NAMES[c], "score": round(float(result.class_maps.scores[0, c]), 6)}
        for c in result.classes
    }
    settings = manifest["settings"]
    assert settings["weights"] == "mine.pth"
    assert settings["crf"]["bilateral_xy"] == 30
    assert settings["saliency"]["scales"] == [0.8, 1.0, 1.2]
    assert settings["preprocess"]["size"] == 40
    pixels = np.array(Image.open(folder / "overlay.png"))
    original = np.array(image)
    inside = result.labels.numpy() == 0
    inside[:, 1:] &= inside[:, :-1]
    inside[1:] &= inside[:-1]
    assert np.array_equal(pixels[inside], original[inside])
    assert (pixels != original).any()


def test_save_attribution(segmenter, image, tmp_path):
    result = segmenter.segment(image, raw=True)
    written = result.save_attribution(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["attribution.json", "attribution.npz", "attribution.png"]
    assert len(written) == 3
    with np.load(tmp_path / "attribution.npz") as arrays:
        assert sorted(arrays) == ["classes", "maps", "raw"]
        assert arrays["classes"].tolist() == list(result.candidates)
        assert np.array_equal(arrays["maps"], result.class_maps.maps[0].numpy())
        assert np.array_equal(arrays["raw"], result.class_maps.raw[0].numpy())


def test_labels_above_254_are_renumbered(vgg, image, tmp_path):
    wide = torch.nn.Conv2d(16, 300, 1)
    vgg.classifier[2] = wide
    result = Segmenter(vgg, preprocess=SMALL).segment(image, [290, 7])
    assert set(result.labels.unique().tolist()) <= {0, 8, 291}
    assert (result.labels > 0).any()
    result.save(tmp_path)
    values = json.loads((tmp_path / "manifest.json").read_text())["label_values"]
    pixels = np.array(Image.open(tmp_path / "labels.png"))
    for value, entry in values.items():
        assert np.array_equal(pixels == int(value), result.labels.numpy() == entry["class"] + 1)


def test_a_failed_write_keeps_the_old_file(segmenter, image, tmp_path, monkeypatch):
    result = segmenter.segment(image)
    result.save(tmp_path)

    def fail(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    before = (tmp_path / "maps.npz").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        result.save(tmp_path)
    assert (tmp_path / "maps.npz").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.png", "maps.npz", "overlay.png"]


def test_rejects_an_unwritable_folder(segmenter, image, tmp_path):
    file = tmp_path / "file"
    file.write_text("a file")
    with pytest.raises(OSError, match=r"cannot write to the folder .*file"):
        segmenter.segment(image).save(file)
    with pytest.raises(OSError, match="cannot write"):
        segmenter.segment(image).save(file / "below")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ox"], "there is no class 'ox' among the 4 class names"),
        (["AN"], "Similar names: ant"),
        ([], "at least one class index or name"),
        ("cow", "sequence"),
        ([9], "between 0 and 3"),
        ([1.0], "must be integers"),
    ],
)
def test_rejects_unknown_classes(segmenter, image, classes, message):
    with pytest.raises(ValueError, match=message):
        segmenter.segment(image, classes)


def test_classes_may_be_numpy_integers(segmenter, image):
    expected = segmenter.segment(image, [1, 3])
    assert expected.classes == (1, 3)
    for classes in (np.array([1, 3]), [np.uint8(1), "dog"]):
        assert torch.equal(segmenter.segment(image, classes).probabilities, expected.probabilities)


def test_rejects_other_bad_input(segmenter, vgg, image, tmp_path):
    with pytest.raises(ValueError, match="images is empty"):
        segmenter.segment_batch([])
    with pytest.raises(ValueError, match="1 for 2 images"):
        segmenter.segment_batch([image] * 2, [["ant"]])
    with pytest.raises(ValueError, match="no class_names: pass them"):
        Segmenter(vgg, preprocess=SMALL).segment(image, ["ant"])
    with pytest.raises(ValueError, match="3 names, but the model has 4 classes"):
        Segmenter(vgg, class_names=NAMES[:3], preprocess=SMALL).segment(image)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"broken\.jpg: not an image"):
        segmenter.segment(broken)


def test_bfloat16_changes_the_maps_slightly(segmenter, image, vgg):
    lower = Segmenter(vgg, class_names=NAMES, preprocess=SMALL, precision="bfloat16")
    expected, result = (each.segment(image, [0, 1]) for each in (segmenter, lower))
    assert (segmenter.settings["precision"], lower.settings["precision"]) == ("float32", "bfloat16")
    assert result.probabilities.dtype == torch.float32
    difference = (result.class_maps.maps - expected.class_maps.maps).abs().max()
    # Eight bits of mantissa: not equal, but close.
    assert 1e-5 < difference < 0.15
    assert not torch.is_autocast_enabled("cpu")
    assert {p.dtype for p in vgg.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'float16'"):
        Segmenter(vgg, precision="float16")

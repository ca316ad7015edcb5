"""The options of the method: what they build, and what results record of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from dcsm_attr import ClassActivationMaps, DistinctClassSaliency, FusedSaliency, Segmenter, Simonyan
from dcsm_attr.cli import app
from dcsm_attr.cli.build import build_saliency
from dcsm_attr.cli.options import MaskOptions, MethodOptions
from dcsm_attr.datasets.masks import VOC_CLASSES, label_image
from dcsm_attr.datasets.scenes import generate_scene, write_scene_folder
from dcsm_attr.demo import scene_classifier
from dcsm_attr.models.checkpoint import Architecture, build_classifier, save_network

pytestmark = pytest.mark.usefixtures("small_canvas")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def build(vgg, *options):
    return build_saliency(vgg, MethodOptions(*options), activation="sigmoid", pooling="average")


def test_the_default_options_are_the_defaults_of_the_methods(vgg):
    settings = {"activation": "sigmoid", "pooling": "average"}
    dcsm = DistinctClassSaliency(vgg, **settings)
    assert build(vgg).settings == dcsm.settings
    assert build(vgg, "simonyan").settings == Simonyan(vgg, **settings).settings
    cam = ClassActivationMaps(vgg, **settings)
    assert build(vgg, "cam").settings == cam.settings
    fusion = build(vgg, "fusion").settings
    assert (fusion["first"], fusion["second"]) == (cam.settings, dcsm.settings)
    assert MethodOptions().arguments() == MaskOptions().arguments() == []


def test_the_preset_reaches_dcsm_alone_and_in_the_fusion(vgg):
    dcsm = DistinctClassSaliency(vgg, activation="sigmoid", pooling="average", min_candidates=1, deepest=1)
    assert build(vgg, "dcsm", "tuned").settings == dcsm.settings
    assert build(vgg, "fusion", "tuned").settings["second"] == dcsm.settings
    assert build(vgg, "cam", "tuned").settings == build(vgg, "cam").settings


def test_the_arguments_give_the_options_back():
    assert MethodOptions("simonyan", "tuned").arguments() == ["--method=simonyan", "--preset=tuned"]
    options = MaskOptions(0.5, Path("out/net.safetensors"), no_crf=True, precision="bfloat16")
    expected = ["--background=0.5", "--walk=net.safetensors", "--no-crf", "--precision=bfloat16"]
    assert options.arguments() == expected


@pytest.fixture
def voc(tmp_path):
    """A VOC folder of two scenes, a network of torchvision, and a trained classifier."""
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lines = ["id,split,labels"]
    for i in range(2):
        scene = generate_scene(i, seed=6, size=40)
        Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(root / "JPEGImages" / f"s{i}.jpg")
        label_image(scene.labels.numpy()).save(root / "SegmentationClass" / f"s{i}.png")
        lines.append(f"s{i},val,{' '.join(VOC_CLASSES[c] for c in scene.present.nonzero()[:, 0].tolist())}")
    (root / "image_labels.csv").write_text("\n".join(lines) + "\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("s0\ns1\n")
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=len(VOC_CLASSES))
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    architecture = Architecture("squeezenet1_1", len(VOC_CLASSES), head="extended")
    save_network(build_classifier(architecture, None, VOC_CLASSES), tmp_path / "best.safetensors")
    return root


def evaluated(voc, *options):
    network = ("--model", "squeezenet1_1", "--weights", voc.parent / "net.safetensors", "--protocol", "known")
    result = run("evaluate", voc, *network, "--device", "cpu", "--output", voc.parent / "out", *options)
    assert result.exit_code == 0, result.output
    return result, json.loads((voc.parent / "out" / "evaluation.json").read_text())


def test_evaluate_uses_and_reports_the_options(voc):
    result, content = evaluated(voc, "--preset", "tuned", "--background", 2, "--no-crf")
    (one,) = content["evaluations"]
    assert one["settings"]["saliency"]["min_candidates"] == 1
    assert one["settings"]["background_exponent"] == 2.0
    assert one["settings"]["crf"] is None
    assert one["after the CRF"] is None
    command = content["measured"]["command"]
    assert command.endswith("--count=0 --preset=tuned --background=2.0 --no-crf")
    assert f"{100 * one['before the CRF']['mean IoU']:.1f} without a CRF" in result.output
    assert "after the CRF" not in result.output


def test_evaluate_with_other_options_is_another_evaluation(voc):
    simonyan = evaluated(voc, "--method", "simonyan", "--no-crf")[1]
    assert simonyan["evaluations"][0]["settings"]["saliency"]["method"] == "Simonyan"
    assert "--method=simonyan --no-crf" in simonyan["measured"]["command"]
    again = run(
        *("evaluate", voc, "--model", "squeezenet1_1", "--weights", voc.parent / "net.safetensors"),
        *("--protocol", "known", "--device", "cpu", "--output", voc.parent / "out", "--no-crf"),
    )
    assert "holds an evaluation with other settings: saliency.method (Simonyan before" in str(again.exception)
    default = evaluated(voc, "--overwrite")[1]
    assert default["measured"]["command"].endswith("--count=0")
    counts = "confusion matrix (row: truth, column: prediction)"
    raw, dcsm = (one["evaluations"][0]["before the CRF"][counts] for one in (simonyan, default))
    assert raw != dcsm


def test_a_trained_classifier_is_named_in_full(voc):
    _, content = evaluated(voc, "--weights", voc.parent / "best.safetensors", "--no-crf")
    settings = content["evaluations"][0]["settings"]
    assert settings["model"] == "ScoreMapNetwork"
    expected = {"model": "squeezenet1_1", "num_classes": 20, "cut": None, "head": "extended"}
    assert settings["architecture"] == expected
    table = (voc.parent / "out" / "evaluation.md").read_text()
    assert "| `architecture.model` | squeezenet1_1 |" in table
    assert "| `architecture.head` | extended |" in table


@pytest.mark.parametrize("command", ["segment", "attribute"])
def test_images_take_the_same_options(voc, tmp_path, command):
    network = (
        "--model",
        "vgg16",
        "--weights",
        tmp_path / "best.safetensors",
        "--device",
        "cpu",
        "--classes",
        "cat,dog",
    )
    image_path, out = voc / "JPEGImages" / "s0.jpg", tmp_path / "out"
    result = run(command, image_path, *network, "--output", out, "--preset", "tuned")
    assert result.exit_code == 0, result.output
    (written,) = (path for path in (out / "s0").iterdir() if path.suffix == ".json")
    settings = json.loads(written.read_text())["settings"]
    assert len(settings["saliency"]["layers"]) == settings["saliency"]["min_candidates"] == 1
    # The file contains its own model; the option that names another one has no effect, and is not recorded.
    assert settings["model"] == "ScoreMapNetwork"
    assert settings["architecture"]["model"] == "squeezenet1_1"
    result = run(command, image_path, *network, "--output", out, "--method", "simonyan", "--overwrite")
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["settings"]["saliency"]["method"] == "Simonyan"


def test_segment_without_the_crf_labels_by_the_maps(voc, tmp_path):
    network = ("--weights", tmp_path / "best.safetensors", "--device", "cpu", "--classes", "cat,dog")
    result = run("segment", voc / "JPEGImages" / "s0.jpg", *network, "--no-crf", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "out" / "s0" / "maps.npz") as arrays:
        slots = arrays["probabilities"].argmax(axis=0)
        foreground = [int(c) for c in arrays["classes"] if c in (VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog"))]
    labels = np.asarray(Image.open(tmp_path / "out" / "s0" / "labels.png"))
    assert np.array_equal(labels, np.take([0, *(c + 1 for c in foreground)], slots))
    assert json.loads((tmp_path / "out" / "s0" / "manifest.json").read_text())["settings"]["crf"] is None


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scene_folder(folder, count=7, seed=3, size=64, progress=False)
    return folder


@pytest.mark.parametrize("method", ["cam", "fusion"])
def test_other_methods_from_end_to_end(scenes, tmp_path, method):
    """With the shipped network: maps, labels and mean IoU are those of the segmenter that the options describe."""
    options = ("--weights", "demo", "--device", "cpu", "--method", method)
    image_path, out = scenes / "JPEGImages" / "000000.jpg", tmp_path / "out"
    for command, written in (("segment", "manifest.json"), ("attribute", "attribution.json")):
        result = run(command, image_path, *options, "--output", out / command)
        assert result.exit_code == 0, result.output
        saliency = json.loads((out / command / "000000" / written).read_text())["settings"]["saliency"]
        names = {"cam": ["Class Activation Maps"], "fusion": ["Class Activation Maps", "Distinct Class Saliency"]}
        parts = [saliency] if method == "cam" else [saliency["first"], saliency["second"]]
        assert [part["method"] for part in parts] == names[method]
    network = scene_classifier().network
    cam = ClassActivationMaps(network)
    expected = cam if method == "cam" else FusedSaliency(cam, DistinctClassSaliency(network))
    segmenter = Segmenter(network, saliency=expected, preprocess=scene_classifier().preprocess)
    own = segmenter.segment(image_path)
    with np.load(out / "segment" / "000000" / "maps.npz") as arrays:
        assert arrays["classes"].tolist() == own.class_maps.classes[0].tolist()
        np.testing.assert_allclose(arrays["probabilities"], own.probabilities.numpy(), atol=2e-3)
    result = run("evaluate", scenes, *options, "--protocol", "known", "--output", out)
    assert result.exit_code == 0, result.output
    content = json.loads((out / "evaluation.json").read_text())
    assert f"--method={method}" in content["measured"]["command"]
    assert 0.2 < content["evaluations"][0]["before the CRF"]["mean IoU"] < 1


def test_networks_without_class_activation_maps_are_told_what_to_do(tmp_path):
    weights = tmp_path / "mobilenet.safetensors"
    save_file(torchvision.models.mobilenet_v3_small(weights=None, num_classes=20).state_dict(), weights)
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    network = ("--model", "mobilenet_v3_small", "--weights", weights, "--class-names", "voc", "--device", "cpu")
    result = run("segment", tmp_path / "photo.png", *network, "--method", "cam", "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "fully_convolutional(model) makes such a network" in str(result.exception)

"""Seeds of single images and of folders, from class maps and from FickleNet, and the commands."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_pseudo_labels import make_collection, png_files, run
from torch import nn
from torchvision.models import vgg16
from untouched import untouched

from dcsm_attr import ClassActivationMaps
from dcsm_attr.cli import main
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.models.stochastic import FickleSettings
from dcsm_attr.pipelines.label_files import BackgroundSeedSettings, image_seeds, middle_layer, write_seeds
from dcsm_attr.wsss.ficklenet import FickleLocalizer, aggregate_maps, aggregate_prefixes, fickle_maps
from dcsm_attr.wsss.seeds import MapLocalizer, middle_layer_saliency

CANVAS = Preprocess(size=48)
BACKGROUND = BackgroundSeedSettings("features.5", 0.25)


@pytest.fixture
def fickle(vgg):
    return fully_convolutional(vgg, 4, cut="features", head="fickle", fickle=FickleSettings(3, 0.5)).eval()


def make_canvas(folder):
    collection = make_collection(folder, [(1, 3)])
    return CANVAS(Image.open(collection.images[0].path))


def expected_seeds(network, layer, prepared, foreground, maps, classes):
    """Seeds by hand, pixel by pixel, on the part of the canvas that the image covers."""
    height, width = prepared.pixels.shape[1:]
    saliency = middle_layer_saliency(network, prepared.tensor[None], layer)[0, 0]
    padded = np.pad(saliency.numpy(), 1, mode="edge")
    median = np.array(
        [[np.median(padded[y : y + 3, x : x + 3]) for x in range(saliency.shape[1])] for y in range(saliency.shape[0])],
        dtype=np.float32,
    )
    enlarged = F.interpolate(torch.from_numpy(median)[None, None], (48, 48), mode="bilinear")[0, 0, :height, :width]
    lowest = enlarged.flatten().argsort(stable=True)[: int(BACKGROUND.share * height * width)]
    labels = torch.full((height, width), VOID)
    labels.view(-1)[lowest] = 0
    for y in range(height):
        for x in range(width):
            seeded = [(float(maps[k, y, x]), k) for k in range(len(classes)) if foreground[k, y, x]]
            if seeded:
                labels[y, x] = classes[max(seeded, key=lambda pair: pair[0])[1]] + 1
    rows, columns = (
        (torch.arange(long).add(0.5) * short / long).long()
        for long, short in zip(prepared.size, (height, width), strict=True)
    )
    return labels[rows][:, columns]


def test_seeds_of_maps_by_hand(tmp_path, vgg):
    prepared = make_canvas(tmp_path)
    saliency = ClassActivationMaps(vgg)
    with untouched(vgg):
        found = image_seeds(vgg, MapLocalizer(saliency, 0.5), prepared, (3, 1), BACKGROUND)
    maps = saliency.class_maps(prepared.tensor[None], [[3, 1]])
    order = [maps.classes[0].tolist().index(c) for c in (3, 1)]
    inside = prepared.crop(maps.maps[0, order])
    foreground = inside > 0.5 * inside.amax(dim=(1, 2), keepdim=True)
    assert torch.equal(found, expected_seeds(vgg, BACKGROUND.layer, prepared, foreground, inside, (3, 1)))
    assert {0, VOID} < set(found.unique().tolist())


def test_seeds_of_ficklenet_by_hand(tmp_path, fickle):
    prepared = make_canvas(tmp_path)
    layer = "backbone.features.5"
    with untouched(fickle):
        found = image_seeds(
            fickle, FickleLocalizer(fickle, 7, 0.8), prepared, (1, 3), BackgroundSeedSettings(layer, BACKGROUND.share)
        )
    drawn = [prepared.crop(one) for one in fickle_maps(fickle, prepared.tensor[None], (1, 3), 7, size=(48, 48), seed=0)]
    normalized = torch.stack([one / one.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12) for one in drawn])
    foreground, mean = (normalized > 0.8).any(dim=0), normalized.mean(dim=0)
    from dcsm_attr.models.stochastic import use_generator

    with use_generator(torch.Generator().manual_seed(0)):
        expected = expected_seeds(fickle, layer, prepared, foreground, mean, (1, 3))
    assert (found == expected).float().mean() > 0.999
    again = image_seeds(
        fickle,
        FickleLocalizer(fickle, 7, 0.8, seed=1),
        prepared,
        (1, 3),
        BackgroundSeedSettings(layer, BACKGROUND.share),
    )
    assert not torch.equal(found, again)


def test_each_prefix_of_the_maps_is_aggregated_like_the_maps_alone():
    maps = torch.rand(5, 2, 4, 4)
    for count, one in enumerate(aggregate_prefixes(maps), start=1):
        alone = aggregate_maps(maps[:count])
        assert torch.equal(one.highest, alone.highest)
        assert torch.allclose(one.mean, alone.mean)
        assert one.count == count


def test_networks_without_stochastic_selection(vgg):
    network = fully_convolutional(vgg, 4, cut="features", head="linear")
    with pytest.raises(ValueError, match="selects no hidden units at random"):
        FickleLocalizer(network)


def test_a_threshold_out_of_range(fickle):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 1.5"):
        FickleLocalizer(fickle, threshold=1.5)


def test_the_middle_layer_of_vgg_is_that_of_sec():
    model = vgg16(weights=None, init_weights=False)
    # conv4_1 follows the third max pool.
    assert [i for i, layer in enumerate(model.features) if isinstance(layer, nn.MaxPool2d)][2] == 16
    assert middle_layer(model) == "features.17"
    with_score_maps = fully_convolutional(model, 2, cut="features.29", head="linear")
    assert middle_layer(with_score_maps) == "backbone.features.17"


def test_a_folder_of_seeds_resumes(tmp_path, vgg):
    collection = make_collection(tmp_path / "p", [(0,), (1, 3), (), (2,)], corrupt=(3,))
    localizer = MapLocalizer(ClassActivationMaps(vgg))

    def write(folder, background=BACKGROUND):
        return write_seeds(vgg, localizer, collection, folder, CANVAS, background, progress=False)

    with untouched(vgg):
        assert set(write(tmp_path / "s")) == {"3"}
    before = png_files(tmp_path / "s")
    assert set(before) == {"0.png", "1.png", "2.png"}
    prepared = CANVAS(Image.open(tmp_path / "p" / "1.png"))
    expected = image_seeds(vgg, localizer, prepared, (1, 3), BACKGROUND)
    assert np.array_equal(np.array(Image.open(tmp_path / "s" / "1.png")), expected.numpy())
    (tmp_path / "s" / "0.png").unlink()
    write(tmp_path / "s")
    assert png_files(tmp_path / "s") == before
    with pytest.raises(ValueError, match=r"background\.share \(0\.25 before, 0\.1 now\)"):
        write(tmp_path / "s", BackgroundSeedSettings("features.5"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc") / "scenes"
    assert run("scenes", folder, "--count", 8, "--seed", 5, "--size", 64).exit_code == 0
    return folder


def run_successfully(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_from_a_fickle_classifier_to_an_evaluated_network(tmp_path, scenes):
    of_training = ("--model", "squeezenet1_1", "--weights", "none", "--steps", 2, "--batch-size", 2, "--workers", 0)
    head = ("--cut", "features.7", "--output-stride", 4, "--head", "fickle")
    run_successfully("train", scenes, *of_training, *head, "--size", 64, "--output", tmp_path / "c")
    best = tmp_path / "c" / "best.safetensors"
    ficklenet = ("ficklenet", scenes, "--weights", best, "--samples", 3, "--output", tmp_path / "f")
    assert "backbone.features" in run_successfully(*ficklenet)
    listed = (scenes / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    before = png_files(tmp_path / "f")
    assert set(before) == {f"{name}.png" for name in listed}
    values = {int(v) for name in listed for v in np.unique(np.array(Image.open(tmp_path / "f" / f"{name}.png")))}
    assert {0, VOID} < values <= {*range(9), VOID}
    settings = json.loads((tmp_path / "f" / "settings.json").read_text())["foreground"]
    assert (settings["window"], settings["rate"], settings["num_samples"]) == (9, 0.9, 3)
    run_successfully(*ficklenet)
    assert png_files(tmp_path / "f") == before
    run_successfully("miou", scenes, tmp_path / "f", "--split", "train")
    network = tmp_path / "s" / "segmentation_net.safetensors"
    run_successfully(
        *("train-seg", scenes, "--label-maps", tmp_path / "f", "--loss", "dsrg", "--head", "largefov", *of_training),
        *("--cut", "features.7", "--size", 64, "--output", tmp_path / "s"),
    )
    assert json.loads((tmp_path / "s" / "settings.json").read_text())["learned_from"] == "dsrg, f"
    output = run_successfully(
        "evaluate", scenes, "--weights", network, "--protocol", "both", "--output", tmp_path / "e"
    )
    assert "detected classes, 2 images: mean IoU" in output
    assert "known classes, 2 images: mean IoU" in output
    evaluated = json.loads((tmp_path / "e" / "evaluation.json").read_text())["evaluations"]
    assert [one["settings"]["saliency"]["scales"] for one in evaluated] == [[0.75, 1.0, 1.25]] * 2
    image = next((scenes / "JPEGImages").iterdir())
    run_successfully("segment", image, "--weights", network, "--output", tmp_path / "o", "--no-crf")
    assert (tmp_path / "o" / image.stem / "labels.png").exists()


def test_seeds_of_a_method_and_a_network_on_the_classifiers_backbone(tmp_path, scenes):
    for method in ("cam", "dcsm"):
        run_successfully("seeds", scenes, "--weights", "demo", "--method", method, "--output", tmp_path / method)
    assert png_files(tmp_path / "cam") != png_files(tmp_path / "dcsm")
    run_successfully(
        *(
            "train-seg",
            scenes,
            "--label-maps",
            tmp_path / "cam",
            "--loss",
            "sec",
            "--head",
            "fcn",
            "--weights",
            "demo",
        ),
        *("--steps", 2, "--batch-size", 2, "--workers", 0, "--size", 64, "--output", tmp_path / "s"),
    )
    assert (tmp_path / "s" / "segmentation_net.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train-seg", "--label-maps", "nowhere"), "there is no folder nowhere"),
        (("ficklenet", "--weights", "demo"), "selects no hidden units at random"),
        (("seeds", "--weights", "demo", "--threshold", "1.5"), "share must lie in [0, 1)"),
    ],
)
def test_errors_of_the_commands(tmp_path, scenes, monkeypatch, capsys, arguments, message):
    command, *options = arguments
    monkeypatch.setattr(sys, "argv", ["dcsm-attr", command, str(scenes), *options, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 1
    assert message in capsys.readouterr().err


def test_options_of_class_maps_are_refused_with_a_segmentation_network(tmp_path, scenes, monkeypatch, capsys):
    from test_segmentation_net import net

    from dcsm_attr.models.checkpoint import save_network

    save_network(net(), tmp_path / "net.safetensors")
    command = ["dcsm-attr", "evaluate", str(scenes), "--weights", str(tmp_path / "net.safetensors")]
    monkeypatch.setattr(sys, "argv", [*command, "--method", "cam", "--background", "2", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "leave out --method=cam, --background." in capsys.readouterr().err

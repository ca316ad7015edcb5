"""Folders of label maps: their content, resuming, damaged images, and `dcsm-attr affinity`."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import dcsm_attr.pipelines.label_files as label_files
from dcsm_attr import ClassActivationMaps, DenseCRF, Segmenter
from dcsm_attr.cli import app, main
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.evaluation.evaluate import evaluate_label_maps
from dcsm_attr.pipelines.batches import Shard
from dcsm_attr.pipelines.label_files import Confidence, write_confident_labels, write_pseudo_labels
from dcsm_attr.wsss.affinity import confident_labels

NAMES = ("a", "b", "c", "d")
CRF = DenseCRF(bilateral_xy=8, iterations=2)


def make_collection(folder, classes, corrupt=()):
    """Images of noise with the given classes."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i, image_classes in enumerate(classes):
        path = folder / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 255, (24, 30 + i, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
        if i in corrupt:
            path.write_bytes(b"broken")
        items.append(LabeledImage(str(i), path, tuple(image_classes)))
    return Collection(NAMES, tuple(items))


def make_segmenter(vgg, **settings):
    return Segmenter(
        vgg, saliency=ClassActivationMaps(vgg), crf=CRF, class_names=NAMES, preprocess=Preprocess(size=48), **settings
    )


def png_files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_confident_labels_of_a_collection(tmp_path, vgg):
    collection = make_collection(tmp_path / "p", [(0,), (1, 3), (), (2,)])
    confidence = Confidence(2.0, 6.0, CRF)
    assert write_confident_labels(make_segmenter(vgg), collection, tmp_path / "l", confidence, progress=False) == {}
    one = make_segmenter(vgg)
    for item in collection:
        found = torch.from_numpy(np.array(Image.open(tmp_path / "l" / f"{item.name}.png")))
        if not item.classes:
            assert found.shape == (24, 32)
            assert not found.any()
            continue
        prepared = one.preprocess(Image.open(item.path))
        maps = one.saliency.class_maps(prepared.tensor[None], [item.classes])
        expected = confident_labels(
            prepared.crop(maps.maps[0]), maps.classes[0], prepared.pixels, low=2.0, high=6.0, crf=CRF
        )
        assert torch.equal(found, expected)
    assert Image.open(tmp_path / "l" / "1.png").mode == "P"


def test_pseudo_labels_of_a_collection(tmp_path, vgg):
    collection = make_collection(tmp_path / "p", [(0,), (1, 3), (), (2,)])
    assert write_pseudo_labels(make_segmenter(vgg), collection, tmp_path / "l", progress=False) == {}
    for item in collection:
        found = np.array(Image.open(tmp_path / "l" / f"{item.name}.png"))
        assert found.shape == (24, 30 + int(item.name))
        if item.classes:
            expected = make_segmenter(vgg).segment(item.path, item.classes).display_labels()
            assert np.array_equal(found, expected)
        else:
            assert not found.any()


@pytest.mark.parametrize("write", [write_confident_labels, write_pseudo_labels])
@pytest.mark.parametrize("killed_at", [1, 4, 6])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, vgg, monkeypatch, write, killed_at):
    collection = make_collection(tmp_path / "p", [(i % 4,) for i in range(7)])
    write(make_segmenter(vgg), collection, tmp_path / "whole", batch_size=3, progress=False)
    calls, original = [], label_files.label_image

    def failing(labels):
        calls.append(1)
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return original(labels)

    monkeypatch.setattr(label_files, "label_image", failing)
    with pytest.raises(KeyboardInterrupt):
        write(make_segmenter(vgg), collection, tmp_path / "cut", batch_size=3, progress=False)
    assert len(png_files(tmp_path / "cut")) == killed_at - 1
    monkeypatch.setattr(label_files, "label_image", original)
    write(make_segmenter(vgg), collection, tmp_path / "cut", batch_size=3, progress=False)
    assert png_files(tmp_path / "cut") == png_files(tmp_path / "whole")
    monkeypatch.setattr(label_files, "label_image", failing)
    calls[:] = [1] * killed_at
    write(make_segmenter(vgg), collection, tmp_path / "cut", batch_size=3, progress=False)
    assert len(calls) == killed_at


@pytest.mark.parametrize("write", [write_confident_labels, write_pseudo_labels])
def test_shards_together_write_what_one_process_writes(tmp_path, vgg, write):
    collection = make_collection(tmp_path / "p", [(i % 4,) if i % 3 else () for i in range(8)], corrupt=(4,))
    whole = write(make_segmenter(vgg), collection, tmp_path / "whole", batch_size=2, progress=False)
    parts = {}
    for index in range(3):
        before = png_files(tmp_path / "parts") if index else {}
        shard = Shard(index, 3)
        parts |= write(make_segmenter(vgg), collection, tmp_path / "parts", batch_size=2, shard=shard, progress=False)
        assert len(png_files(tmp_path / "parts")) > len(before)
    assert png_files(tmp_path / "parts") == png_files(tmp_path / "whole")
    assert parts == whole
    assert set(whole) == {"4"}


def test_a_shard_out_of_range():
    with pytest.raises(ValueError, match="index must be in 0 to count - 1 = 2, got 3"):
        Shard(3, 3)


def test_other_settings_are_named(tmp_path, vgg):
    collection = make_collection(tmp_path / "p", [(0,)])
    write_confident_labels(make_segmenter(vgg), collection, tmp_path / "l", progress=False)
    with pytest.raises(ValueError, match=r"confidence\.low \(4\.0 before, 3\.0 now\).*--overwrite"):
        write_confident_labels(make_segmenter(vgg), collection, tmp_path / "l", Confidence(low=3.0), progress=False)
    write_pseudo_labels(make_segmenter(vgg), collection, tmp_path / "m", progress=False)
    with torch.no_grad():
        next(vgg.parameters()).add_(1)
    with pytest.raises(ValueError, match="parameters"):
        write_pseudo_labels(make_segmenter(vgg), collection, tmp_path / "m", progress=False)


def test_overwrite_starts_over(tmp_path, vgg):
    collection = make_collection(tmp_path / "p", [(0,), (1,)])
    first, second = make_segmenter(vgg), make_segmenter(vgg, background_exponent=4.0)
    write_pseudo_labels(second, collection, tmp_path / "expected", progress=False)
    write_pseudo_labels(first, collection, tmp_path / "l", progress=False)
    (tmp_path / "l" / "other.png").write_bytes(b"from an earlier collection")
    write_pseudo_labels(second, collection, tmp_path / "l", overwrite=True, progress=False)
    assert png_files(tmp_path / "l") == png_files(tmp_path / "expected")
    with pytest.raises(ValueError, match="overwrite must be False for one of 2 shards"):
        write_pseudo_labels(first, collection, tmp_path / "l", overwrite=True, shard=Shard(0, 2), progress=False)


def test_corrupt_images_are_named_and_skipped(tmp_path, vgg, caplog):
    collection = make_collection(tmp_path / "p", [(0,), (1,), (), (2,)], corrupt=(1, 2))
    for number, write in enumerate((write_confident_labels, write_pseudo_labels)):
        skipped = write(make_segmenter(vgg), collection, tmp_path / str(number), progress=False)
        assert set(skipped) == {"1", "2"}
        assert "1.png" in skipped["1"]
        assert set(png_files(tmp_path / str(number))) == {"0.png", "3.png"}
    assert "1 is skipped" in caplog.text


def masks(folder, maps):
    folder.mkdir(parents=True)
    for name, values in maps.items():
        Image.fromarray(np.array(values, dtype=np.uint8)).save(folder / f"{name}.png")


def with_masks(tmp_path, names):
    return Collection(
        ("a", "b"), tuple(LabeledImage(n, tmp_path / n, (0,), tmp_path / "t" / f"{n}.png") for n in names)
    )


def test_label_maps_against_masks_by_hand(tmp_path):
    masks(tmp_path / "t", {"x": [[0, 0, 1, 255]], "y": [[1, 2, 2, 0]], "z": [[0, 0, 0, 0]]})
    masks(tmp_path / "l", {"x": [[0, 1, 1, 1]], "y": [[1, 2, 255, 0]]})
    found = evaluate_label_maps(with_masks(tmp_path, "xyz"), tmp_path / "l", progress=False)
    assert found.confusion.counts.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 1]]
    # Background 2 of 3, class a 2 of 3, class b 1 of 1.
    assert found.confusion.mean_iou == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found.unknown == pytest.approx(1 / 7)
    assert found.precision == (1.0, pytest.approx(3 / 4))
    assert found.num_images == 2
    assert set(found.skipped) == {"z"}


def test_label_maps_of_another_size_are_resized_without_mixing(tmp_path):
    masks(tmp_path / "t", {"x": [[0, 0, 2, 2], [0, 0, 2, 255]]})
    masks(tmp_path / "l", {"x": [[0, 2]]})
    found = evaluate_label_maps(with_masks(tmp_path, "x"), tmp_path / "l", progress=False)
    assert found.confusion.counts.tolist() == [[4, 0, 0], [0, 0, 0], [0, 0, 3]]


def test_label_maps_that_do_not_exist(tmp_path):
    masks(tmp_path / "t", {"x": [[0, 1]]})
    with pytest.raises(ValueError, match=r"none of the 1 images could be compared, such as x: .*x\.png"):
        evaluate_label_maps(with_masks(tmp_path, "x"), tmp_path / "l", progress=False)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc") / "scenes"
    assert run("scenes", folder, "--count", 6, "--seed", 5, "--size", 64).exit_code == 0
    return folder


def test_the_command_from_images_to_pseudo_labels(tmp_path, scenes):
    out = tmp_path / "out"
    command = ["affinity", scenes, "--weights", "demo", "--method", "fusion", "--steps", 2, "--batch-size", 2]
    command += ["--workers", 0, "--output", out, "--also", "val"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    listed = [
        (scenes / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split() for split in ("train", "val")
    ]
    assert set(png_files(out / "labels")) == {f"{name}.png" for name in listed[0]}
    assert set(png_files(out / "pseudo-labels")) == {f"{name}.png" for name in (*listed[0], *listed[1])}
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["images"] == 6
    assert manifest["failures"] == {}
    assert manifest["settings"]["walk"]["steps"] == 32
    before = png_files(out / "pseudo-labels")
    (out / "pseudo-labels" / f"{listed[0][0]}.png").unlink()
    assert run(*command).exit_code == 0
    assert png_files(out / "pseudo-labels") == before
    evaluated = run("miou", scenes, out / "pseudo-labels", "--output", out / "miou.json")
    assert evaluated.exit_code == 0, evaluated.output
    figures = json.loads((out / "miou.json").read_text())
    assert f"{100 * figures['mean IoU']:5.1f} %" in evaluated.output
    assert figures["unknown"] == 0
    evaluated = run(
        *("evaluate", scenes, "--weights", "demo", "--method", "fusion", "--protocol", "known", "--output", out / "e"),
        *("--walk", out / "network" / "affinity_net.safetensors"),
        *("--preset", "tuned"),
    )
    assert evaluated.exit_code == 0, evaluated.output
    of_command = json.loads((out / "e" / "evaluation.json").read_text())["evaluations"][0]["after the CRF"]
    assert of_command["mean IoU"] == pytest.approx(figures["mean IoU"], abs=1e-3)


def test_errors_of_the_command(tmp_path, scenes, monkeypatch, capsys):
    def error_of(*arguments):
        monkeypatch.setattr(sys, "argv", ["dcsm-attr", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            main()
        assert raised.value.code == 1
        return capsys.readouterr().err

    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    command = ("affinity", scenes, "--output", tmp_path / "out", "--workers", 0)
    assert "not a complete safetensors file" in error_of(*command, "--weights", tmp_path / "weights.safetensors")
    error = error_of(*command, "--weights", "demo", "--background", 0, "--output", tmp_path / "other")
    assert "background_exponent must be positive" in error
    assert not (tmp_path / "other" / "labels").exists()
    other = ("--walk", tmp_path / "weights.safetensors", "--weights", "demo")
    assert "not a complete safetensors file" in error_of("evaluate", scenes, *other)

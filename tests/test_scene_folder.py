"""Folders of scenes: contents, resuming, and use by training and evaluation."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import dcsm_attr.datasets.scenes as module
from dcsm_attr.cli.evaluate import evaluate
from dcsm_attr.cli.train import labels, scenes, train
from dcsm_attr.datasets.masks import read_mask
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene, visible_classes, write_scene_folder
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.models.checkpoint import load_classifier


def written(folder, count=7, seed=3, size=40):
    return write_scene_folder(folder, count, seed=seed, size=size, progress=False)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(command, *arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_files_contain_the_scenes(tmp_path):
    folder = written(tmp_path / "scenes")
    collections = {split: voc_collection(folder, split) for split in ("train", "val")}
    assert {split: [p.name for p in collection] for split, collection in collections.items()} == {
        "train": ["000001", "000002", "000003", "000004", "000006"],
        "val": ["000000", "000005"],
    }
    for collection in collections.values():
        assert collection.class_names == CLASS_NAMES
        for item in collection:
            scene = generate_scene(int(item.name), 3, 40)
            assert torch.equal(read_mask(item.mask, (40, 40), len(CLASS_NAMES)), scene.labels)
            assert item.classes == tuple(scene.present.nonzero()[:, 0].tolist())
            pixels = np.asarray(Image.open(item.path), dtype=float)
            difference = np.abs(pixels - scene.image.permute(1, 2, 0).numpy())
            assert difference.mean() < 4, "JPEG changes little"


def test_a_class_is_visible_from_one_percent_of_the_image():
    labels = np.zeros((40, 40), dtype=np.int64)
    labels[0, :16] = 3
    labels[1, :15] = 5
    assert visible_classes(labels) == (2,)


def test_scenes_without_a_class_are_left_out(tmp_path, monkeypatch):
    def without(number, seed, size):
        scene = generate_scene(number, seed, size)
        if number in (0, 2):
            scene.labels.zero_()
        return scene

    monkeypatch.setattr(module, "generate_scene", without)
    folder = written(tmp_path / "scenes", 4)
    names = sorted(path.stem for path in (folder / "JPEGImages").iterdir())
    assert names == ["000001", "000003", "000004", "000005"]
    assert (folder / "ImageSets" / "Segmentation" / "val.txt").read_text() == "000001\n"


@pytest.mark.parametrize("fault_at", [1, 2, 5, 8, 9, 10, 11])
def test_an_interrupted_series_is_resumed(tmp_path, monkeypatch, fault_at):
    whole = contents(written(tmp_path / "whole", 4))
    # Description, two files per scene, labels, classes, two lists.
    assert len(whole) == 13
    calls = []

    def failing(original, path):
        calls.append(1)
        if len(calls) == fault_at:
            raise KeyboardInterrupt
        return original(path)

    for name in ("atomic_path", "atomic_buffer"):
        monkeypatch.setattr(module, name, partial(failing, getattr(module, name)))
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        written(cut, 4)
    left = contents(cut)
    assert all(whole[name] == content for name, content in left.items())
    assert not any(name.name == "val.txt" for name in left), "the last file"
    stamps = {name: (cut / name).stat().st_mtime_ns for name in left if name.suffix == ".png"}
    monkeypatch.undo()
    written(cut, 4)
    assert contents(cut) == whole
    assert stamps == {name: (cut / name).stat().st_mtime_ns for name in stamps}, "existing files are not written again"


def test_rejects_folders_with_other_contents(tmp_path):
    folder = written(tmp_path / "scenes")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"another series of scenes, which differs in seed \(3 before, 4 now\)\. Choo"):
        written(folder, seed=4)
    assert contents(folder) == before
    for name, content in (("thesis.txt", "the only copy"), ("scenes.json", "[1, 2]"), ("scenes.json", "{half")):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / name).write_text(content)
        with pytest.raises(ValueError, match="contains files, but no series of scenes .* Choose an empty"):
            written(other)
        assert contents(other)[(other / name).relative_to(other)] == content.encode()
        (other / name).unlink()
    assert contents(written(other)) == before, "an empty folder is accepted"
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OSError, match="file"):
        written(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 1}, "count must be at least 2"),
        ({"seed": -1}, "must not be negative"),
        ({"size": 8}, "size must be at least 32"),
    ],
)
def test_rejects_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        written(tmp_path / "scenes", **options)
    assert not (tmp_path / "scenes").exists()


def test_from_scenes_to_a_mean_iou(tmp_path):
    folder, net = tmp_path / "scenes", tmp_path / "net"
    result = run(scenes, folder, "--count", 7, "--size", 48)
    assert result.exit_code == 0, result.output
    assert "7 scenes" in result.output
    result = run(
        train,
        *(folder, "--image-labels", folder / "image_labels.csv", "--model", "squeezenet1_1", "--weights", "none"),
        *("--size", 48, "--steps", 2, "--batch-size", 2, "--workers", 0, "--device", "cpu", "--output", net),
    )
    assert result.exit_code == 0, result.output
    assert load_classifier(net / "best.safetensors").class_names == CLASS_NAMES
    result = run(
        evaluate,
        *(folder, "--weights", net / "best.safetensors", "--protocol", "known", "--no-crf", "--device", "cpu"),
        *("--output", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (one,) = content["evaluations"]
    assert list(one["before the CRF"]["IoU"]) == ["background", *CLASS_NAMES]
    counts = np.array(one["before the CRF"]["confusion matrix (row: truth, column: prediction)"])
    truth = sum(np.bincount(generate_scene(i, 0, 48).labels.flatten(), minlength=9) for i in (0, 5))
    assert np.array_equal(counts.sum(axis=1), truth)
    assert content["data"] == "Split 'val' of a VOC folder: 2 of its 2 images. Its classes are not those of VOC."


def test_labels_of_a_folder_with_its_own_classes(tmp_path):
    folder = written(tmp_path / "scenes")
    result = run(labels, folder, "--split", "train", "--output", tmp_path / "derived.csv")
    assert result.exit_code == 0, result.output
    derived = voc_collection(folder, "train", labels=tmp_path / "derived.csv", masks=False)
    # Masks show every pixel; the labels of scenes omit classes that are hardly visible.
    for from_mask, item in zip(derived, voc_collection(folder, "train"), strict=True):
        assert set(from_mask.classes) >= set(item.classes)
        shown = np.unique(np.asarray(Image.open(item.mask)))
        assert from_mask.classes == tuple(int(label) - 1 for label in shown if label)


def test_annotations_name_the_classes_of_the_folder(tmp_path):
    folder = written(tmp_path / "scenes")
    (folder / "image_labels.csv").unlink()
    (folder / "Annotations").mkdir()
    for name in ("000000", "000005"):
        xml = f"<annotation><object><name>{CLASS_NAMES[2]}</name></object></annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    assert [p.classes for p in voc_collection(folder, "val")] == [(2,), (2,)]
    (folder / "classes.txt").unlink()
    with pytest.raises(ValueError, match=f"'{CLASS_NAMES[2]}' is none of the 20 classes"):
        voc_collection(folder, "val")
    (folder / "classes.txt").write_text("star\nstar\n")
    with pytest.raises(ValueError, match=r"classes.txt: the class 'star' is named twice"):
        voc_collection(folder, "val")


def test_the_help_teaches_by_example():
    text = " ".join(run(scenes, "--help").output.split())
    assert "dcsm-attr scenes scenes --count 400" in text
    assert "dcsm-attr evaluate scenes" in text


def test_overwrite_replaces_another_series_and_keeps_other_files(tmp_path):
    folder = tmp_path / "scenes"
    assert run(scenes, folder, "--count", 4, "--size", 40, "--seed", 1).exit_code == 0
    (folder / "notes.txt").write_text("kept")
    command = (scenes, folder, "--count", 3, "--size", 40)
    assert "--overwrite" in str(run(*command).exception)
    assert run(*command, "--overwrite").exit_code == 0
    (folder / "notes.txt").unlink()
    run(scenes, tmp_path / "new", "--count", 3, "--size", 40)
    assert contents(folder) == contents(tmp_path / "new")

"""Runs over collections: their files, resuming, shards, several processes, and faults."""

import errno
import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import TinyVGG
from PIL import Image

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.io import FolderStorage
from dcsm_attr.pipelines import local
from dcsm_attr.pipelines.batches import Outputs, Shard
from dcsm_attr.pipelines.local import MultiprocessEngine
from dcsm_attr.pipelines.run import pseudo_label

NAMES = ("ant", "bee", "cow", "dog")
CLASSES = [(0,), (1, 2), (1, 3), (3,), (), (0, 1, 2, 3), (2,), (0, 2)]
OUTPUTS = Outputs(maps=True, overlays=3)
BATCH = 3


def build_tiny(iterations=2):
    torch.manual_seed(0)
    crf = DenseCRF(iterations=iterations)
    return Segmenter(TinyVGG(), crf=crf, class_names=NAMES, preprocess=Preprocess(size=32))


@pytest.fixture
def collection(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    items = []
    for i, classes in enumerate(CLASSES):
        path = folder / f"p{i}.png"
        pixels = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + 9 * (i % 3), 36 + 7 * (i % 2))).save(path)
        items.append(LabeledImage(path.stem, path, classes))
    return Collection(NAMES, tuple(items))


def run(collection, folder, build_segmenter=build_tiny, **options):
    options = {"outputs": OUTPUTS, "batch_size": BATCH, "progress": False, **options}
    return pseudo_label(build_segmenter, collection, FolderStorage(folder, ".unfinished"), **options)


def contents(folder):
    """Every file except those with times."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if not name.startswith(("parts/", "manifest"))}


def manifest(folder):
    first, *lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        if "seconds" in line:
            assert set(line.pop("seconds")) == {"read", "label", "write"}
    return first, lines


def assert_same_files(folder, uninterrupted):
    assert contents(folder) == contents(uninterrupted)
    assert manifest(folder) == manifest(uninterrupted)
    assert not (folder / ".unfinished").exists()


@pytest.fixture
def uninterrupted(tmp_path, collection):
    run(collection, tmp_path / "uninterrupted")
    return tmp_path / "uninterrupted"


class Failing(FolderStorage):
    """Fails before, or in the middle of, the n-th file."""

    def __init__(self, folder, at, error):
        super().__init__(folder, ".unfinished")
        self.left, self.error = at, error

    def write(self, name, content):
        if self.left == 0:
            raise self.error
        self.left -= 1
        super().write(name, content)


def test_every_image_gets_the_result_of_the_segmenter(collection, uninterrupted):
    segmenter = build_tiny()
    first, lines = manifest(uninterrupted)
    assert [line["name"] for line in lines] == [item.name for item in collection]
    counted = {"images": 8, "labeled": 8, "failed": 0, "class_names": list(NAMES)}
    assert {name: first[name] for name in counted} == counted
    assert first["settings"]["crf"]["iterations"] == 2
    for start in range(0, 8, BATCH):
        chosen = collection.images[start : start + BATCH]
        showing = [one for one in chosen if one.classes]
        results = segmenter.segment_batch([one.path for one in showing], [one.classes for one in showing])
        for item, result in zip(showing, results, strict=True):
            line = lines[collection.images.index(item)]
            labels = np.asarray(Image.open(uninterrupted / line["labels"]))
            assert np.array_equal(labels, result.labels.numpy())
            assert line["size"] == list(labels.shape)
            assert line["confidence"] == pytest.approx(float(result.probabilities.amax(0).mean()), abs=1e-6)
            assert sorted(result.classes) == list(item.classes)
            for record, c in zip(line["classes"], result.classes, strict=True):
                share = (labels == c + 1).mean()
                assert record == {
                    "class": c,
                    "name": NAMES[c],
                    "value": c + 1,
                    "score": pytest.approx(float(result.class_maps.scores[0, c]), abs=1e-6),
                    "share": pytest.approx(share, abs=1e-6),
                }
            maps = np.load(uninterrupted / line["maps"])
            assert maps["classes"].tolist() == list(result.classes)
            found = {c: result.class_maps.maps[0, i].numpy() for i, c in enumerate(result.candidates)}
            expected = np.stack([found[c] for c in result.classes]).astype(np.float16)
            assert np.array_equal(maps["maps"], expected)
            assert np.array_equal(maps["probabilities"], result.probabilities.numpy().astype(np.float16))


def test_an_image_without_a_class_is_background(collection, uninterrupted):
    line = manifest(uninterrupted)[1][CLASSES.index(())]
    labels = np.asarray(Image.open(uninterrupted / line["labels"]))
    assert list(labels.shape) == line["size"]
    assert not labels.any()
    assert (line["classes"], line["confidence"]) == ([], 1.0)
    assert np.array_equal(np.load(uninterrupted / line["maps"])["probabilities"], np.ones((1, *labels.shape)))


def test_overlays_of_every_third(uninterrupted):
    assert sorted(path.stem for path in (uninterrupted / "overlays").iterdir()) == ["p0", "p3", "p6"]
    assert [("overlay" in line) for line in manifest(uninterrupted)[1]] == [i % 3 == 0 for i in range(8)]


# Order of the files: settings; for each image label map, overlay if there is one, maps; after each batch its lines; the
# manifest.
@pytest.mark.parametrize("at", [0, 1, 3, 8, 9, 15, 22, 23])
def test_interrupted_at_any_file(tmp_path, collection, uninterrupted, at):
    folder = tmp_path / "cut off"
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(
            build_tiny,
            collection,
            Failing(folder, at, KeyboardInterrupt()),
            outputs=OUTPUTS,
            batch_size=BATCH,
            progress=False,
        )
    complete = contents(uninterrupted)
    for name, content in contents(folder).items():
        assert complete[name] == content, "there are no incomplete files"
    (folder / ".unfinished").mkdir(exist_ok=True)
    (folder / ".unfinished" / ".p1-half.png").write_bytes(b"left behind")
    run(collection, folder)
    assert_same_files(folder, uninterrupted)


def test_a_second_run_does_nothing(tmp_path, collection, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*.png")}
    assert run(collection, uninterrupted).labeled == 8
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*.png")} == before


def test_a_full_disk_is_reported_and_the_run_resumes(tmp_path, collection, uninterrupted):
    folder = tmp_path / "full"

    class OneFile(Failing):
        def write(self, name, content):
            if name == "manifest.jsonl":
                FolderStorage.write(self, name, content)
            else:
                super().write(name, content)

    full = OSError(errno.ENOSPC, "cannot write it: no space left on device")
    with pytest.raises(OSError, match="no space left"):
        pseudo_label(
            build_tiny, collection, OneFile(folder, 14, full), outputs=OUTPUTS, batch_size=BATCH, progress=False
        )
    first, lines = manifest(folder)
    assert "no space left" in first["stopped"]
    assert first["labeled"] == len(lines) == BATCH
    run(collection, folder)
    assert_same_files(folder, uninterrupted)
    assert "stopped" not in manifest(folder)[0]


def test_the_first_error_is_raised_where_nothing_can_be_written(tmp_path, collection):
    full = OSError(errno.ENOSPC, "the cause")
    with pytest.raises(OSError, match="the cause"):
        pseudo_label(build_tiny, collection, Failing(tmp_path / "full", 6, full), batch_size=BATCH, progress=False)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_together_write_what_one_process_writes(tmp_path, collection, uninterrupted, order):
    folder = tmp_path / "sharded"
    labeled = []
    for index in order:
        assert not (folder / "manifest.jsonl").exists()
        labeled.append(run(collection, folder, shard=Shard(index, 3)).labeled)
    assert [labeled[order.index(i)] for i in range(3)] == [3, 3, 2]
    assert_same_files(folder, uninterrupted)


def test_unreadable_images_do_not_end_the_run(tmp_path, collection, uninterrupted):
    broken = {1: b"not an image", 3: b"", 4: collection.images[4].path.read_bytes()[:60]}
    whole = {i: collection.images[i].path.read_bytes() for i in broken}
    for i, content in broken.items():
        collection.images[i].path.write_bytes(content)
    folder = tmp_path / "broken"
    found = run(collection, folder)
    assert found.labeled == 5
    assert set(found.failures) == {"p1", "p3", "p4"}
    first, lines = manifest(folder)
    assert (first["labeled"], first["failed"]) == (5, 3)
    for i, line in enumerate(lines):
        assert ("error" in line) == (i in broken)
        if i in broken:
            path = collection.images[i].path
            assert line["image"] == str(path)
            assert str(path) in line["error"]
        assert (folder / f"labels/p{i}.png").exists() == (i not in broken)
    # Repaired images are only read again with retry_failures.
    for i, content in whole.items():
        collection.images[i].path.write_bytes(content)
    assert run(collection, folder).failures.keys() == found.failures.keys()
    assert not run(collection, folder, retry_failures=True).failures
    assert_same_files(folder, uninterrupted)


def test_other_settings_or_images_are_an_error(tmp_path, collection, uninterrupted):
    with pytest.raises(
        ValueError, match=r"holds pseudo-labels with other settings.*crf\.iterations \(2 before, 3 now\)"
    ):
        run(collection, uninterrupted, partial(build_tiny, 3))
    with pytest.raises(ValueError, match=r"batch_size \(3 before, 2 now\)"):
        run(collection, uninterrupted, batch_size=2)
    with pytest.raises(ValueError, match=r"outputs\.overlays \(3 before, 0 now\)"):
        run(collection, uninterrupted, outputs=Outputs(maps=True))
    fewer = replace(collection, images=collection.images[1:])
    with pytest.raises(ValueError, match=r"other settings: images \("):
        run(fewer, uninterrupted)


def test_overwrite_starts_over(tmp_path, collection, uninterrupted):
    folder = tmp_path / "run"
    run(collection, folder, partial(build_tiny, 3), outputs=Outputs(maps=True, overlays=1))
    (folder / "notes.txt").write_text("of the user")
    run(collection, folder, overwrite=True)
    assert contents(folder).keys() == contents(uninterrupted).keys() | {"notes.txt"}
    (folder / "notes.txt").unlink()
    assert_same_files(folder, uninterrupted)
    with pytest.raises(ValueError, match="overwrite must be False for one of 2 shards"):
        run(collection, folder, overwrite=True, shard=Shard(1, 2))


def test_arguments_are_checked_first(tmp_path, collection):
    others = replace(collection, class_names=("ant", "bee", "cow", "emu"))
    with pytest.raises(ValueError, match=r"the collection has the classes .*emu.*the segmenter .*dog"):
        run(others, tmp_path / "none")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        run(collection, tmp_path / "none", batch_size=0)
    with pytest.raises(ValueError, match=r"overlays must not be negative, got -1"):
        Outputs(overlays=-1)
    assert contents(tmp_path / "none") == {}


def test_several_processes_write_the_same_files_if_one_is_killed(tmp_path, collection, uninterrupted):
    marks = tmp_path / "marks"
    marks.mkdir()
    folder = tmp_path / "several"
    run(collection, folder, partial(_build_or_die, os.getpid(), marks, 1), engine=MultiprocessEngine(2))
    assert len(list(marks.iterdir())) == 1
    assert_same_files(folder, uninterrupted)


def test_processes_that_die_repeatedly_end_the_run(tmp_path, collection, monkeypatch):
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(local, "_MAX_WORKER_DEATHS", 1)
    # The command line reports this error in one line.
    with pytest.raises(ChildProcessError, match="a process was killed before a batch was finished.* the same command"):
        run(collection, tmp_path / "dead", partial(_build_or_die, os.getpid(), marks, 99), engine=MultiprocessEngine(1))
    assert contents(tmp_path / "dead").keys() == {"settings.json"}


def _build_or_die(run_itself, marks, deaths):
    """Build a segmenter; the first processes that do are killed, except that of the run itself."""
    for death in range(deaths if os.getpid() != run_itself else 0):
        # Two processes that start at the same time must not take the same mark.
        with suppress(FileExistsError):
            (marks / str(death)).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return build_tiny()

"""Folders and object stores with the same files, and run folders that resume or start over."""

import os
import pickle
from pathlib import Path

import pytest
from PIL import Image

from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.io import (
    FolderStorage,
    ObjectStorage,
    diff_settings,
    flatten_settings,
    is_uri,
    open_run_storage,
    open_storage,
)


@pytest.fixture(params=["folder", "scratch", "objects"])
def storage(request, tmp_path):
    if request.param == "objects":
        pytest.importorskip("pyarrow", reason="needs pyarrow, which comes with the extra ray")
        return open_storage((tmp_path / "run").as_uri())
    return open_storage(tmp_path / "run", ".unfinished" if request.param == "scratch" else None)


def test_files_by_their_names(storage):
    assert storage.names("labels") == set()
    with pytest.raises(FileNotFoundError):
        storage.read("labels/a.png")
    storage.write("labels/a.png", b"one")
    storage.write("labels/b.png", b"")
    storage.write("labels/a.png", b"two")
    storage.write("top.json", b"{}")
    assert storage.names("labels") == {"a.png", "b.png"}
    assert (storage.read("labels/a.png"), storage.read("labels/b.png"), storage.read("top.json")) == (
        b"two",
        b"",
        b"{}",
    )
    elsewhere = pickle.loads(pickle.dumps(storage))
    elsewhere.write("labels/c.png", b"three")
    assert storage.read("labels/c.png") == b"three"
    assert elsewhere.location == storage.location


def test_overwriting_removes_results_and_nothing_else(storage):
    five, six = ({"crf": {"iterations": iterations}} for iterations in (5, 6))
    results = ("labels", "*.png", "manifest.jsonl")
    open_run_storage(storage, five, "label maps", results=results)
    for name in ("labels/a.png", "labels/b/c.png", "d.png", "manifest.jsonl", "notes.txt", "mine/labels"):
        storage.write(name, b"content")
    open_run_storage(storage, five, "label maps", results=results)
    with pytest.raises(
        ValueError, match=r"run: holds label maps with other settings: crf.iterations \(5 before, 6 now"
    ):
        open_run_storage(storage, six, "label maps", results=results)
    with pytest.raises(ValueError, match="run: holds label maps, not an evaluation. Choose another folder"):
        open_run_storage(storage, five, "an evaluation", results=("*",), overwrite=True)
    assert storage.read("labels/a.png") == storage.read("d.png") == b"content"

    open_run_storage(storage, six, "label maps", results=results, overwrite=True)
    assert storage.names("labels") == storage.names("labels/b") == set()
    assert storage.names("") == {"notes.txt", "settings.json"}
    assert storage.names("mine") == {"labels"}
    open_run_storage(storage, six, "label maps", results=results)


def test_a_settings_file_of_another_program_is_left_alone(storage):
    for content, error in ((b"{half", "is damaged"), (b"[]", "does not say"), (b'{"tabs": 4}', "does not say")):
        storage.write("settings.json", content)
        storage.write("a.png", b"content")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=rf"settings\.json: {error}.*Choose another folder"):
                open_run_storage(storage, {}, "label maps", results=["*"], overwrite=overwrite)
        assert storage.read("settings.json") == content
        assert storage.read("a.png") == b"content"


def test_overwriting_a_folder_without_settings_removes_nothing(storage):
    storage.write("labels/a.png", b"content")
    open_run_storage(storage, {}, "label maps", results=["*"], overwrite=True)
    assert storage.names("labels") == {"a.png"}


def test_flattening_names_nested_settings():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flatten_settings(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_differences_are_named_with_both_values():
    before = {"seed": 0, "schedule": {"steps": 8, "rate": 0.1}, "old": None}
    now = {"seed": 0, "schedule": {"steps": 9, "rate": 0.1}, "new": "x"}
    expected = ["schedule.steps (8 before, 9 now)", "old (None before, nothing now)", "new (nothing before, x now)"]
    assert diff_settings(before, now) == expected
    assert diff_settings(now, now) == []


def test_temporary_files_can_be_removed(tmp_path):
    storage = FolderStorage(tmp_path, ".mine")
    storage.write("a/b", b"content")
    (tmp_path / ".mine" / ".b-half").write_bytes(b"con")
    storage.discard_scratch()
    storage.discard_scratch()
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["a", "a/b"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    storage = FolderStorage(tmp_path, ".mine")
    storage.write("a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*Make room"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert list((tmp_path / ".mine").iterdir()) == []


def test_uris():
    assert is_uri("s3://bucket/a.jpg")
    assert not any(map(is_uri, ("photos/a.jpg", "/photos", Path("s3://bucket"), "C:/photos")))


def test_images_by_uri(tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow, which comes with the extra ray")
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    assert read_image((tmp_path / "a.png").as_uri()).getpixel((4, 3)) == (255, 0, 0)
    missing = (tmp_path / "b.png").as_uri()
    with pytest.raises(ImageReadError, match=f"{missing}: there is no such file"):
        read_image(missing)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match=r"c\.png: not an image"):
        read_image((tmp_path / "c.png").as_uri())
    with pytest.raises(ImageReadError, match="nowhere://x: cannot be read"):
        read_image("nowhere://x")


def test_without_pyarrow_no_image_is_called_unreadable(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.fs", None)
    with pytest.raises(ImportError, match=r"^s3://bucket/photo.jpg: .*pip install pyarrow"):
        read_image("s3://bucket/photo.jpg")


def test_without_pyarrow_what_to_install_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.fs", None)
    with pytest.raises(ImportError, match=r"s3://bucket/run: .*pip install pyarrow"):
        ObjectStorage("s3://bucket/run")

"""Nothing half-written appears under its final name."""

import os
import stat

import pytest

from dcsm_attr.io import atomic_path, make_writable_folder


def test_the_file_appears_when_it_is_complete(tmp_path):
    final = tmp_path / "a.txt"
    with atomic_path(final) as path:
        path.write_text("new")
        assert path.parent == final.parent
        assert path.suffix == ".txt"
        assert not final.exists()
    assert final.read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    final = tmp_path / "a.txt"
    final.write_text("old")
    with pytest.raises(error), atomic_path(final) as path:
        path.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_the_file_has_the_rights_of_an_ordinary_one(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    with atomic_path(tmp_path / "ours") as path:
        path.write_text("")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_the_umask_stays_as_it_is_meanwhile(tmp_path, monkeypatch):
    """All threads share it: what another one writes would be open to everybody, and two could leave it at zero."""
    changed = []
    monkeypatch.setattr(os, "umask", changed.append)
    with atomic_path(tmp_path / "a") as path:
        path.write_text("")
    assert changed == []


def test_writable_folder_makes_parents_and_leaves_nothing(tmp_path):
    folder = make_writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_folders_that_cannot_be_written_to_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the folder .*file"):
        make_writable_folder(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_missing_permission_is_named(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot write to the folder"):
        make_writable_folder(locked)

"""Killed while writing, or out of room: no file under its final name is ever incomplete."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dcsm_attr
from dcsm_attr.io import atomic_buffer, atomic_path, write_json

PACKAGE = Path(dcsm_attr.__file__).parent
EVERYTHING = (
    *("results", "attributions", "run_manifest", "report", "classifier", "checkpoint", "log", "labels"),
    *("scenes", "storage"),
)
posix = pytest.mark.skipif(sys.platform != "linux", reason="needs the limits and signals of Linux")


def written(folder, *names):
    """In a process of its own, which forks: this one has threads."""
    command = [sys.executable, str(Path(__file__).with_name("writers.py")), str(folder), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def check(folder, *names):
    for name, found in written(folder, *names).items():
        assert found["broken"] == [], name
        if name.startswith("killed"):
            # At the sizes below its own; and before a file is opened, when it is there, before it gets its name.
            assert found["kills"] >= 4 + 3 * len(found["files"]), name
            continue
        for size, said in found["said"].items():
            if int(size) >= found["largest"]:
                assert said is None, f"{name} at {size}: {said}"
            else:
                assert said["errno"] == errno.EFBIG, f"{name} at {size}: {said}"
                assert f"cannot write {folder / name / size}" in said["text"]
                assert "Make room, or choose another folder" in said["text"]


@posix
def test_killed_while_writing_or_out_of_room(tmp_path):
    killed = ("killed/checkpoint", "killed/run_manifest", "killed/storage")
    check(tmp_path, *killed, "full/checkpoint", "full/labels", "full/scenes", "full/storage")


@posix
@pytest.mark.slow
def test_everything_killed_while_writing(tmp_path):
    check(tmp_path, *(f"killed/{name}" for name in EVERYTHING))


@posix
@pytest.mark.slow
def test_everything_out_of_room(tmp_path):
    check(tmp_path, *(f"full/{name}" for name in EVERYTHING))


@pytest.mark.parametrize("where", ["write", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path, monkeypatch, where, number):
    final = tmp_path / "a.json"
    write_json(final, {"old": 1})

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*{"write": (Path, "write_bytes", full), "sync": (os, "fsync", full)}[where])
    with pytest.raises(OSError, match=r"cannot write .*a\.json: .*\. Make room, or choose another folder") as caught:
        write_json(final, {"new": 1})
    assert caught.value.errno == number
    assert json.loads(final.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [final]


class OfALibraryError(Exception):
    pass


def test_libraries_that_do_not_say_that_the_disk_is_full(tmp_path, monkeypatch):
    with pytest.raises(OfALibraryError), atomic_path(tmp_path / "a"):
        raise OfALibraryError
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*a: No space left") as caught, atomic_path(tmp_path / "a"):
        raise OfALibraryError
    assert isinstance(caught.value.__cause__, OfALibraryError)
    # An interruption is one on a full disk too.
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a"):
        raise KeyboardInterrupt
    assert len(synced) == 1
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_system_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), atomic_path(tmp_path / "a"):
        (tmp_path / "nowhere").read_text()


def test_no_permission(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), atomic_path(tmp_path / "file" / "a"):
        pytest.fail("there is nothing to write to")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_image_is_written_as_a_whole_or_not_at_all(tmp_path, error):
    final = tmp_path / "a.png"
    with atomic_buffer(final) as file:
        Image.new("RGB", (9, 7)).save(file, "PNG")
        assert list(tmp_path.iterdir()) == []
    before = final.read_bytes()
    with Image.open(final) as opened:
        assert opened.size == (9, 7)
    with pytest.raises(error), atomic_buffer(final) as file:
        file.write(b"half")
        raise error
    assert final.read_bytes() == before
    assert list(tmp_path.iterdir()) == [final]


# What writes a file; each takes it as this argument, or is asked of it.
_WRITES = {"write_text": None, "write_bytes": None, "savez_compressed": 0, "save_file": 1, "savefig": 0}
# Written line by line: what reads it again knows a last line that was cut off, or the writer is TensorBoard's own.
_GROWING = {"evaluation/evaluate.py"}
# Encoded in memory, and written by io.py.
_IN_MEMORY = {"pipelines/batches.py", "pipelines/report.py"}


def _target(call):
    """The expression of the file that a call writes; None where it writes none."""
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if name == "open":
        modes = [a.value for a in (*call.args, *(k.value for k in call.keywords)) if isinstance(a, ast.Constant)]
        return call.func.value if any(isinstance(m, str) and set(m) & set("wax+") for m in modes) else None
    if name == "save":
        # torch.save(content, path); picture.save(path); not our own, which write to folders.
        position = 1 if getattr(call.func.value, "id", "") == "torch" else 0
        owner = getattr(call.func.value, "id", getattr(call.func.value, "attr", ""))
        return None if owner in ("result", "_task") else call.args[position]
    if name in _WRITES:
        return call.func.value if _WRITES[name] is None else call.args[_WRITES[name]]
    return None


def _unsafe_writes(tree):
    """Lines of calls that write to something other than what ``with atomic_path(...) as name`` around them names."""
    unsafe, safe = [], set()

    def visit(node, doors):
        if isinstance(node, ast.With):
            for item in node.items:
                visit(item.context_expr, doors)
                made_by = getattr(item.context_expr, "func", None)
                kind = getattr(made_by, "id", None)
                if (
                    getattr(made_by, "attr", None) == "open"
                    and getattr(made_by.value, "id", None) in doors["atomic_path"]
                ):
                    kind = "opened"
                if kind in doors:
                    doors = {**doors, kind: doors[kind] | {item.optional_vars.id}}
            for child in node.body:
                visit(child, doors)
            return
        if isinstance(node, ast.Call) and (target := _target(node)) is not None:
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            door = "atomic_path"
            if name in ("save", "savefig"):
                door = "opened" if getattr(node.func.value, "id", "") == "torch" else "atomic_buffer"
            (safe.add if getattr(target, "id", None) in doors[door] else unsafe.append)(node.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child, doors)

    visit(tree, dict.fromkeys(("atomic_path", "atomic_buffer", "opened"), frozenset()))
    return unsafe, safe


def test_every_file_of_the_package_is_written_through_one_door():
    found, safe = {}, 0
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        unsafe, of_file = _unsafe_writes(ast.parse(path.read_text(encoding="utf-8")))
        safe += len(of_file)
        # io.py itself implements atomic writing.
        if unsafe and name != "io.py":
            found[name] = unsafe
    assert set(found) == _GROWING | _IN_MEMORY, found
    assert safe >= 15


@pytest.mark.parametrize(
    "source",
    [
        "path.write_text('x')",
        "with path.open('w') as file:\n    pass",
        "path.open(mode='ab')",
        "with atomic_path(a) as b:\n    c.write_bytes(b'')",
        "with atomic_path(a) as b:\n    picture.save(b)",
        "with atomic_path(a) as b:\n    figure.savefig(b)",
        "with atomic_buffer(a) as b:\n    torch.save(x, b)",
        "with atomic_path(a) as b:\n    torch.save(x, b)",
        "with atomic_path(a) as b, c.open('rb') as d:\n    torch.save(x, d)",
        "with atomic_path(a) as b:\n    pass\nnp.savez_compressed(b, x=x)",
        "save_file(x, path)",
    ],
)
def test_other_doors_are_seen(source):
    assert _unsafe_writes(ast.parse(source))[0]

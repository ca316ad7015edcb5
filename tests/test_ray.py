"""RayEngine on one machine: it writes the same files as other engines, also if actors are killed."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from test_pseudo_label_runs import assert_same_files, build_tiny, collection, manifest, run, uninterrupted  # noqa: F401

from dcsm_attr.pipelines.ray import RayEngine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _cluster():
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'dcsm_attr[ray]'")
    pytest.importorskip("ray.data")
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}}
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env=environment)
    yield
    ray.shutdown()


def test_the_same_files(tmp_path, collection, uninterrupted):  # noqa: F811
    folder = tmp_path / "ray"
    assert run(collection, folder, engine=RayEngine((2, 2))).labeled == 8
    assert_same_files(folder, uninterrupted)
    assert run(collection, folder, engine=RayEngine((2, 2))).labeled == 8


def test_an_actor_that_is_killed_is_replaced(tmp_path, collection, uninterrupted):  # noqa: F811
    folder, marks = tmp_path / "killed", tmp_path / "marks"
    marks.mkdir()
    run(collection, folder, partial(_build_mortal, os.getpid(), marks), engine=RayEngine())
    assert len(list(marks.iterdir())) == 2, "another actor replaced it"
    assert_same_files(folder, uninterrupted)


def test_failures_are_in_the_manifest(tmp_path, collection):  # noqa: F811
    collection.images[1].path.write_bytes(b"not an image")
    found = run(collection, tmp_path / "ray", engine=RayEngine())
    assert (found.labeled, list(found.failures)) == (7, ["p1"])
    assert "not an image" in manifest(tmp_path / "ray")[1][1]["error"]


def test_an_error_of_writing_is_raised_as_itself(tmp_path, collection):  # noqa: F811
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "labels").write_text("in the way")
    with pytest.raises(OSError, match="labels"):
        run(collection, tmp_path / "ray", engine=RayEngine())
    (tmp_path / "ray" / "labels").unlink()
    assert run(collection, tmp_path / "ray", engine=RayEngine()).labeled == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"actors": (2, 1)}, r"got \(2, 1\)"), ({"actors": (0, 1)}, "actors"), ({"gpus": -1}, "gpus")],
)
def test_numbers_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        RayEngine(**arguments)


def _build_mortal(run_itself, marks):
    """Build a segmenter that kills its process in the second batch, unless it has replaced another one."""
    segmenter = build_tiny()
    if os.getpid() == run_itself:
        return segmenter
    (marks / str(os.getpid())).touch()
    original, calls = segmenter.attribute_batch, []

    def attribute_batch(images):
        calls.append(images)
        if len(calls) == 2 and len(list(marks.iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(images)

    segmenter.attribute_batch = attribute_batch
    return segmenter

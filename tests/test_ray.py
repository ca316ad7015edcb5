"""The engine of a cluster, on this machine: the same files as without it, also where actors are killed."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from test_pseudo_label_runs import BATCH, assert_alike, collection, contents, manifest, run, tiny, undisturbed  # noqa: F401

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


def test_the_same_files(tmp_path, collection, undisturbed):  # noqa: F811
    folder = tmp_path / "ray"
    assert run(collection, folder, engine=RayEngine((2, 2))).labeled == 8
    assert_alike(folder, undisturbed)
    assert run(collection, folder, engine=RayEngine((2, 2))).labeled == 8


def test_an_actor_that_is_killed_is_replaced(tmp_path, collection, undisturbed):  # noqa: F811
    folder, marks = tmp_path / "killed", tmp_path / "marks"
    marks.mkdir()
    run(collection, folder, partial(_mortal, os.getpid(), marks), engine=RayEngine())
    assert len(list(marks.iterdir())) == 2, "another actor took its place"
    assert_alike(folder, undisturbed)


def test_failures_are_told(tmp_path, collection):  # noqa: F811
    collection.images[1].path.write_bytes(b"no picture")
    found = run(collection, tmp_path / "ray", engine=RayEngine())
    assert (found.labeled, list(found.failures)) == (7, ["p1"])
    assert "not an image" in manifest(tmp_path / "ray")[1][1]["error"]


def test_what_cannot_be_written_ends_the_run_with_its_own_error(tmp_path, collection):  # noqa: F811
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "labels").write_text("in the way")
    with pytest.raises(OSError, match="labels"):
        run(collection, tmp_path / "ray", engine=RayEngine())
    (tmp_path / "ray" / "labels").unlink()
    assert run(collection, tmp_path / "ray", engine=RayEngine()).labeled == 8


@pytest.mark.parametrize(
    ("wrong", "said"), [({"actors": (2, 1)}, r"got \(2, 1\)"), ({"actors": (0, 1)}, "actors"), ({"gpus": -1}, "gpus")]
)
def test_numbers_are_checked(wrong, said):
    with pytest.raises(ValueError, match=said):
        RayEngine(**wrong)


def _mortal(run_itself, marks):
    """A recipe whose segmenters die with the second batch, but for the last of them."""
    segmenter = tiny()
    if os.getpid() == run_itself:
        return segmenter
    (marks / str(os.getpid())).touch()
    attributed, calls = segmenter.attribute_batch, []

    def go(photographs):
        calls.append(photographs)
        if len(calls) == 2 and len(list(marks.iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return attributed(photographs)

    segmenter.attribute_batch = go
    return segmenter

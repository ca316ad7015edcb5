"""A small run of the fuzz benchmark, and checks that it detects faults."""

import shutil

import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from benchmarks import fuzz_images
from dcsm_attr.cli import app
from dcsm_attr.datasets.images import read_image
from dcsm_attr.segmentation import Segmentation

COUNT = 96


@pytest.fixture(scope="module")
def here():
    """Runs the command in this process, without the figure that takes most of its time."""

    def command(sandbox, files):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Segmentation, "overview", lambda self: Figure(figsize=(1, 1)))
            patch.chdir(sandbox)
            result = CliRunner().invoke(app, ["segment", "in", *fuzz_images.OPTIONS])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return command


@pytest.mark.filterwarnings("ignore")
def test_broken_files_are_segmented_or_rejected_with_a_reason(here, tmp_path):
    files = list(fuzz_images.broken_files(COUNT, 1))
    outcome = fuzz_images.segment_files(files, tmp_path, here)
    assert outcome.problems == []
    assert set(outcome.reasons) == {file.name for file in files}
    of_mutation = {
        name: [outcome.reasons[f.name] for f in files if f.mutation == name] for name in fuzz_images.MUTATIONS
    }
    assert len(of_mutation) == 8
    assert of_mutation["untouched"] == [None] * (COUNT // 8)
    assert all("more than 100000 pixels" in reason or "cannot" in reason for reason in of_mutation["header made huge"])
    assert sum(reason is not None for reason in outcome.reasons.values()) > COUNT // 4


def test_the_seed_determines_the_files():
    first, again, other = (list(fuzz_images.broken_files(48, seed)) for seed in (3, 3, 4))
    assert first == again
    assert [file.name for file in first] == [file.name for file in other]
    changed = [a.content != b.content for a, b in zip(first, other, strict=True)]
    assert sum(changed) > 40
    whole = {content for of_kind in fuzz_images.generate_files(3).values() for content in of_kind}
    assert all((file.content in whole) == (file.mutation == "untouched") for file in first)


def test_seed_files_have_every_mode(tmp_path):
    modes = set()
    for number, content in enumerate(c for of_kind in fuzz_images.generate_files(0).values() for c in of_kind):
        path = tmp_path / str(number)
        path.write_bytes(content)
        with Image.open(path) as image:
            modes |= {image.mode, "moving" if getattr(image, "n_frames", 1) > 1 else "still"}
        assert read_image(path).size == (64, 64)
    assert modes >= {"RGB", "L", "1", "P", "CMYK", "RGBA", "moving", "still"}
    assert modes & {"I", "I;16"}


@pytest.fixture(scope="module")
def one_batch():
    return list(fuzz_images.broken_files(8, 0))[:4]


@pytest.fixture(scope="module")
def finished(here, one_batch, tmp_path_factory):
    """The complete output of the command for one batch."""
    sandbox = tmp_path_factory.mktemp("finished")
    assert fuzz_images.segment_files(one_batch, sandbox, here).problems == []
    return sandbox / "out"


def _rename_entry(out):
    manifest = out / "run.json"
    manifest.write_text(manifest.read_text().replace("00003-", "99999-"))


FAULTS = {
    "does not name every file exactly once": _rename_entry,
    "files outside the output folder": lambda out: (out.parent / "evil.txt").write_text(""),
    "the input was changed": lambda out: next((out.parent / "in").iterdir()).write_bytes(b""),
    "holds something else": lambda out: (out / "left.png").write_bytes(b""),
    "not whole": lambda out: (out / "00000-untouched" / "maps.npz").write_bytes(b"PK"),
    "other files than those that are promised": lambda out: (out / "00001-untouched" / "overlay.png").unlink(),
    "labels.png has another size": lambda out: Image.new("P", (9, 9)).save(out / "00002-untouched" / "labels.png"),
    "crashed": lambda out: shutil.rmtree(out),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_faults_are_detected(one_batch, finished, tmp_path, problem):
    def faulty(sandbox, files):
        shutil.copytree(finished, sandbox / "out")
        FAULTS[problem](sandbox / "out")
        return 0, ""

    outcome = fuzz_images.segment_files(one_batch, tmp_path, faulty)
    assert any(problem in found for found in outcome.problems), outcome.problems


def test_a_timeout_is_detected(one_batch, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_images, "SECONDS_PER_FILE", -60 / 4 + 0.001)
    outcome = fuzz_images.segment_files(one_batch, tmp_path)
    assert outcome.problems == ["did not end"]

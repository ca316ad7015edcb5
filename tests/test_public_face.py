"""What ``import dcsm_attr`` offers and costs."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dcsm_attr

PUBLIC = [
    "ClassActivationMaps",
    "ClassMaps",
    "DenseCRF",
    "DistinctClassSaliency",
    "FusedSaliency",
    "GuidedRectifiers",
    "Segmentation",
    "Segmenter",
    "Simonyan",
]


def test_every_public_name_is_there():
    assert sorted(dcsm_attr.__all__) == sorted([*PUBLIC, "__version__"])
    for name in PUBLIC:
        assert getattr(dcsm_attr, name).__name__ == name
    assert set(PUBLIC) <= set(dir(dcsm_attr))


def test_other_names_are_not():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = dcsm_attr.Nonsense


@pytest.fixture(scope="module")
def loaded():
    """The modules that are there after one import and then the next, in a process of its own."""
    steps = ("import dcsm_attr", "import dcsm_attr.crf", "import benchmarks.peers")
    code = "import sys\n" + "\n".join(f"{step}\nprint(*sys.modules)" for step in steps)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {step: set(modules.split()) for step, modules in zip(steps, found, strict=True)}


def test_importing_the_package_imports_nothing_heavy(loaded):
    heavy = {"matplotlib", "ray", "pydensecrf", "torch", "torchvision", "captum", "typer"}
    assert not heavy & loaded["import dcsm_attr"]


def test_the_crf_and_the_maths_need_neither_captum_nor_matplotlib(loaded):
    after = loaded["import dcsm_attr.crf"]
    assert {"torch", "dcsm_attr.crf.dense_crf"} <= after
    assert not {"matplotlib", "pydensecrf", "captum", "torchvision"} & after


def test_the_peers_import_their_libraries_when_they_are_asked_for(loaded):
    after = loaded["import benchmarks.peers"]
    assert "benchmarks.peers.methods" in after
    assert not {"pytorch_grad_cam", "torchcam", "cv2"} & after


def test_the_version_is_in_one_place():
    assert version("dcsm_attr") == dcsm_attr.__version__
    told = subprocess.run([sys.executable, "-m", "dcsm_attr", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"dcsm_attr {dcsm_attr.__version__}\n"
    # The two files that cannot read it.
    folder = Path(__file__).parents[1]
    newest = re.search(r"^## (\S+)", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (folder / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest[1] == cited[1] == dcsm_attr.__version__

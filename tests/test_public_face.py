"""Public names of the package, and which modules an import loads."""

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


def test_public_names():
    assert sorted(dcsm_attr.__all__) == sorted([*PUBLIC, "__version__"])
    for name in PUBLIC:
        assert getattr(dcsm_attr, name).__name__ == name
    assert set(PUBLIC) <= set(dir(dcsm_attr))


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = dcsm_attr.Nonsense


@pytest.fixture(scope="module")
def loaded():
    """Loaded modules after each of several imports, in a new process."""
    steps = ("import dcsm_attr", "import dcsm_attr.crf", "import benchmarks.peers")
    code = "import sys\n" + "\n".join(f"{step}\nprint(*sys.modules)" for step in steps)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {step: set(modules.split()) for step, modules in zip(steps, found, strict=True)}


def test_importing_the_package_loads_nothing_heavy(loaded):
    heavy = {"matplotlib", "ray", "pydensecrf", "torch", "torchvision", "captum", "typer"}
    assert not heavy & loaded["import dcsm_attr"]


def test_the_crf_needs_neither_captum_nor_matplotlib(loaded):
    after = loaded["import dcsm_attr.crf"]
    assert {"torch", "dcsm_attr.crf.dense_crf"} <= after
    assert not {"matplotlib", "pydensecrf", "captum", "torchvision"} & after


def test_the_peers_import_their_libraries_when_they_are_asked_for(loaded):
    after = loaded["import benchmarks.peers"]
    assert "benchmarks.peers.methods" in after
    assert not {"pytorch_grad_cam", "torchcam", "cv2"} & after


def test_versions_agree():
    assert version("dcsm_attr") == dcsm_attr.__version__
    output = subprocess.run(
        [sys.executable, "-m", "dcsm_attr", "--version"], capture_output=True, text=True, check=True
    )
    assert output.stdout == f"dcsm_attr {dcsm_attr.__version__}\n"
    # Files that cannot import the version.
    folder = Path(__file__).parents[1]
    newest = re.search(r"^## (\S+)", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (folder / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest[1] == cited[1] == dcsm_attr.__version__

"""What ``import dcsm_attr`` offers and costs."""

import re
import subprocess
import sys
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


def _modules_after(statement):
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    heavy = {"matplotlib", "ray", "pydensecrf", "torch", "torchvision", "captum", "typer"}
    assert not heavy & _modules_after("import dcsm_attr")


def test_the_crf_and_the_maths_need_neither_captum_nor_matplotlib():
    loaded = _modules_after("import dcsm_attr.maps, dcsm_attr.crf")
    assert not {"matplotlib", "pydensecrf", "captum", "torchvision"} & loaded


def test_the_version_is_in_one_place():
    from importlib.metadata import version

    assert version("dcsm_attr") == dcsm_attr.__version__
    result = subprocess.run(
        [sys.executable, "-m", "dcsm_attr", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"dcsm_attr {dcsm_attr.__version__}"
    # The two files that cannot read it.
    folder = Path(__file__).parents[1]
    newest = re.search(r"^## (\S+)", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (folder / "CITATION.cff").read_text(), re.MULTILINE)
    assert newest[1] == cited[1] == dcsm_attr.__version__

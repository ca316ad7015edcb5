"""The count of files that a call enters: functions count, module bodies and other packages do not."""

import importlib
from threading import Thread

import pytest

from benchmarks.entered_files import entered_files


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "tiny_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "outer.py").write_text("from tiny_package import inner\ndef call(): return inner.call()\n")
    (folder / "inner.py").write_text("import json\ndef call(): return json.loads('[1]')\n")
    (folder / "lazy.py").write_text("def unused(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("tiny_package")


def test_files_with_entered_functions_count(package):
    outer = importlib.import_module("tiny_package.outer")
    assert entered_files(outer.call, package) == ["inner.py", "outer.py"]


def test_functions_in_other_threads_count_but_imports_do_not(package):
    def call():
        importlib.reload(importlib.import_module("tiny_package.lazy"))
        thread = Thread(target=importlib.import_module("tiny_package.inner").call)
        thread.start()
        thread.join()

    assert entered_files(call, package) == ["inner.py"]

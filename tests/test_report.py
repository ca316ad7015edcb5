"""The report of an evaluation, in Markdown and in JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcsm_attr.evaluation.report import write_report
from dcsm_attr.evaluation.result import Confusion, Evaluation

# Of background, ant and bee; there is no cow.
BEFORE = [[6, 2, 0, 0], [1, 3, 0, 0], [2, 0, 2, 0], [0, 0, 0, 0]]
AFTER = [[7, 1, 0, 0], [0, 4, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]]
IOU_BEFORE = ["54.5", "50.0", "50.0", "-"]
IOU_AFTER = ["87.5", "66.7", "75.0", "-"]


def evaluation(protocol="detected", **changes):
    made = Evaluation(
        protocol,
        ("ant", "bee", "cow"),
        unrefined=Confusion(torch.tensor(BEFORE)),
        refined=Confusion(torch.tensor(AFTER)),
        scores=torch.tensor([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.7, 0.1, 0.2]], dtype=torch.float64),
        present=torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0]]).bool(),
        images=("a", "b", "c"),
        skipped={"d": "d.jpg: cannot be read."},
        nothing_detected=("c",),
        settings={"model": "Net", "crf": {"iterations": 10}, "saliency": {"scales": [0.8, 1.2], "layers": ["x", "y"]}},
    )
    return replace(made, **changes)


def written(evaluations, folder):
    write_report(evaluations, folder, command="measure VOC", data="Three images.")
    return (folder / "evaluation.md").read_text(), json.loads((folder / "evaluation.json").read_text())


def rows(text):
    """The cells of each line of the tables, by the first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_tables(tmp_path):
    text, _ = written({"ours": [evaluation()]}, tmp_path)
    cells = rows(text)
    assert cells["IoU in %"] == ["ours, before the CRF", "ours, after the CRF"]
    for label, before, after in zip(("background", "ant", "bee", "cow"), IOU_BEFORE, IOU_AFTER, strict=True):
        assert cells[label] == [before, after]
    # Of 6/11, 3/6, 2/4 and of 7/8, 4/6, 3/4.
    assert cells["**mean**"] == ["**51.5**", "**76.4**"]
    assert cells["images"] == ["3"]
    assert cells["skipped"] == ["1"]
    assert cells["nothing detected"] == ["1"]
    # Ant at ranks 1 and 3; bee at 1 and 3; no cow.
    assert cells["mean AP of the classifier in %"] == ["83.3"]
    assert cells["`crf.iterations`"] == ["10"]
    assert cells["`saliency.layers`"] == ["x, y"]
    assert cells["command"] == ["measure VOC"]
    assert cells["torch"] == [torch.__version__]
    assert "- `d`: d.jpg: cannot be read." in text
    assert text.startswith("# Evaluation\n\nThree images.\n")


def test_the_json_file(tmp_path):
    _, content = written({"ours": [evaluation()]}, tmp_path)
    (one,) = content["evaluations"]
    assert one["setting"] == "ours"
    assert one["protocol"] == "detected"
    assert one["after the CRF"]["confusion matrix (row: truth, column: prediction)"] == AFTER
    assert one["before the CRF"]["IoU"]["background"] == pytest.approx(6 / 11)
    assert one["before the CRF"]["mean IoU"] == pytest.approx((6 / 11 + 1 / 2 + 1 / 2) / 3)
    assert one["after the CRF"]["IoU"]["cow"] is None
    assert one["average precision of the classifier"] == {
        "ant": pytest.approx(5 / 6),
        "bee": pytest.approx(5 / 6),
        "cow": None,
    }
    assert one["images"] == 3
    assert one["skipped"] == {"d": "d.jpg: cannot be read."}
    assert one["nothing detected"] == ["c"]
    assert one["settings"]["crf"] == {"iterations": 10}
    assert content["measured"]["command"] == "measure VOC"
    assert content["data"] == "Three images."


def test_protocols_never_share_a_table(tmp_path):
    known = evaluation("known", nothing_detected=())
    text, content = written({"ours": [evaluation(), known], "theirs": [known]}, tmp_path)
    _, first, second = text.split('\n## Protocol "')
    assert first.startswith('detected"')
    assert rows(first)["IoU in %"] == ["ours, before the CRF", "ours, after the CRF"]
    assert second.startswith('known"')
    names = ["ours, before the CRF", "ours, after the CRF", "theirs, before the CRF", "theirs, after the CRF"]
    assert rows(second)["IoU in %"] == names
    assert rows(second)["bee"] == ["50.0", "75.0"] * 2
    assert [(one["setting"], one["protocol"]) for one in content["evaluations"]] == [
        ("ours", "detected"),
        ("ours", "known"),
        ("theirs", "known"),
    ]


def test_without_a_crf_there_is_one_column(tmp_path):
    plain = evaluation(settings={"crf": None, "model": "Other"}, refined=evaluation().unrefined)
    text, content = written({"with": [evaluation()], "a | b": [plain]}, tmp_path)
    assert "| IoU in % | with, before the CRF | with, after the CRF | a \\| b, no CRF |" in text
    assert rows(text)["ant"] == ["50.0", "66.7", "50.0"]
    assert content["evaluations"][1]["after the CRF"] is None
    # Settings that only one has.
    assert rows(text)["`crf`"] == ["-", "none"]
    assert rows(text)["`crf.iterations`"] == ["10", "-"]
    assert rows(text)["`model`"] == ["Net", "Other"]


def test_nothing_counted(tmp_path):
    empty = evaluation(
        unrefined=Confusion(torch.zeros(4, 4, dtype=torch.int64)),
        refined=Confusion(torch.zeros(4, 4, dtype=torch.int64)),
        scores=torch.zeros(0, 3),
        present=torch.zeros(0, 3, dtype=torch.bool),
        images=(),
    )
    text, content = written({"ours": [empty]}, tmp_path)
    assert math.isnan(empty.refined.mean_iou)
    assert rows(text)["**mean**"] == ["**-**", "**-**"]
    assert content["evaluations"][0]["after the CRF"]["mean IoU"] is None


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({}, "evaluations is empty"),
        ({"ours": []}, "evaluations is empty"),
        ({"ours": [evaluation(), evaluation()]}, "'ours' has two evaluations of the same protocol: detected, detected"),
        ({"ours": [evaluation()], "theirs": [evaluation(class_names=("a", "b", "c"))]}, "must have the same classes"),
    ],
)
def test_bad_evaluations(evaluations, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_report(evaluations, tmp_path / "out", command="measure", data="")
    assert not (tmp_path / "out").exists()


def test_a_failure_leaves_the_earlier_report(tmp_path, monkeypatch):
    before = written({"ours": [evaluation()]}, tmp_path)

    def half(path, text, **_):
        path.write_bytes(text.encode()[:20])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        write_report({"other": [evaluation()]}, tmp_path, command="measure", data="")
    assert (tmp_path / "evaluation.md").read_text() == before[0]
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.md", "evaluation.json"}

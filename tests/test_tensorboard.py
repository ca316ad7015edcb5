"""Logs for TensorBoard: the same curves as in the CSV file, also after an interruption."""

import csv
import sys

import pytest
from test_train_classifier import classifier, last_weights, make_collection, train
from typer.testing import CliRunner

import dcsm_attr.training.loop as module
from dcsm_attr.cli import app
from dcsm_attr.datasets.scenes import write_scene_folder

CURVES = ("loss", "learning_rate", "validation_map")


@pytest.fixture
def accumulator():
    return pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason='logs for TensorBoard are an extra: pip install "dcsm_attr[tensorboard]"',
    )


def drawn(accumulator, folder):
    """Return the steps and values of each curve that TensorBoard shows."""
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    curves = {name: events.Scalars(name) for name in events.Tags()["scalars"]}
    return {name: [(event.step, event.value) for event in curve] for name, curve in curves.items()}


def logged(folder):
    with (folder / "log.csv").open() as file:
        lines = list(csv.DictReader(file))
    return {name: [(int(line["step"]), float(line[name])) for line in lines] for name in CURVES}


def agree(shown, lines):
    assert shown.keys() == lines.keys()
    for name, curve in shown.items():
        assert [step for step, _ in curve] == [step for step, _ in lines[name]], name
        # TensorBoard stores float32.
        assert [value for _, value in curve] == pytest.approx([value for _, value in lines[name]], rel=1e-6), name
    return True


def test_tensorboard_shows_the_log(accumulator, tmp_path):
    collection = make_collection(tmp_path / "t", 8)
    train(tmp_path / "out", collection, collection, tensorboard=True)
    lines = logged(tmp_path / "out")
    assert [step for step, _ in lines["loss"]] == [2, 4, 6, 8]
    assert agree(drawn(accumulator, tmp_path / "out"), lines)


def test_nothing_is_written_by_default(tmp_path):
    collection = make_collection(tmp_path / "t", 6)
    train(tmp_path / "out", collection, collection)
    assert not (tmp_path / "out" / "tensorboard").exists()


@pytest.mark.parametrize("fault_at", [1, 2, 3])
def test_a_resumed_training_has_no_point_twice(accumulator, tmp_path, monkeypatch, fault_at):
    collection = make_collection(tmp_path / "t", 8)
    out, saved, calls = tmp_path / "out", module.save_checkpoint, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == fault_at:
            # After the point was logged and before the checkpoint.
            raise KeyboardInterrupt
        saved(*arguments, **options)

    monkeypatch.setattr(module, "save_checkpoint", failing)
    with pytest.raises(KeyboardInterrupt):
        train(out, collection, collection, tensorboard=True)
    assert len(drawn(accumulator, out)["loss"]) == fault_at
    monkeypatch.setattr(module, "save_checkpoint", saved)
    train(out, collection, collection, tensorboard=True)
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert agree(drawn(accumulator, out), logged(out))
    # A finished training adds nothing.
    train(out, collection, collection, tensorboard=True)
    assert len(list((out / "tensorboard").iterdir())) == 2


def test_a_training_can_resume_with_or_without_it(accumulator, tmp_path, monkeypatch):
    collection = make_collection(tmp_path / "t", 8)
    out, whole, saved = tmp_path / "out", tmp_path / "whole", module.save_checkpoint
    train(whole, collection, collection)

    def last_one(*arguments, **options):
        saved(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", last_one)
    with pytest.raises(KeyboardInterrupt):
        train(out, collection, collection)
    monkeypatch.setattr(module, "save_checkpoint", saved)
    train(out, collection, collection, tensorboard=True)
    assert agree(drawn(accumulator, out), {name: line[1:] for name, line in logged(out).items()})
    first, second = last_weights(whole), last_weights(out)
    assert all(first[name].equal(second[name]) for name in first)


def test_only_the_first_process_writes(accumulator, trained_by_two):
    assert len(list((trained_by_two / "tensorboard").iterdir())) == 1
    assert agree(drawn(accumulator, trained_by_two), logged(trained_by_two))


def test_without_tensorboard_training_does_not_start(tmp_path, monkeypatch):
    collection = make_collection(tmp_path / "t", 6)
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    start = classifier()
    with pytest.raises(ImportError, match=r'pip install "dcsm_attr\[tensorboard\]"'):
        train(tmp_path / "out", collection, collection, start=start, tensorboard=True)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_it(accumulator, tmp_path):
    folder = write_scene_folder(tmp_path / "scenes", 4, size=32, progress=False)
    options = ["--model", "squeezenet1_1", "--weights", "none", "--size", "32", "--steps", "2", "--batch-size", "2"]
    options += ["--workers", "0", "--device", "cpu", "--output", str(tmp_path / "net"), "--tensorboard"]
    result = CliRunner().invoke(app, ["train", str(folder), *options])
    assert result.exit_code == 0, result.output
    assert agree(drawn(accumulator, tmp_path / "net"), logged(tmp_path / "net"))

"""The benchmark: that implementations take turns, do the same work, and are measured and reported as they are."""

import json

import numpy as np
import pytest
import torch
import torchvision
from allocations import MIB, allocating
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from benchmarks.speed import crf as crf_module
from benchmarks.speed import saliency as saliency_module
from benchmarks.speed import walk as walk_module
from benchmarks.speed.__main__ import app
from benchmarks.speed.comparison import OURS, Comparison, Outcome, Scaling, Timing, run_comparison, time_interleaved
from benchmarks.speed.crf import CrfWork, bytes_moved, crf_comparisons, crf_implementations
from benchmarks.speed.report import outcome_table, write_benchmark
from benchmarks.speed.saliency import SaliencyWork, _record_calls, saliency_comparisons, saliency_implementations
from benchmarks.speed.walk import (
    DENSE,
    PLAIN,
    SPARSE,
    AffinityWork,
    WalkWork,
    affinity_implementations,
    exact_walk,
    walk_comparisons,
    walk_implementations,
)
from dcsm_attr.crf import DenseCRF


def test_implementations_take_turns_after_warming_up():
    order = []
    timings = time_interleaved(
        {name: lambda name=name: order.append(name) for name in ("a", "b", "c")}, rounds=3, progress=False
    )
    assert order == ["a", "b", "c"] * 4
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_the_first_run_does_not_count(monkeypatch):
    clock = iter([0, 100, 200, 201, 300, 303, 400, 402])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timing = time_interleaved({"a": lambda: None}, rounds=3, progress=False)["a"]
    assert timing.seconds == (1, 3, 2)
    assert timing.to_dict() == {"median": 2, "fastest": 1, "slowest": 3}


@pytest.mark.parametrize(("implementations", "rounds"), [({}, 1), ({"a": print}, 0)])
def test_nothing_to_time(implementations, rounds):
    with pytest.raises(ValueError, match="at least one"):
        time_interleaved(implementations, rounds)


@pytest.mark.parametrize("model", ["squeezenet1_1", "resnet18"])
def test_all_guided_gradients_give_the_same_maps(model):
    implementations = saliency_implementations(SaliencyWork(model, 64, 3))
    ours = implementations[OURS]().maps
    assert ours.max() > 0.1
    others = [name for name in implementations if name.startswith(("captum", "PyTorch"))]
    assert len(others) == 4
    for name in others:
        # Where several channels are equally large, rounding decides; the maps agree up to few positions.
        difference = (implementations[name]() - ours).abs()
        assert difference.mean() < 1e-3, name
        assert (difference > 0.02).float().mean() < 0.01, name


def test_implementations_leave_the_model_unchanged(monkeypatch):
    made = []
    original = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda *a, **k: made.append(original(*a, **k)) or made[-1])
    implementations = saliency_implementations(SaliencyWork("squeezenet1_1", 64, 2))
    (model,) = made
    rectifiers = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    for name, run in implementations.items():
        run()
        assert all(m.inplace for m in rectifiers), name
        assert all(p.requires_grad for p in model.parameters()), name
        assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules()), name
        model.zero_grad(set_to_none=True)


def test_the_lower_bound_is_one_forward_and_partial_backward_passes():
    model = torchvision.models.vgg16(weights=None).eval()
    calls = _record_calls(model, "features.10", torch.randn(1, 3, 64, 64), [0, 1, 2])
    count = {}
    for func, *_ in calls:
        count[func.overloadpacket.__name__] = count.get(func.overloadpacket.__name__, 0) + 1
    # Ten convolutions come after conv3_1 but two of block 3, three of 4 and three of 5: eight; and three linear layers.
    assert count == {"convolution": 13, "convolution_backward": 3 * 8, "addmm": 3, "mm": 3 * 3}
    backward = [args for func, args, _ in calls if func.overloadpacket.__name__ == "convolution_backward"]
    assert all(args[-1] == [True, False, False] for args in backward), "gradients of inputs alone"
    assert all(p.requires_grad for p in model.parameters())


def test_bytes_of_the_crf_are_those_counted_by_hand():
    """A single pixel: three vertices in two dimensions, six in five; no two of them neighbors."""
    image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    kernels = DenseCRF().kernels(image, DenseCRF().position_lattice(1, 1, 1, image.device))
    assert [count for count, _ in kernels.blurs] == [3, 6]
    entries = 3 + 6
    blur_entries = 3 * (3 * 3) + 6 * (6 * 3)
    tables = 8 * (entries + entries + blur_entries)
    labels = 4
    # Read the pixel, write the vertices; each blur reads and writes its vertices; read the vertices, write the pixel.
    values = 1 + 9 + 2 * (3 * 3 + 6 * 6) + 9 + 1
    assert bytes_moved(image, labels) == 10 * (tables + 4 * labels * values)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(8):
        small = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        small.resize((40 + i, 30), Image.Resampling.BILINEAR).save(folder / f"{i}.png")
    return folder


def test_crf_implementations_agree(images):
    pytest.importorskip("pydensecrf", reason="the reference CRF is an extra: pip install 'dcsm_attr[pydensecrf]'")
    implementations = crf_implementations(CrfWork((str(images / "0.png"), str(images / "1.png")), 4))
    ours, theirs = implementations[OURS](), implementations["pydensecrf"]()
    assert ours.shape == (2, 4, 375, 500)
    assert (ours - theirs).abs().max() < 1e-3


def test_too_few_images():
    with pytest.raises(ValueError, match="a batch of 8 images, got 7"):
        crf_comparisons(["a.png"] * 7)


SMALL_WALK = Comparison("a small walk", walk_implementations, WalkWork(9, 11, 3), (OURS,), exact_walk)


def test_walk_implementations_agree():
    outcome = run_comparison(SMALL_WALK, 1, memory=False, progress=False)
    assert outcome.errors.keys() == {OURS, SPARSE, DENSE}
    assert 0 < outcome.errors[OURS] < 3e-7
    assert all(0 < error < 1e-4 for error in outcome.errors.values())
    assert outcome_table(outcome).splitlines()[0].endswith("| largest error |")
    # The walk has changed the maps, which are not yet constant.
    exact = exact_walk(SMALL_WALK.work)
    assert exact.dtype == torch.float64
    assert 1e-3 < exact.std(dim=(2, 3)).max() < 0.25


def test_affinity_gradients_equal_plain_pytorch():
    implementations = affinity_implementations(AffinityWork(2, 5, 9))
    ours, plain = implementations[OURS](), implementations[PLAIN]()
    assert ours.abs().max() > 1
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_errors_are_differences_from_the_exact_result():
    def right_and_wrong(work):
        return {OURS: lambda: work, "wrong": lambda: work + torch.tensor([0.0, -0.5])}

    comparison = Comparison("t", right_and_wrong, torch.tensor([1.0, 2.0]), exact=lambda work: work.double())
    assert run_comparison(comparison, 1, progress=False).errors == {OURS: 0, "wrong": 0.5}


def test_only_small_maps_are_walked_by_dense_matrices():
    walks = [comparison for comparison in walk_comparisons() if isinstance(comparison.work, WalkWork)]
    by_size = {
        comparison.work: comparison.prepare(comparison.work) for comparison in walks if comparison.work.labels == 2
    }
    assert [DENSE in implementations for implementations in by_size.values()] == [True, False]
    assert [(work.width, work.height) for work in by_size] == [(63, 47), (125, 94)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process's memory, not the device's")
def test_peak_memory_is_that_of_one_run():
    outcome = run_comparison(Comparison("t", allocating, 64, (OURS, "half", "nobody")), 1, progress=False)
    assert list(outcome.memory) == [OURS, "half"]
    assert 64 * MIB <= outcome.memory[OURS] < 80 * MIB
    assert 32 * MIB <= outcome.memory["half"] < 48 * MIB
    assert run_comparison(Comparison("t", allocating, 1, (OURS,)), 1, memory=False, progress=False).memory == {}


def test_scaling_fits_a_line():
    scaling = Scaling("t", "classes", (1, 2, 4), (3.0, 5.0, 9.0))
    assert scaling.slope == pytest.approx(2)
    assert scaling.r_squared == pytest.approx(1)
    bent = Scaling("t", "classes", (1, 2, 3), (0.0, 3.0, 0.0))
    assert bent.slope == pytest.approx(0)
    assert bent.r_squared == pytest.approx(0)


def test_report_contains_the_measurements(tmp_path):
    outcome = Outcome("work", {OURS: Timing((0.1, 0.2, 0.3)), "other": Timing((0.5, 0.5, 0.7))}, {OURS: 3 * MIB})
    assert outcome_table(outcome).splitlines()[2:] == [
        "| dcsm_attr | 200 | 100 | 300 | 1.00 | 3 |",
        "| other | 500 | 500 | 700 | 2.50 | - |",
    ]
    scaling = Scaling("growing", "images", (1, 2), (1.0, 2.0))
    paths = write_benchmark(
        [outcome], [scaling], tmp_path / "new", "saliency", command="python -m benchmarks.speed saliency"
    )
    content = json.loads(paths[1].read_text())
    (comparison,) = content["comparisons"]
    assert comparison["times ours"] == {"other": 2.5}
    assert comparison["seconds"]["other"] == {"median": 0.5, "fastest": 0.5, "slowest": 0.7}
    assert comparison["peak memory in bytes"] == {OURS: 3 * MIB}
    assert content["scaling"][0]["seconds for one more"] == pytest.approx(1)
    assert content["measured"]["command"] == "python -m benchmarks.speed saliency"
    text = paths[0].read_text()
    assert "## work" in text
    assert "with 1000 ms for each of the images explains 1.0000" in text


def test_one_comparison_per_model_and_number_of_classes():
    titles = [comparison.title for comparison in saliency_comparisons(["vgg16", "resnet50"], 500, [3, 10])]
    assert titles == [f"{model}, 500 x 500, K = {k}" for model in ("vgg16", "resnet50") for k in (3, 10)]


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_command(images, tmp_path, monkeypatch):
    monkeypatch.setattr(saliency_module, "CLASS_COUNTS", (1, 3))
    monkeypatch.setattr(saliency_module, "IMAGE_COUNTS", (1, 2))
    monkeypatch.setattr(crf_module, "_SIZE", (60, 45))
    small = ("--size", 64, "--rounds", 1, "--no-memory", "--output", tmp_path)
    result = run("saliency", "--model", "squeezenet1_1", "--classes", 2, *small)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "saliency.json").read_text())
    assert content["measured"]["command"] == (
        "python -m benchmarks.speed saliency --model=squeezenet1_1 --size=64 --classes=2 --rounds=1"
    )
    (comparison,) = content["comparisons"]
    assert {OURS, "captum, all layers per call", "floor, channels last"} <= comparison["seconds"].keys()
    assert run("scaling", "--model", "squeezenet1_1", *small).exit_code == 0
    by_classes, by_images = json.loads((tmp_path / "scaling.json").read_text())["scaling"]
    assert list(by_classes["seconds"]) == ["1", "3"]
    assert list(by_images["seconds"]) == ["1", "2"]
    assert 0 < by_classes["seconds of a partial backward pass"] < by_classes["seconds"]["3"]
    assert "seconds of a partial backward pass" not in by_images
    assert run("crf", "--images", images, *small).exit_code == 0
    assert len(json.loads((tmp_path / "crf.json").read_text())["comparisons"]) == 3
    several = ("--images", images, "--model", "squeezenet1_1", "--count", 3, "--batch-size", 2)
    assert run("pipeline", *several, *small).exit_code == 0
    (comparison,) = json.loads((tmp_path / "pipeline.json").read_text())["comparisons"]
    alone = {f"{step} alone" for step in ("reading and preparing", "class maps", "class maps and CRF", "restoring")}
    assert comparison["seconds"].keys() == {OURS, "one step after the other", *alone, "floor, the convolutions"}
    monkeypatch.setattr(walk_module, "walk_comparisons", lambda: [SMALL_WALK])
    assert run("walk", *small).exit_code == 0
    content = json.loads((tmp_path / "walk.json").read_text())
    assert content["measured"]["command"] == "python -m benchmarks.speed walk --rounds=1"
    assert content["comparisons"][0]["largest errors"].keys() == {OURS, SPARSE, DENSE}
    without = run("crf", *small)
    assert isinstance(without.exception, ValueError)
    assert "--images" in str(without.exception)

"""Training segmentation networks: losses by hand, learning, resuming exactly, several processes, unreadable files."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_segmentation_net import CANVAS, NAMES, net
from torch import nn

import dcsm_attr.training.segmentation as module
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.masks import VOID, label_image
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.training.data import Batch
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.optimizer import Schedule
from dcsm_attr.training.segmentation import SCHEDULES, train_segmentation_net
from dcsm_attr.wsss.losses import OBJECTIVES
from dcsm_attr.wsss.network_segmenter import NetworkSegmenter
from dcsm_attr.wsss.region_growing import refine_scores

SCHEDULE = Schedule(
    "adamw", "onecycle", 1e-3, 5.0, 1e-2, batch_size=2, steps=6, head_only_steps=2, scale_range=(0.9, 1.2)
)
SETTINGS = TrainingSettings(SCHEDULE, validate_every=2)

LOGITS = torch.tensor([[[[2.0, 0.0], [-1.0, 0.5]], [[0.0, 1.0], [3.0, 0.5]], [[-1.0, 0.5], [0.0, 0.0]]]] * 2)
LOGITS[1] = LOGITS[1].flip(-1) * 0.5
LABELS = torch.tensor([[[0, VOID], [1, VOID]], [[VOID, 2], [VOID, VOID]]])
PRESENT = torch.tensor([[True, False], [False, True]])
IMAGES = torch.randint(0, 255, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def floored():
    shares = LOGITS.double().exp()
    shares = shares / shares.sum(dim=1, keepdim=True)
    return (shares + 1e-4) / (1 + 3e-4)


def test_cross_entropy_of_pseudo_labels_by_hand():
    terms = OBJECTIVES["pseudo"](LOGITS, LABELS, PRESENT, IMAGES)
    shares = LOGITS.double().exp() / LOGITS.double().exp().sum(dim=1, keepdim=True)
    first = -(shares[0, 0, 0, 0].log() + shares[0, 1, 1, 0].log()) / 2
    second = -shares[1, 2, 0, 1].log()
    assert float(terms["cross_entropy"]) == pytest.approx(float(first + second) / 2, rel=1e-6)
    nothing = OBJECTIVES["pseudo"](LOGITS, torch.full_like(LABELS, VOID), PRESENT, IMAGES)
    assert float(nothing["cross_entropy"]) == 0
    with pytest.raises(ValueError, match="labels must be in 0 to 2, or 255 for none; got 7"):
        OBJECTIVES["pseudo"](LOGITS, torch.full_like(LABELS, 7), PRESENT, IMAGES)


def test_the_terms_of_sec_by_hand():
    terms = OBJECTIVES["sec"](LOGITS, LABELS, PRESENT, IMAGES)
    p = floored()
    first = -(p[0, 0, 0, 0].log() + p[0, 1, 1, 0].log()) / 2
    second = -p[1, 2, 0, 1].log()
    assert float(terms["seed"]) == pytest.approx(float(first + second) / 2, rel=1e-5)

    def share(values, decay):
        ranked = values.flatten().sort(descending=True).values
        weights = torch.tensor([decay**rank for rank in range(4)], dtype=torch.float64)
        return (ranked * weights).sum() / weights.sum()

    expected = 0.0
    for image, (there, absent) in enumerate(((1, 2), (2, 1))):
        expected -= share(p[image, there], 0.996).log() + share(p[image, 0], 0.999).log()
        expected -= (1 - p[image, absent].max()).log()
    assert float(terms["expansion"]) == pytest.approx(float(expected) / 2, rel=1e-5)
    q = refine_scores(LOGITS, IMAGES).double()
    assert float(terms["boundary"]) == pytest.approx(float((q * (q / p).log()).sum(dim=1).mean()), rel=1e-4)


def test_the_terms_of_dsrg_by_hand(monkeypatch):
    # What the CRF makes of it: sure of class 1 in the lower row of the first picture, of nothing in the second.
    q = torch.full((2, 3, 2, 2), 0.1)
    q[:, 0] = 0.8
    q[0, :, 1] = torch.tensor([0.05, 0.9, 0.05])[:, None]
    monkeypatch.setattr("dcsm_attr.wsss.losses.refine_scores", lambda logits, images: q)
    terms = OBJECTIVES["dsrg"](LOGITS, LABELS, PRESENT, IMAGES)
    p = floored()
    # The seed of class 1 at the lower left grows to the lower right; background and second picture stay.
    first = -p[0, 0, 0, 0].log() - (p[0, 1, 1, 0].log() + p[0, 1, 1, 1].log()) / 2
    second = -p[1, 2, 0, 1].log()
    assert float(terms["seed"]) == pytest.approx(float(first + second) / 2, rel=1e-5)
    ratio = (q.double() / p).clamp(0.05, 20)
    assert float(terms["boundary"]) == pytest.approx(float((q * ratio.log()).sum(dim=1).mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["sec", "dsrg"])
def test_no_gradient_goes_through_the_crf(monkeypatch, name):
    logits = LOGITS.clone().requires_grad_()
    target = refine_scores(LOGITS, IMAGES)
    whole = sum(OBJECTIVES[name](logits, LABELS, PRESENT, IMAGES).values())
    (through,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr("dcsm_attr.wsss.losses.refine_scores", lambda logits, images: target)
    constant = sum(OBJECTIVES[name](logits, LABELS, PRESENT, IMAGES).values())
    (beside,) = torch.autograd.grad(constant, logits)
    assert torch.equal(through, beside)
    assert through.abs().max() > 0


def make_collection(folder, count):
    """A red or a green half beside a dark one; labels of all pixels, and of a few in the middle of each half."""
    for name in ("labels", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        middle = 10 + 4 * (i % 4)
        pixels = np.random.default_rng(i).integers(0, 60, (32, 32, 3)).astype(np.uint8)
        pixels[:, :middle, i % 2] += 180
        labels = np.zeros((32, 32), dtype=np.uint8)
        labels[:, :middle] = 1 + i % 2
        seeds = np.full((32, 32), VOID, dtype=np.uint8)
        seeds[8:24, : middle - 6] = 1 + i % 2
        seeds[8:24, middle + 4 :] = 0
        Image.fromarray(pixels).save(folder / f"{i}.png")
        label_image(labels).save(folder / "labels" / f"{i}.png")
        label_image(seeds).save(folder / "seeds" / f"{i}.png")
    return collection_of(folder, count)


def collection_of(folder, count):
    return Collection(
        NAMES,
        tuple(
            LabeledImage(str(i), folder / f"{i}.png", (i % 2,), folder / "labels" / f"{i}.png") for i in range(count)
        ),
    )


def train(folder, collection, labels, objective, settings=SETTINGS, start=None, **options):
    return train_segmentation_net(
        start or net(), collection, labels, folder, settings, objective=objective, workers=0, progress=False, **options
    )


def logged(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("objective", "labels"), [("pseudo", "labels"), ("sec", "seeds"), ("dsrg", "seeds")])
def test_it_learns_to_segment(tmp_path, objective, labels):
    collection = make_collection(tmp_path / "p", 8)
    schedule = replace(SCHEDULE, steps=60, head_only_steps=5, batch_size=4, scale_range=(1.0, 1.0))
    settings = TrainingSettings(schedule, validate_every=30)
    trained = train(tmp_path / "out", collection, tmp_path / "p" / labels, objective, settings)
    segmenter = NetworkSegmenter(trained, crf=None)
    right = []
    for item in collection:
        found = segmenter.segment(item.path).labels.numpy()
        right.append(float((found == np.array(Image.open(item.mask))).mean()))
    assert np.mean(right) > 0.85, right
    names = OBJECTIVES[objective].names
    lines = logged(tmp_path / "out")
    first, last = (sum(float(line[name]) for name in names) for line in (lines[0], lines[-1]))
    assert last < first


def test_true_masks_are_not_read(tmp_path):
    collection = make_collection(tmp_path / "p", 4)
    hidden = replace(collection, images=tuple(replace(p, mask=tmp_path / "nowhere") for p in collection))
    train(tmp_path / "out", hidden, tmp_path / "p" / "seeds", "sec")
    assert not (tmp_path / "out" / "unreadable.json").exists()


def test_the_log_has_the_terms_of_the_loss(tmp_path, monkeypatch):
    collection = make_collection(tmp_path / "p", 5)
    seen, objective = [], OBJECTIVES["sec"]

    def recording(logits, labels, present, images):
        terms = objective(logits, labels, present, images)
        seen.append({name: float(value.detach()) for name, value in terms.items()})
        return terms

    recorded = replace(objective, terms=recording)
    monkeypatch.setitem(module.OBJECTIVES, "sec", recorded)
    train(tmp_path / "out", collection, tmp_path / "p" / "seeds", "sec")
    lines = logged(tmp_path / "out")
    for number, line in enumerate(lines):
        for name in objective.names:
            expected = (seen[2 * number][name] + seen[2 * number + 1][name]) / 2
            assert float(line[name]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("objective", ["pseudo", "sec", "dsrg"])
def test_an_interrupted_training_resumes_exactly(tmp_path, monkeypatch, objective):
    collection = make_collection(tmp_path / "p", 5)
    seeds = tmp_path / "p" / "seeds"
    whole = train(tmp_path / "whole", collection, seeds, objective)
    calls, original = [], module.downsample_labels

    def failing(labels, size):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(labels, size)

    monkeypatch.setattr(module, "downsample_labels", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", collection, seeds, objective)
    monkeypatch.setattr(module, "downsample_labels", original)
    resumed = train(tmp_path / "cut", collection, seeds, objective)
    assert parameters_digest(resumed.network) == parameters_digest(whole.network)
    assert parameters_digest(whole.network) != parameters_digest(net().network)
    without_seconds = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in logged(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert without_seconds[0] == without_seconds[1]
    other = "sec" if objective == "pseudo" else "pseudo"
    with pytest.raises(
        ValueError, match=rf"a training with other settings: objective \({objective} before, {other} now\)"
    ):
        train(tmp_path / "cut", collection, seeds, other)


SHARED_BATCHES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from test_segmentation_training import collection_of, train_steadily
torch.set_num_threads(1)
for objective in ("pseudo", "sec"):
    folder = Path(sys.argv[2]) / objective
    train_steadily(folder, collection_of(Path(sys.argv[3]), 6), Path(sys.argv[3]) / "seeds", objective)
"""


def train_steadily(folder, collection, seeds, objective):
    """Train without dropout and batch norms, which differ between processes, and with SGD, whose steps are small."""
    schedule = replace(SCHEDULE, optimizer="sgd", policy="poly", learning_rate=1e-2, steps=3, head_only_steps=1)
    start = net("largefov")
    for layer in start.network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    train(folder, collection, seeds, objective, TrainingSettings(schedule, validate_every=3), start)


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path):
    """Train twice in one run: the second group of processes shares a store with the first."""
    script = tmp_path / "script.py"
    script.write_text(SHARED_BATCHES)
    collection = make_collection(tmp_path / "p", 6)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*two, str(script), str(Path(__file__).parent), str(tmp_path / "two"), str(tmp_path / "p")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    start = net("largefov").network.state_dict()
    for objective in ("pseudo", "sec"):
        train_steadily(tmp_path / "one" / objective, collection, tmp_path / "p" / "seeds", objective)
        folders = [tmp_path / name / objective for name in ("one", "two")]
        one, both = (torch.load(folder / "last.pt", weights_only=True)["network"] for folder in folders)
        for name in one:
            moved = (one[name] - start[name]).abs().max()
            assert (one[name] - both[name]).abs().max() <= 1e-3 * moved + 1e-6, name
        for alone, shared in zip(*map(logged, folders), strict=True):
            for term in OBJECTIVES[objective].names:
                assert float(shared[term]) == pytest.approx(float(alone[term]), abs=2e-4)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(name):
    whole = OBJECTIVES[name](LOGITS, LABELS, PRESENT, IMAGES)
    parts = [OBJECTIVES[name](LOGITS[i, None], LABELS[i, None], PRESENT[i, None], IMAGES[i, None]) for i in range(2)]
    for term, value in whole.items():
        assert float(value) == pytest.approx(float(parts[0][term] + parts[1][term]) / 2, rel=1e-5)


def test_missing_and_broken_label_maps_are_left_out(tmp_path):
    collection = make_collection(tmp_path / "p", 6)
    labels = tmp_path / "p" / "labels"
    (labels / "2.png").unlink()
    (labels / "4.png").write_bytes(b"broken")
    Image.fromarray(np.full((32, 32), 77, dtype=np.uint8)).save(labels / "5.png")
    # Some batches have one image; the batch norms of DeepLab's head need two.
    train(tmp_path / "out", collection, labels, "pseudo", start=net("deeplab"))
    failures = json.loads((tmp_path / "out" / "unreadable.json").read_text())["failures"]
    assert [Path(failure.split(": ")[0]).name for failure in failures] == ["2.png", "4.png", "5.png"]


def test_one_image_twice_has_the_loss_of_one(tmp_path):
    collection = make_collection(tmp_path / "p", 2)
    task = module._SegmentationTask(net("fcn"), collection, tmp_path / "p" / "labels", "pseudo", None)
    task.network.eval()
    canvas = CANVAS(Image.open(tmp_path / "p" / "1.png")).tensor
    labels = torch.from_numpy(np.array(Image.open(tmp_path / "p" / "labels" / "1.png")))
    batch = Batch(torch.tensor([1]), canvas[None], collection.presence()[1:].float(), labels[None])
    loss = task.loss(task.network, batch, 1.0)
    logits = task.network(canvas[None])
    on_grid = module.downsample_labels(labels[None], logits.shape[2:])
    assert float(loss.detach()) == pytest.approx(float(nn.functional.cross_entropy(logits.detach(), on_grid)), rel=1e-5)


def test_arguments_that_do_not_fit(tmp_path):
    collection = make_collection(tmp_path / "p", 2)
    with pytest.raises(ValueError, match="empty"):
        train(tmp_path / "out", Collection(NAMES, ()), tmp_path, "sec")
    with pytest.raises(ValueError, match=r"has the classes \('a', 'b'\), the network \('red', 'green'\)"):
        train(tmp_path / "out", replace(collection, class_names=("a", "b")), tmp_path, "sec")
    with pytest.raises(ValueError, match="'pseudo', 'sec', 'dsrg'; got 'full'"):
        train(tmp_path / "out", collection, tmp_path, "full")
    assert not (tmp_path / "out").exists()


def test_training_restores_the_random_state(tmp_path):
    collection, start = make_collection(tmp_path / "p", 3), net()
    before = torch.get_rng_state()
    train(tmp_path / "out", collection, tmp_path / "p" / "seeds", "dsrg", start=start)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_published_solvers():
    sec, dsrg, again = (SCHEDULES[name]["paper"] for name in ("sec", "dsrg", "pseudo"))
    assert (sec.batch_size, sec.learning_rate, sec.step_decay, sec.steps) == (15, 1e-3, (2000, 0.1), 8000)
    assert (dsrg.batch_size, dsrg.learning_rate, dsrg.step_decay, dsrg.steps) == (20, 5e-4, (1000, 0.33), 8000)
    assert (again.batch_size, again.learning_rate, again.policy, again.steps) == (10, 1e-3, "poly", 20_000)
    assert {(p.optimizer, p.momentum, p.weight_decay) for p in (sec, dsrg, again)} == {("sgd", 0.9, 5e-4)}
    assert all(SCHEDULES[name]["modern"].steps == 500 for name in SCHEDULES)

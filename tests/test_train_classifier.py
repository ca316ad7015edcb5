"""Training on image-level labels: learning, resuming exactly, starting over, several processes."""

import csv
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import dcsm_attr.training.classifier as module
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.checkpoint import (
    Architecture,
    Classifier,
    build_classifier,
    load_classifier,
    network_kind,
    save_network,
)
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.models.weights import WeightsError
from dcsm_attr.training.checkpoints import CheckpointError
from dcsm_attr.training.classifier import SCHEDULES, train_classifier
from dcsm_attr.training.distributed import local_device
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.optimizer import ClassifierSchedule, build_optimizer

NAMES = ("red", "green")
SCHEDULE = ClassifierSchedule(
    "adamw",
    "onecycle",
    1e-3,
    5.0,
    1e-2,
    batch_size=4,
    steps=8,
    head_only_steps=2,
    pooling="max",
    scale_range=(0.8, 1.2),
)
SETTINGS = TrainingSettings(SCHEDULE, validate_every=2)
CANVAS = Preprocess(size=32)


def make_collection(folder, count, corrupt=()):
    """Write images with red, green or both stripes, without masks."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for i in range(count):
        shown = ((0,), (1,), (0, 1))[i % 3]
        pixels = torch.randint(0, 60, (32, 32, 3), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
        for c in shown:
            pixels[8 * c + 4 : 8 * c + 12, :, c] = 250
        path = folder / f"{i}.png"
        Image.fromarray(pixels.numpy()).save(path)
        if i in corrupt:
            path.write_bytes(b"broken")
        items.append(LabeledImage(str(i), path, shown))
    return Collection(NAMES, tuple(items))


def classifier(dropout=True):
    torch.manual_seed(7)
    built = build_classifier(Architecture("squeezenet1_1", 2, "features.4", "rectified"), None, NAMES, CANVAS)
    if not dropout:
        for layer in built.network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    return built


def train(folder, training, validation, settings=SETTINGS, **options):
    start = options.pop("start", None) or classifier()
    return train_classifier(start, training, validation, folder, settings, workers=0, progress=False, **options)


def last_weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)["network"]


def test_it_learns_and_saves_the_best_classifier(tmp_path):
    training, validation = make_collection(tmp_path / "t", 24), make_collection(tmp_path / "v", 12)
    settings = replace(SETTINGS, schedule=replace(SCHEDULE, steps=60, batch_size=8), validate_every=10)
    best = train(tmp_path / "out", training, validation, settings)
    with (tmp_path / "out" / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert [int(line["step"]) for line in log] == [10, 20, 30, 40, 50, 60]
    precisions = [float(line["validation_map"]) for line in log]
    assert max(precisions) > 0.95
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])
    assert not best.network.training
    assert best.class_names == NAMES
    assert best.pooling == "max"
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["schedule"]["steps"] == 60


def test_the_scene_network_starts_from_its_shipped_backbone():
    built = build_classifier(Architecture("scene_net", 2), "DEFAULT", NAMES, CANVAS)
    shipped = load_scene_net().features.state_dict()
    backbone = built.network.backbone.state_dict()
    assert all(torch.equal(backbone[f"features.{name}"], value) for name, value in shipped.items())
    assert built.network(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 4, 4)
    assert built.network.training
    with pytest.raises(ValueError, match="no classification model"):
        build_classifier(Architecture("scene_net", 2), "IMAGENET1K_V1", NAMES, CANVAS)


def test_only_the_head_learns_in_the_first_steps(tmp_path):
    training = make_collection(tmp_path / "t", 8)
    settings = replace(SETTINGS, schedule=replace(SCHEDULE, steps=2, head_only_steps=2))
    before = {name: value.clone() for name, value in classifier().network.state_dict().items()}
    train(tmp_path / "out", training, training, settings)
    after = last_weights(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("backbone."))
    assert not torch.equal(after["head.0.weight"], before["head.0.weight"])
    train(
        tmp_path / "all", training, training, replace(settings, schedule=replace(SCHEDULE, steps=2, head_only_steps=0))
    )
    assert not torch.equal(
        last_weights(tmp_path / "all")["backbone.features.0.weight"], before["backbone.features.0.weight"]
    )


@pytest.mark.parametrize("fault_at", [1, 4, 5, 8])
def test_an_interrupted_training_resumes_exactly(tmp_path, monkeypatch, fault_at):
    training, validation = make_collection(tmp_path / "t", 10), make_collection(tmp_path / "v", 6)
    train(tmp_path / "whole", training, validation)
    calls = []

    def failing(logits, present):
        calls.append(1)
        if len(calls) == fault_at:
            raise KeyboardInterrupt
        return original(logits, present)

    original = module.multi_label_loss
    monkeypatch.setattr(module, "multi_label_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", training, validation)
    monkeypatch.setattr(module, "multi_label_loss", original)
    train(tmp_path / "cut", training, validation)
    whole, cut = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    best = [load_file(tmp_path / name / "best.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    logs = []
    for name in ("whole", "cut"):
        with (tmp_path / name / "log.csv").open() as file:
            logs.append([{k: v for k, v in line.items() if k != "seconds"} for line in csv.DictReader(file)])
    assert logs[0] == logs[1]


def test_each_process_uses_its_own_gpu(monkeypatch):
    assert local_device(torch.device("cpu")) == torch.device("cpu")
    assert local_device(torch.device("cuda")) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(torch.device("cuda")) == torch.device("cuda", 3)
    assert local_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_training_restores_the_random_state(tmp_path):
    training, start = make_collection(tmp_path / "t", 6), classifier()
    before = torch.get_rng_state()
    train(tmp_path / "out", training, training, start=start)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_training_is_not_repeated(tmp_path):
    training = make_collection(tmp_path / "t", 6)
    train(tmp_path / "out", training, training)
    stamp = (tmp_path / "out" / "last.pt").stat().st_mtime_ns
    train(tmp_path / "out", training, training)
    assert (tmp_path / "out" / "last.pt").stat().st_mtime_ns == stamp


def test_other_settings_are_refused_or_overwrite(tmp_path):
    training = make_collection(tmp_path / "t", 6)
    train(tmp_path / "out", training, training)
    with pytest.raises(ValueError, match=r"out: holds a training with other settings: seed \(0 before, 1 now\)\. Run"):
        train(tmp_path / "out", training, training, replace(SETTINGS, seed=1))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = train(tmp_path / "out", training, training, replace(SETTINGS, seed=1), overwrite=True)
    fresh = train(tmp_path / "fresh", training, training, replace(SETTINGS, seed=1))
    assert all(torch.equal(v, again.network.state_dict()[k]) for k, v in fresh.network.state_dict().items())
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 5
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    settings = replace(SETTINGS, seed=1)
    (tmp_path / "out" / "last.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        train(tmp_path / "out", training, training, settings)


def test_unreadable_images_are_counted_and_left_out(tmp_path):
    training, validation = (
        make_collection(tmp_path / "t", 9, corrupt=(1, 4)),
        make_collection(tmp_path / "v", 6, corrupt=(2,)),
    )
    settings = replace(SETTINGS, schedule=replace(SCHEDULE, batch_size=3, steps=6), validate_every=3)
    train(tmp_path / "out", training, validation, settings)
    with (tmp_path / "out" / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert [int(line["unreadable"]) for line in log] == [2, 4]


def test_frozen_batch_norms_keep_statistics_and_parameters(tmp_path):
    training = make_collection(tmp_path / "t", 6)

    def trained(frozen):
        torch.manual_seed(1)
        start = build_classifier(Architecture("resnet18", 2, "layer1", "linear"), None, NAMES, CANVAS)
        before = {name: value.clone() for name, value in start.network.state_dict().items()}
        settings = replace(SETTINGS, frozen_batch_norm=frozen, schedule=replace(SCHEDULE, steps=3))
        train(tmp_path / f"out-{frozen}", training, training, settings, start=start)
        after = last_weights(tmp_path / f"out-{frozen}")
        return {name for name in before if not torch.equal(before[name], after[name])}

    changed = trained(frozen=True)
    assert "backbone.conv1.weight" in changed
    assert not any(".bn" in name for name in changed)
    changed = trained(frozen=False)
    assert {"backbone.bn1.running_mean", "backbone.bn1.weight"} <= changed


@pytest.fixture
def one_thread():
    """Use one thread, as torchrun does: the number of threads changes rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_two_processes_train_like_one_with_the_same_batch(tmp_path, trained_by_two, one_thread):
    collection = make_collection(tmp_path / "t", 10)
    train(tmp_path / "one", collection, collection, start=classifier(dropout=False))
    one, both = last_weights(tmp_path / "one"), last_weights(trained_by_two)
    start = classifier(dropout=False).network.state_dict()
    for name in one:
        moved = (one[name] - start[name]).abs().max()
        assert (one[name] - both[name]).abs().max() <= 1e-3 * moved + 1e-6, name
    logs = [(folder / "log.csv").read_text().splitlines() for folder in (tmp_path / "one", trained_by_two)]
    assert len(logs[0]) == len(logs[1]) == 5


def test_a_classifier_comes_back_from_its_file(tmp_path):
    built = classifier()
    path = tmp_path / "net.safetensors"
    built = replace(built, pooling="average")
    save_network(built, path)
    before = torch.get_rng_state()
    loaded = load_classifier(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert (loaded.architecture, loaded.class_names, loaded.preprocess) == (built.architecture, NAMES, CANVAS)
    assert loaded.pooling == "average"
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(loaded.network(x), built.network.eval()(x))
    assert network_kind(path) == "classifier"


def test_files_that_are_no_classifier(tmp_path):
    from safetensors.torch import save_file

    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.zeros(1)}, plain)
    assert network_kind(plain) is None
    with pytest.raises(WeightsError, match="without a description of their network; expected a classifier"):
        load_classifier(plain)
    with pytest.raises(WeightsError, match="there is no such file"):
        load_classifier(tmp_path / "none.safetensors")
    plain.write_bytes(b"half")
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        network_kind(plain)


@pytest.mark.parametrize(
    ("harmed", "message"),
    [
        (lambda d: d.pop("preprocess"), "incomplete .KeyError"),
        (lambda d: d.update(preprocess=3), "incomplete .AttributeError"),
        (lambda d: d["preprocess"].update(zoom=2), "incomplete .TypeError"),
        (lambda d: d["architecture"].update(head="none"), "incomplete .ValueError"),
        (None, "is damaged"),
    ],
)
def test_a_classifier_whose_description_is_not_whole(tmp_path, harmed, message):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "net.safetensors"
    save_network(classifier(), path)
    with safe_open(path, "pt") as file:
        ((key, text),) = file.metadata().items()
    description = json.loads(text)
    if harmed is not None:
        harmed(description["config"])
    save_file(load_file(path), path, {key: "{" if harmed is None else json.dumps(description)})
    with pytest.raises(WeightsError, match=rf"net\.safetensors: .*{message}"):
        load_classifier(path)


def test_a_cut_network_takes_its_part_of_a_file(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    whole = torchvision.models.resnet18(weights=None)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    architecture = Architecture("resnet18", 2, "layer2", "linear")
    built = build_classifier(architecture, tmp_path / "whole.safetensors", NAMES)
    for name, value in built.network.backbone.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    part = {name: value for name, value in whole.state_dict().items() if not name.startswith("layer2.1")}
    save_file(part, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"layer2\.1\.conv1\.weight is missing"):
        build_classifier(architecture, tmp_path / "part.safetensors", NAMES)


def test_collections_must_fit_the_classifier(tmp_path):
    training = make_collection(tmp_path / "t", 3)
    with pytest.raises(ValueError, match="the validation collection is empty"):
        train(tmp_path / "out", training, Collection(NAMES, ()))
    with pytest.raises(ValueError, match="the training collection has the classes"):
        train(tmp_path / "out", Collection(("x", "y"), training.images), training)
    with pytest.raises(ValueError, match="2 classes need as many names, got 1"):
        build_classifier(Architecture("resnet18", 2), None, ("one",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size and steps must be at least 1"),
        ({"head_only_steps": 9}, "head_only_steps must be between 0 and steps = 8, got 9"),
        ({"scale_range": (1.4, 0.7)}, "scale_range must be positive, ascending"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
    ],
)
def test_bad_schedules(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SCHEDULE, **changes)


def test_the_schedule_of_the_paper():
    paper = SCHEDULES["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.weight_decay) == (2, 1e-5, 5e-4)
    assert (paper.steps, paper.head_only_steps, paper.scale_range) == (50_000, 30_000, (0.7, 1.4))
    assert (paper.optimizer, paper.policy, paper.pooling) == ("sgd", "constant", "max")
    assert isinstance(classifier(), Classifier)


@pytest.mark.parametrize("steps", range(1, 13))
def test_onecycle_rises_and_falls_in_any_number_of_steps(steps):
    schedule = replace(SCHEDULES["modern"], steps=steps, head_only_steps=0)
    optimizer, lr_scheduler = build_optimizer(classifier().network, schedule)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        lr_scheduler.step()
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= schedule.learning_rate * (1 + 1e-9)
    if steps > 2:
        assert max(rates) > 0.5 * schedule.learning_rate


def test_the_learning_rate_falls_in_steps():
    schedule = replace(SCHEDULE, policy="step", step_decay=(2, 0.1), optimizer="sgd")
    optimizer, lr_scheduler = build_optimizer(classifier().network, schedule)
    rates = []
    for _ in range(5):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        lr_scheduler.step()
    assert [rate[0] for rate in rates] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    assert [rate[-1] for rate in rates] == pytest.approx([5e-3, 5e-3, 5e-4, 5e-4, 5e-5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"policy": "step"},
            "step_decay belongs to the policy 'step', which needs it; got 'step' with step_decay=None",
        ),
        ({"step_decay": (2, 0.1)}, "step_decay belongs to the policy 'step', which needs it; got 'onecycle'"),
        ({"policy": "step", "step_decay": (0, 0.1)}, "a number of steps and a factor"),
        ({"policy": "step", "step_decay": (2, 1.5)}, "a number of steps and a factor"),
    ],
)
def test_step_decay_belongs_to_its_policy(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SCHEDULE, **changes)

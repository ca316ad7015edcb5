"""Evaluating a segmenter: compared with counting pixels by hand, with unreadable files, interrupted and resumed."""

import json
import logging
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.cli.evaluate import evaluate as evaluate_command
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.masks import VOC_CLASSES, VOID, label_image
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.demo import scene_segmenter
from dcsm_attr.evaluation import evaluate as protocols
from dcsm_attr.evaluation.evaluate import evaluate
from dcsm_attr.evaluation.metrics import mean_average_precision
from dcsm_attr.evaluation.result import PROTOCOLS, Confusion, parameters_digest, run_environment
from dcsm_attr.models.checkpoint import Architecture, build_classifier, save_network
from dcsm_attr.models.scene_net import load_scene_net

COUNT = 7


def write_scene(folder, number, size=64):
    """A scene as an image and its mask, with a frame of void."""
    scene = generate_scene(number, seed=5, size=size)
    labels = scene.labels.numpy().copy()
    labels[:2], labels[-2:] = VOID, VOID
    path, mask = folder / f"{number}.png", folder / f"{number}-mask.png"
    Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(path)
    label_image(labels).save(mask)
    return LabeledImage(f"scene {number}", path, tuple(scene.present.nonzero()[:, 0].tolist()), mask)


@pytest.fixture
def collection(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    return Collection(CLASS_NAMES, tuple(write_scene(folder, i, 56 + 8 * (i % 3)) for i in range(COUNT)))


@pytest.fixture(scope="module")
def segmenter():
    segmenter = scene_segmenter(load_scene_net())
    return Segmenter(
        segmenter.model,
        crf=DenseCRF(iterations=2),
        class_names=CLASS_NAMES,
        preprocess=replace(segmenter.preprocess, size=64),
    )


def measured(segmenter, collection, protocol="detected", **options):
    return evaluate(segmenter, collection, protocol, progress=False, **options)


def same(first, second):
    """Check that two evaluations are equal, including their settings."""
    assert torch.equal(first.unrefined.counts, second.unrefined.counts)
    assert torch.equal(first.refined.counts, second.refined.counts)
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.present, second.present)
    assert first.images == second.images
    assert first.skipped == second.skipped
    assert first.nothing_detected == second.nothing_detected
    assert first.settings == second.settings
    return True


def counted_by_hand(segmenter, collection, known):
    """Compute the IoU of each label before and after the CRF from sets of pixels, image by image."""
    labels = 1 + len(CLASS_NAMES)
    overlap, union = np.zeros((2, labels)), np.zeros((2, labels))
    for item in collection:
        result = segmenter.segment(item.path, item.classes if known else None)
        before = np.array([0, *(c + 1 for c in result.classes)])[result.unrefined.numpy().argmax(axis=0)]
        truth = np.asarray(Image.open(item.mask))
        for step, predicted in enumerate((before, result.labels.numpy())):
            for label in range(labels):
                ours, theirs = (predicted == label) & (truth != 255), truth == label
                overlap[step, label] += (ours & theirs).sum()
                union[step, label] += (ours | theirs).sum()
    with np.errstate(invalid="ignore"):
        return overlap / union


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equals_counting_by_hand(segmenter, collection, protocol):
    evaluation = measured(segmenter, collection, protocol, batch_size=1)
    expected = counted_by_hand(segmenter, collection, known=protocol == "known")
    for confusion, iou in zip((evaluation.unrefined, evaluation.refined), expected, strict=True):
        assert confusion.iou.numpy() == pytest.approx(iou, abs=1e-12, nan_ok=True)
        assert confusion.mean_iou == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert evaluation.refined.mean_iou > 0.2
    assert not torch.equal(evaluation.unrefined.counts, evaluation.refined.counts)
    assert evaluation.images == tuple(item.name for item in collection)
    assert evaluation.protocol is protocol
    void = sum(4 * Image.open(item.mask).width for item in collection)
    pixels = sum(np.prod(Image.open(item.mask).size) for item in collection)
    assert evaluation.refined.counts.sum() == evaluation.unrefined.counts.sum() == pixels - void


def test_the_batch_size_changes_little(segmenter, collection):
    alone, together = (measured(segmenter, collection, batch_size=size) for size in (1, 3))
    assert (alone.refined.counts - together.refined.counts).abs().sum() <= 0.001 * alone.refined.counts.sum()
    torch.testing.assert_close(alone.scores, together.scores, atol=1e-6, rtol=0)


def test_the_scores_are_the_classifiers(segmenter, collection):
    evaluation = measured(segmenter, collection)
    x = torch.stack([segmenter.preprocess(Image.open(p.path).convert("RGB")).tensor for p in collection])
    with torch.no_grad():
        expected = segmenter.model(x).amax(dim=(2, 3)).sigmoid().double()
    torch.testing.assert_close(evaluation.scores, expected, atol=1e-5, rtol=0)
    assert torch.equal(evaluation.present, collection.presence())
    assert evaluation.mean_average_precision == pytest.approx(mean_average_precision(expected, collection.presence()))


def test_the_protocols_differ(segmenter, collection):
    detected = measured(segmenter, collection, "detected")
    # With wrong image-level labels, the segmenter finds the wrong classes.
    lies = replace(collection, images=tuple(replace(p, classes=(0,)) for p in collection))
    known = measured(segmenter, lies, "known")
    assert set(known.refined.counts.sum(dim=0).nonzero()[:, 0].tolist()) <= {0, 1}
    assert len(detected.refined.counts.sum(dim=0).nonzero()) > 2
    same(detected, replace(measured(segmenter, lies, "detected"), present=detected.present))


class Silent(nn.Module):
    """Scores of the scene network, so low that no class is ever detected."""

    def __init__(self):
        super().__init__()
        self.network = load_scene_net()

    def forward(self, x):
        return self.network(x) - 1000


def test_images_in_which_nothing_is_detected_are_named(collection, segmenter):
    silent = Segmenter(Silent(), crf=None, class_names=CLASS_NAMES, preprocess=segmenter.preprocess)
    detected = measured(silent, collection)
    assert detected.nothing_detected == detected.images
    assert measured(silent, collection, "known").nothing_detected == ()
    assert torch.equal(detected.unrefined.counts, detected.refined.counts), "there is no CRF"


def damage_image(item):
    item.path.write_bytes(item.path.read_bytes()[:900])
    return item, item.path.name


def harm_mask(item):
    item.mask.write_bytes(item.mask.read_bytes()[:100])
    return item, item.mask.name


def shrink_mask(item):
    Image.open(item.mask).resize((20, 30), Image.Resampling.NEAREST).save(item.mask)
    return item, "20 x 30"


def remove_mask(item):
    item.mask.unlink()
    return item, "no such file"


def color_mask(item):
    Image.open(item.mask).convert("RGB").save(item.mask)
    return item, "RGB"


def strange_label(item):
    labels = np.array(Image.open(item.mask))
    labels[10, 10] = len(CLASS_NAMES) + 1
    label_image(labels).save(item.mask)
    return item, f"got {len(CLASS_NAMES) + 1}"


def forget_classes(item):
    return replace(item, classes=()), "no image-level label"


@pytest.mark.parametrize(
    "harm", [damage_image, harm_mask, shrink_mask, remove_mask, color_mask, strange_label, forget_classes]
)
def test_a_bad_file_is_named_and_not_counted(segmenter, collection, harm, caplog):
    bad = 3
    others = [p for i, p in enumerate(collection) if i != bad]
    expected = measured(segmenter, replace(collection, images=tuple(others)), "known", batch_size=1)
    item, reason = harm(collection.images[bad])
    harmed = (*others[:bad], item, *others[bad:])
    with caplog.at_level(logging.WARNING):
        evaluation = measured(segmenter, replace(collection, images=harmed), "known", batch_size=1)
    assert list(evaluation.skipped) == ["scene 3"]
    assert reason in evaluation.skipped["scene 3"]
    assert "scene 3 is skipped" in caplog.text
    same(replace(evaluation, skipped={}), expected)


def test_a_bad_file_among_a_batch(segmenter, collection):
    damage_image(collection.images[1])
    evaluation = measured(segmenter, collection, batch_size=4)
    assert list(evaluation.skipped) == ["scene 1"]
    assert evaluation.images == tuple(f"scene {i}" for i in (0, 2, 3, 4, 5, 6))
    assert torch.equal(evaluation.present, collection.presence()[[0, 2, 3, 4, 5, 6]])


def test_only_unreadable_files(segmenter, collection):
    for item in collection:
        damage_image(item)
    evaluation = measured(segmenter, collection)
    assert len(evaluation.skipped) == COUNT
    assert evaluation.images == ()
    assert math.isnan(evaluation.refined.mean_iou)
    assert math.isnan(evaluation.mean_average_precision)


class Interrupted(Segmenter):
    """A segmenter that is interrupted at a batch."""

    left = 0

    def attribute_batch(self, *arguments, **options):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().attribute_batch(*arguments, **options)


def interrupted(segmenter, after):
    parts = {name: getattr(segmenter, name) for name in ("saliency", "crf", "class_names", "preprocess")}
    other = Interrupted(segmenter.model, **parts)
    other.left = after
    return other


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_evaluation_resumes(segmenter, collection, tmp_path, after):
    damage_image(collection.images[1])
    expected = measured(segmenter, collection, batch_size=3)
    folder = tmp_path / "deep" / "run"
    with pytest.raises(KeyboardInterrupt):
        measured(interrupted(segmenter, after), collection, batch_size=3, folder=folder)
    assert len(rows_of(folder)) == 3 * after
    rest = interrupted(segmenter, 3 - after)
    assert same(measured(rest, collection, batch_size=3, folder=folder), expected)
    assert rest.left == 0
    # Now nothing is left to compute.
    assert same(measured(interrupted(segmenter, 0), collection, batch_size=3, folder=folder), expected)


def rows_of(folder):
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_files_are_read_and_pixels_counted_in_other_threads(segmenter, collection, monkeypatch):
    expected = measured(segmenter, collection)
    threads = {"read_with_mask": set(), "_count_pixels": set()}
    for name, found in threads.items():
        original = getattr(protocols, name)

        def noted(*arguments, original=original, found=found, **options):
            found.add(threading.current_thread())
            return original(*arguments, **options)

        monkeypatch.setattr(protocols, name, noted)
    # As with a GPU; with a CPU, everything runs in one thread.
    monkeypatch.setattr(type(segmenter), "num_readers", 2)
    assert same(measured(segmenter, collection), expected)
    assert threading.main_thread() not in threads["read_with_mask"] | threads["_count_pixels"]
    assert len(threads["_count_pixels"]) == 1


def test_rows_that_cannot_be_written_leave_no_thread(segmenter, collection, tmp_path, monkeypatch):
    def fail(path, rows):
        assert threading.active_count() > before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(protocols, "append_rows", fail)
    monkeypatch.setattr(type(segmenter), "num_readers", 2)
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left") as caught:
        measured(segmenter, collection, batch_size=2, folder=tmp_path)
    assert threading.active_count() == before, f"although {caught.value!r} is alive"


def test_rows_that_were_cut_anywhere_resume(segmenter, collection, tmp_path):
    expected = measured(segmenter, collection, batch_size=2, folder=tmp_path)
    path = tmp_path / "rows.jsonl"
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, ends[0], ends[0] + 40, ends[1] - 1, ends[1], ends[-1] - 1, ends[-2], ends[-1]):
        path.write_bytes(whole[:cut])
        assert same(measured(segmenter, collection, batch_size=2, folder=tmp_path), expected)
        assert path.read_bytes() == whole


def test_other_settings_are_refused_or_overwrite(segmenter, collection, tmp_path):
    measured(segmenter, collection, folder=tmp_path)
    before = rows_of(tmp_path)
    weaker = Segmenter(
        segmenter.model, crf=DenseCRF(iterations=5), class_names=CLASS_NAMES, preprocess=segmenter.preprocess
    )
    network = load_scene_net()
    with torch.no_grad():
        network.classifier[4].bias[0] += 1e-3
    trained = Segmenter(network, crf=segmenter.crf, class_names=CLASS_NAMES, preprocess=segmenter.preprocess)
    relabeled = replace(collection.images[0], classes=(0,))
    few = replace(collection, images=collection.images[:3])
    for arguments, options, difference in (
        ((weaker, collection), {}, r"crf.iterations \(2 before, 5 now\)\. Run with"),
        ((trained, collection), {}, r"parameters \([0-9a-f]+ before, [0-9a-f]+ now\)\. Run with"),
        ((segmenter, collection, "known"), {}, r"protocol \(detected before, known now\)\. Run with"),
        ((segmenter, collection), {"batch_size": 2}, r"batch_size \(4 before, 2 now\)\. Run with"),
        ((segmenter, few), {}, r"num_images \(7 before, 3"),
        ((segmenter, replace(collection, images=(relabeled, *collection.images[1:]))), {}, "image-level labels"),
    ):
        with pytest.raises(ValueError, match=rf"holds an evaluation with other settings: .*{difference}"):
            measured(*arguments, folder=tmp_path, **options)
    assert rows_of(tmp_path) == before
    assert same(measured(segmenter, few, folder=tmp_path, overwrite=True), measured(segmenter, few))
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda rows: b"a diary\nwith two lines\n", "line 1: damaged"),
        (lambda rows: b"[1]\n", "line 1: damaged"),
        (lambda rows: b"{}\n", "line 1: damaged"),
        (lambda rows: b'{"name": "scene 0", "reason": "b", "scores": []}\n', "line 1: damaged"),
        (lambda rows: rows[0] + b"{'half'\n" + rows[2], "line 2: damaged"),
        (lambda rows: rows[1] + rows[0], "not those of the collection, in order"),
    ],
)
def test_damaged_rows_are_named_and_kept(segmenter, collection, tmp_path, content, message):
    few = replace(collection, images=collection.images[:3])
    measured(segmenter, few, folder=tmp_path)
    path = tmp_path / "rows.jsonl"
    damaged = content(path.read_bytes().splitlines(keepends=True))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=message):
        measured(segmenter, few, folder=tmp_path)
    assert path.read_bytes() == damaged


def test_bad_arguments(segmenter, collection):
    first, *others = collection.images
    named = Segmenter(segmenter.model, class_names=CLASS_NAMES[::-1])
    unnamed = Segmenter(segmenter.model)
    many = tuple(map(str, range(255)))
    crowd = Segmenter(segmenter.model, class_names=many)
    unmasked = replace(collection, images=(replace(first, mask=None), *others))
    for arguments, options, message in (
        ((segmenter, Collection(CLASS_NAMES, ())), {}, "the collection is empty"),
        ((segmenter, unmasked), {}, "1 of 7 have none, such as scene 0"),
        ((named, collection), {}, "class names must be those of the collection"),
        ((unnamed, collection), {}, "got none and 8"),
        ((crowd, replace(collection, class_names=many)), {}, "at most 254 classes, got 255"),
        ((segmenter, collection, "guessed"), {}, "protocol must be 'detected' or 'known', got 'guessed'"),
        ((segmenter, collection), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            measured(*arguments, **options)


def test_the_digest_depends_on_names_types_and_values():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = parameters_digest(network)
    assert parameters_digest(network) == before
    for tensor in (network[0].weight, network[1].running_mean, network[1].num_batches_tracked):
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor += 1
        assert parameters_digest(network) != before
        with torch.no_grad():
            tensor.copy_(kept)
    assert parameters_digest(network) == before
    assert parameters_digest(network.half()) != before
    assert len(parameters_digest(nn.Identity())) == 64


def test_the_environment(tmp_path, monkeypatch):
    import subprocess

    import dcsm_attr

    measured = run_environment("a command")
    assert measured["command"] == "a command"
    assert measured["torch"] == torch.__version__
    monkeypatch.setattr(dcsm_attr, "__file__", str(tmp_path / "lib" / "dcsm_attr" / "__init__.py"))
    (tmp_path / "lib" / "dcsm_attr").mkdir(parents=True)

    def commit():
        return run_environment("a command")["commit"]

    def git(*arguments, folder):
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *author, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit() is None, "no repository"
    git("init", "-q", folder=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "a", folder=tmp_path)
    assert commit() is None, "installed inside of some other repository"
    git("init", "-q", folder=tmp_path / "lib")
    assert commit() is None, "nothing was committed"
    git("commit", "-q", "--allow-empty", "-m", "b", folder=tmp_path / "lib")
    assert commit() == git("rev-parse", "--short", "HEAD", folder=tmp_path / "lib")
    monkeypatch.setenv("PATH", "")
    assert commit() is None, "no git"


@pytest.fixture
def voc(tmp_path, small_canvas):
    """A VOC folder of four scenes, whose classes take VOC's first names, and a network that sees two everywhere."""
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lines = ["id,split,labels"]
    for i in range(4):
        scene = generate_scene(i, seed=6, size=40)
        Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(root / "JPEGImages" / f"s{i}.jpg")
        label_image(scene.labels.numpy()).save(root / "SegmentationClass" / f"s{i}.png")
        lines.append(f"s{i},val,{' '.join(VOC_CLASSES[c] for c in scene.present.nonzero()[:, 0].tolist())}")
    (root / "image_labels.csv").write_text("\n".join(lines) + "\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("".join(f"s{i}\n" for i in range(4)))
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=len(VOC_CLASSES))
    with torch.no_grad():
        network.classifier[1].bias.fill_(-10)[:2] = 10
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    return root


def run(voc, *arguments):
    app = typer.Typer()
    app.command()(evaluate_command)
    options = ["--model", "squeezenet1_1", "--weights", voc.parent / "net.safetensors", "--device", "cpu"]
    return CliRunner().invoke(app, [str(argument) for argument in (voc, *options, *arguments)])


def test_the_command(voc, tmp_path):
    output = tmp_path / "out"
    result = run(voc, "--protocol", "both", "--count", 2, "--output", output)
    assert result.exit_code == 0, result.output
    content = json.loads((output / "evaluation.json").read_text())
    assert [one["protocol"] for one in content["evaluations"]] == ["detected", "known"]
    assert content["data"].startswith("Split 'val' of a VOC folder: 2 of its 4 images. This split of VOC 2012 has")
    assert "--weights=net.safetensors --model=squeezenet1_1 --class-names=voc" in content["measured"]["command"]
    assert str(tmp_path) not in (output / "evaluation.md").read_text()
    for one in content["evaluations"]:
        assert len(one["after the CRF"]["IoU"]) == 21
        assert one["settings"]["saliency"]["activation"] == "sigmoid"
        percent = f"{100 * one['after the CRF']['mean IoU']:.1f} after the CRF"
        assert percent in result.output
    names = [row["name"] for row in rows_of(output / "known")]
    assert names == ["s0", "s2"], "evenly spaced"


def test_a_trained_classifier_brings_its_own_model(voc, tmp_path):
    architecture = Architecture("squeezenet1_1", len(VOC_CLASSES), head="linear")
    classifier = build_classifier(architecture, None, VOC_CLASSES)
    save_network(classifier, tmp_path / "best.safetensors")
    options = ["--protocol", "known", "--count", 1, "--weights", tmp_path / "best.safetensors", "--model", "vgg16"]
    result = run(voc, *options, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    (one,) = content["evaluations"]
    assert one["setting"] == "best"
    assert one["settings"]["parameters"] == parameters_digest(classifier.network)
    assert "vgg16" not in content["measured"]["command"]


def test_the_command_resumes_unless_told_to_overwrite(voc, tmp_path):
    output = tmp_path / "out"
    assert run(voc, "--output", output, "--count", 2).exit_code == 0
    state = output / "detected" / "rows.jsonl"
    before, report = state.read_bytes(), (output / "evaluation.json").read_bytes()
    refused = run(voc, "--output", output)
    assert "num_images (2 before, 4 now)" in str(refused.exception)
    # Were they read again, they would be skipped now.
    for name in ("s0", "s2"):
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    assert run(voc, "--output", output, "--count", 2).exit_code == 0
    assert state.read_bytes() == before
    assert (output / "evaluation.json").read_bytes() == report
    assert run(voc, "--output", output, "--count", 2, "--overwrite").exit_code == 1
    assert state.read_bytes() != before


def test_the_command_names_bad_images(voc, tmp_path):
    item = voc / "JPEGImages" / "s2.jpg"
    item.write_bytes(item.read_bytes()[:300])
    result = run(voc, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 images were skipped" in result.output
    assert "s2.jpg" in result.output
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["evaluations"][0]["images"] == 3
    assert list(content["evaluations"][0]["skipped"]) == ["s2"]


def test_the_commands_help_teaches_by_example(voc):
    assert "dcsm-attr evaluate VOCdevkit/VOC2012" in " ".join(run(voc, "--help").output.split())


def test_a_real_voc_folder(shared, tmp_path, small_canvas):
    root = shared / "data" / "voc2012-subset"
    if not root.is_dir():
        pytest.skip("needs a folder of PASCAL VOC beside the images")
    network = torchvision.models.squeezenet1_1(weights=None, num_classes=len(VOC_CLASSES))
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    app = typer.Typer()
    app.command()(evaluate_command)
    weights = tmp_path / "net.safetensors"
    options = f"--model squeezenet1_1 --weights {weights} --protocol known --count 3 --device cpu --output {tmp_path}"
    result = CliRunner().invoke(app, [str(root), *options.split()])
    assert result.exit_code == 0, result.output
    lines = rows_of(tmp_path / "known")
    listed = (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert [line["name"] for line in lines] == [listed[i * len(listed) // 3] for i in range(3)]
    for line in lines:
        truth = np.asarray(Image.open(root / "SegmentationClass" / f"{line['name']}.png"))
        assert np.array_equal(np.sum(line["refined"], axis=1), np.bincount(truth[truth != VOID], minlength=21))


def test_coverage_mistaken_and_spilled_by_hand():
    counts = torch.tensor([[50, 6, 4], [5, 12, 3], [10, 1, 9]])
    confusion = Confusion(counts)
    assert confusion.coverage == pytest.approx((12 + 3 + 1 + 9) / (5 + 12 + 3 + 10 + 1 + 9))
    assert confusion.mistaken == pytest.approx((3 + 1) / 25)
    assert confusion.spilled == pytest.approx((6 + 4) / (6 + 4 + 25))
    nothing = Confusion(torch.tensor([[7, 0], [0, 0]]))
    assert all(math.isnan(value) for value in (nothing.coverage, nothing.mistaken, nothing.spilled))

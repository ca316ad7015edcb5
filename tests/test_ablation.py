"""Ablations: equal to evaluating each method, gradients computed once, resumed, bad files."""

import functools
import json
import logging
import shutil
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_evaluation import damage_image, forget_classes, harm_mask, remove_mask, shrink_mask, write_scene

import benchmarks.ablation.measure as measure_module
import dcsm_attr.attribution.layers as layers_module
from benchmarks.ablation.gradients import GradientStore
from benchmarks.ablation.measure import (
    EXPONENTS,
    FURTHER_EXPONENTS,
    CountedCase,
    LabelSettings,
    Sweep,
    from_sparse_counts,
    measure_table,
    to_sparse_counts,
)
from benchmarks.ablation.methods import Method, dcsm, load_case, simonyan
from benchmarks.ablation.report import write_ablation
from benchmarks.ablation.tables import TABLES, Row, Table
from dcsm_attr import DenseCRF, DistinctClassSaliency, Segmenter, Simonyan
from dcsm_attr.attribution import dcsm as dcsm_module
from dcsm_attr.attribution import simonyan as simonyan_module
from dcsm_attr.attribution.layers import default_layers
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.scenes import CLASS_NAMES
from dcsm_attr.evaluation.evaluate import SkippedImage, append_rows, evaluate, read_rows
from dcsm_attr.evaluation.metrics import mean_iou
from dcsm_attr.evaluation.result import PROTOCOLS
from dcsm_attr.models.checkpoint import Architecture, build_classifier

CRF = DenseCRF(iterations=1)
COUNT = 4


def built(seed=3):
    """Random weights, of which about half of the classes are detected."""
    torch.manual_seed(seed)
    made = build_classifier(
        Architecture("squeezenet1_1", len(CLASS_NAMES), "features.6", "rectified"),
        None,
        CLASS_NAMES,
        Preprocess(size=64),
    )
    last = made.network.head[-1]
    with torch.no_grad():
        last.weight.mul_(3000)
        last.bias.zero_()
    made.network.eval()
    return made


@pytest.fixture(scope="module", autouse=True)
def probed_once():
    """Find the layers of each network once: half of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers_module, "layer_blocks", functools.cache(layers_module.layer_blocks))
        yield


@pytest.fixture(scope="module")
def classifier():
    return built()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Images smaller than the canvas, as large as it, and larger."""
    folder = tmp_path_factory.mktemp("scenes")
    return Collection(CLASS_NAMES, tuple(write_scene(folder, i, (48, 64, 80)[i % 3]) for i in range(COUNT + 2)))


@pytest.fixture(scope="module")
def collection(scenes):
    return replace(scenes, images=scenes.images[:COUNT])


@pytest.fixture(scope="module")
def background(scenes):
    return replace(scenes, images=scenes.images[COUNT:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of gradients and counts that tests share, as tables do."""
    return tmp_path_factory.mktemp("ablation")


def table_of(*methods):
    return Table("A title", "which", tuple(Row("series", method.name, method) for method in methods))


def measured(table, classifier, background, collection, folder, protocol="known"):
    return measure_table(table, classifier, background, collection, protocol, folder, crf=CRF, progress=False)


def segmenter(classifier, saliency, exponent=1.0):
    return Segmenter(
        classifier.network,
        saliency=saliency,
        crf=CRF,
        class_names=classifier.class_names,
        preprocess=classifier.preprocess,
        background_exponent=exponent,
    )


def copied(collection, folder):
    """Copy the files of a collection, so that a test may damage them."""
    folder.mkdir()
    return replace(
        collection,
        images=tuple(
            replace(p, path=shutil.copy(p.path, folder / p.path.name), mask=shutil.copy(p.mask, folder / p.mask.name))
            for p in collection
        ),
    )


@pytest.fixture
def passes(monkeypatch):
    """One entry per forward and backward pass of the network."""
    taken = []
    for module in (dcsm_module, simonyan_module):
        original = module.run_forward
        monkeypatch.setattr(
            module, "run_forward", lambda *given, f=original, **named: taken.append(1) or f(*given, **named)
        )
    return taken


# Equal to evaluate


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_equal_evaluate_with_each_method(classifier, background, collection, folder, protocol):
    network = classifier.network
    layers = default_layers(network)
    methods = {
        dcsm(classifier): DistinctClassSaliency(network),
        dcsm(classifier, "DCSM, no subtraction", subtract=False, min_candidates=1): DistinctClassSaliency(
            network, subtract=False, min_candidates=1
        ),
        dcsm(classifier, "DCSM, plain", ("plain",), guided=False): DistinctClassSaliency(network, guided=False),
        simonyan(classifier, 8): Simonyan(network),
    }
    if protocol == "known":
        # The release takes its best classes for detected.
        methods[dcsm(classifier, "caffe", ("caffe",), variant="caffe")] = DistinctClassSaliency(
            network, variant="caffe"
        )
    measurement = measured(table_of(*methods), classifier, background, collection, folder, protocol)
    assert measurement.result.num_images == COUNT
    for method, saliency in methods.items():
        backgrounds = [(1.0, False)]
        if method.name == "DCSM":
            backgrounds.append((measurement.exponents[method.name], True))
        for exponent, own_background in backgrounds:
            expected = evaluate(
                segmenter(classifier, saliency, exponent), collection, protocol, batch_size=1, progress=False
            )
            before, after = (
                measurement.confusion(method, refined=refined, own_background=own_background)
                for refined in (False, True)
            )
            assert torch.equal(before.counts, expected.unrefined.counts), method.name
            # Together, rounding differs from that of a single call.
            assert (after.counts - expected.refined.counts).abs().sum() <= 4, method.name
            assert before.counts.sum() == after.counts.sum() == expected.refined.counts.sum()
            assert not torch.equal(before.counts, after.counts)
    if protocol == "detected":
        assert len(expected.nothing_detected) < COUNT, "classes are detected"
    assert layers == list(DistinctClassSaliency(network).layers)


def test_without_a_detected_class_the_best_one_is_labeled(background, collection, tmp_path):
    silent = built()
    with torch.no_grad():
        silent.network.head[-1].bias.fill_(-1000)
    few = replace(collection, images=collection.images[:2])
    ours = measured(table_of(simonyan(silent, 8)), silent, background, few, tmp_path, "detected")
    expected = evaluate(segmenter(silent, Simonyan(silent.network)), few, "detected", batch_size=1, progress=False)
    assert len(expected.nothing_detected) == 2
    found = ours.confusion(ours.table.rows[0].method, refined=False, own_background=False)
    assert torch.equal(found.counts, expected.unrefined.counts)


def test_a_method_that_gives_labels_has_one_confusion(classifier, background, collection, folder):
    # The left half of each image is its first class, the upper right quarter its last.
    def labels(case):
        height, width = case.prepared.pixels.shape[1:]
        found = torch.zeros(height, width, dtype=torch.int64)
        found[:, : width // 2] = 1 + case.classes.index(min(case.classes))
        found[: height // 2, width // 2 :] = 1 + case.classes.index(max(case.classes))
        return found

    method = Method("halves", labels=labels)
    measurement = measured(table_of(method), classifier, background, collection, folder)
    expected = torch.zeros(9, 9, dtype=torch.int64)
    for item in collection:
        truth = np.asarray(Image.open(item.mask)).astype(int)
        side = len(truth)
        predicted = np.zeros_like(truth)
        predicted[:, : side // 2] = 1 + item.classes[0]
        predicted[: side // 2, side // 2 :] = 1 + item.classes[-1]
        for true, shown in zip(truth.ravel(), predicted.ravel(), strict=True):
            if true != 255:
                expected[true, shown] += 1
    for own in (True, False):
        assert torch.equal(measurement.confusion(method, refined=True, own_background=own).counts, expected)
        assert measurement.confusion(method, refined=False, own_background=own) is None
    assert measurement.exponents == {}


def seen_on_canvas(classifier, saliency, collection):
    """Return maps, their labels, mask and pixels per image, at its size on the canvas."""
    seen = []
    for item in collection:
        prepared = classifier.preprocess(Image.open(item.path).convert("RGB"))
        height, width = prepared.pixels.shape[1:]
        truth = np.asarray(Image.open(item.mask).resize((width, height), Image.Resampling.NEAREST))
        found = saliency.class_maps(prepared.tensor[None], [item.classes])
        maps = prepared.crop(found.maps[0, found.detected[0]])
        names = np.array([0, *(1 + c for c in found.classes[0][found.detected[0]].tolist())])
        seen.append((maps, names, truth, prepared.pixels))
    return seen


def iou_on_canvas(seen, exponent, crf):
    """Mean IoU with a background, after a CRF if there is one, from sets of pixels."""
    overlap, union = np.zeros(9), np.zeros(9)
    for maps, names, truth, pixels in seen:
        labels = torch.cat([(1 - maps.amax(0, keepdim=True)) ** exponent, maps])
        values = labels / labels.sum(0)
        if crf is not None:
            values = crf(values[None], pixels[None])[0]
        predicted = names[values.numpy().argmax(axis=0)]
        for label in range(9):
            ours, theirs = (predicted == label) & (truth != 255), truth == label
            overlap[label] += (ours & theirs).sum()
            union[label] += (ours | theirs).sum()
    return (overlap[union > 0] / union[union > 0]).mean()


def test_the_chosen_background_is_the_best_one(classifier, background, collection, folder):
    strong = DenseCRF(iterations=1, bilateral_weight=10, gaussian_xy=2)
    methods = {
        dcsm(classifier): DistinctClassSaliency(classifier.network),
        simonyan(classifier, 8): Simonyan(classifier.network),
        simonyan(classifier, 1): Simonyan(classifier.network, alpha=1),
        replace(dcsm(classifier, "with its own CRF", alpha=1), crf=strong): DistinctClassSaliency(
            classifier.network, alpha=1
        ),
    }
    few = replace(collection, images=collection.images[:1])
    measurement = measured(table_of(*methods), classifier, background, few, folder / "one")
    assert {Image.open(p.path).width for p in background} != {64}, "not all are as large as the canvas"
    for method, saliency in methods.items():
        found = {}
        seen = seen_on_canvas(classifier, saliency, background)
        exponents = list(EXPONENTS)
        for exponent in exponents:
            found[exponent] = iou_on_canvas(seen, exponent, method.crf)
            if exponent == EXPONENTS[-1]:
                exponents += FURTHER_EXPONENTS.get(max(found, key=found.get), ())
        counted = measurement.tuning_result.confusions[method.name]
        assert {settings.refined for settings in counted} == {method.crf is not None}
        assert {settings.exponent: one.mean_iou for settings, one in counted.items()} == pytest.approx(found, abs=1e-3)
        assert measurement.exponents[method.name] == max(found, key=found.get)
    assert len(set(measurement.exponents.values())) > 1


def maps_from_the_mask(heights, elsewhere):
    """A method with correct maps: rising values in the mask of each class, low elsewhere."""

    def maps_of(case):
        maps = torch.full((len(case.classes), 64, 64), elsewhere)
        height, width = case.prepared.pixels.shape[1:]
        mask = torch.nn.functional.interpolate(case.mask[None, None].float(), (height, width))[0, 0]
        for of_class, c in zip(maps, case.classes, strict=True):
            of_class[:height, :width][mask == 1 + c] = torch.linspace(*heights, int((mask == 1 + c).sum()))
        return maps

    return Method("drawn", maps=maps_of)


@pytest.mark.parametrize(("heights", "elsewhere", "end"), [((0.04, 0.4), 0.01, -1), ((0.85, 1.0), 0.8, 0)])
def test_further_exponents_are_tried_at_an_end(classifier, background, collection, tmp_path, heights, elsewhere, end):
    method = maps_from_the_mask(heights, elsewhere)
    measurement = measured(table_of(method), classifier, background, collection, tmp_path)
    counted = measurement.tuning_result.confusions["drawn"]
    further = FURTHER_EXPONENTS[EXPONENTS[end]]
    assert {settings.exponent for settings in counted} == {*EXPONENTS, *further}
    assert measurement.exponents["drawn"] in further
    chosen = LabelSettings(measurement.exponents["drawn"], refined=False)
    assert counted[chosen].mean_iou > counted[LabelSettings(EXPONENTS[end], refined=False)].mean_iou


def test_an_end_that_remains_the_best_is_chosen(classifier, background, collection, tmp_path):
    method = maps_from_the_mask((0.155, 0.155), 0.01)
    measurement = measured(table_of(method), classifier, background, collection, tmp_path)
    counted = measurement.tuning_result.confusions["drawn"]
    assert {settings.exponent for settings in counted} == {*EXPONENTS, *FURTHER_EXPONENTS[EXPONENTS[-1]]}
    assert measurement.exponents["drawn"] == EXPONENTS[-1]
    assert measurement.confusion(method, refined=False, own_background=True).mean_iou > 0.9


def test_of_equal_backgrounds_the_smallest_exponent_is_chosen(classifier, background, collection, tmp_path):
    nowhere = Method("nowhere", maps=lambda case: torch.zeros(len(case.classes), 64, 64))
    measurement = measured(table_of(nowhere), classifier, background, collection, tmp_path)
    assert measurement.exponents == {"nowhere": min(FURTHER_EXPONENTS[EXPONENTS[0]])}


# The tables

LABELS = {
    "alpha": {"DCSM": ["1", "2", "3", "5", "8"], "Simonyan": ["1", "3", "5", "8", "9", "12"]},
    "layers": {"single block": ["1", "2"], "combination": ["1+2"]},
    # Of a canvas of 64 pixels, at 0.6, 0.8, 1, 1.2, 1.4.
    "size": {
        "single size": ["38", "51", "64", "77", "90"],
        "combination": ["38+51", "51+64", "64+77", "38+51+64", "51+64+77", "64+77+90", "38+51+64+77+90"],
    },
    "candidates": {"DCSM": ["0", "1", "2", "3", "4", "5", "10", "15"]},
    "rule": {"N = 3": ["plain", "guided"], "no subtraction": ["plain", "guided"]},
    "crf": {"DCSM": ["N = 3", "no subtraction"], "Simonyan": ["alpha 8"]},
    "variant": {"variant": ["paper", "matconvnet", "caffe"]},
    "fusion": {
        "heat map": ["alone", "x raw guided maps", "x DCSM"],
        "maps alone": ["raw guided maps", "DCSM"],
        "Simonyan": ["with the CRF", "with GrabCut"],
    },
    "peers": {
        "peers": ["CAM", "Grad-CAM", "Grad-CAM++", "LayerCAM", "FinerCAM", "Guided Grad-CAM"],
        "ours": ["DCSM", "no subtraction", "Simonyan, alpha 8"],
    },
    "preset": {
        "the paper's": ["DCSM (N = 3)", "no subtraction", "Simonyan, alpha 8"],
        "among the present": ["all layers", "2 deepest layers", "deepest layer"],
        "heat map": ["alone"],
        "peers": ["CAM", "Grad-CAM", "Grad-CAM++", "LayerCAM", "FinerCAM", "Guided Grad-CAM"],
    },
}
LIBRARIES = {"fusion": ["cv2"], "preset": ["torchcam", "pytorch_grad_cam"], "peers": ["torchcam", "pytorch_grad_cam"]}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_runs(classifier, background, collection, folder, name):
    for library in LIBRARIES.get(name, ()):
        pytest.importorskip(library, reason="the table needs a library of the extras grabcut and peers")
    table = TABLES[name](classifier)
    labels = {}
    for row in table.rows:
        labels.setdefault(row.series, []).append(row.label)
    assert labels == LABELS[name]
    one = replace(collection, images=collection.images[2:3])
    few = replace(background, images=background.images[:1])
    measurement = measured(table, classifier, few, one, folder / "tables")
    figures = Counter()
    for row in table.rows:
        after = measurement.confusion(row.method, refined=True, own_background=True)
        assert 0 < after.mean_iou < 1, row
        figures[row.method.name] = tuple(after.counts.flatten().tolist())
    assert len(set(figures.values())) > 1, "what is compared differs"
    if name in ("alpha", "layers", "size", "candidates", "rule", "crf", "variant"):
        assert "DCSM" in figures, "the paper's settings are among the rows"
    assert {row.method.name for row in table.rows if row.method.labels} == (
        {"Simonyan, GrabCut"} if name == "fusion" else set()
    )


def test_rows_have_the_settings_in_their_labels(classifier, collection, folder):
    settings = {
        ("layers", "1"): {"layer": ["backbone.features.3.squeeze", "backbone.features.4.squeeze"]},
        ("layers", "2"): {"layer": ["backbone.features.6.squeeze", "backbone.features.6.expand1x1"]},
        ("layers", "1+2"): {},
        ("size", "38+51"): {"scales": (0.6, 0.8)},
        ("size", "77"): {"scales": (1.2,)},
        ("size", "38+51+64+77+90"): {"scales": (0.6, 0.8, 1.0, 1.2, 1.4)},
        ("candidates", "0"): {"subtract": False},
        ("candidates", "2"): {"min_candidates": 2},
        ("candidates", "15"): {"min_candidates": 15},
        ("alpha", "5"): {"alpha": 5.0},
        # Its classes are ranked here as those of the others, not by their scores at all scales.
        ("variant", "matconvnet"): {"variant": "matconvnet"},
    }
    store = GradientStore(folder / "gradients", classifier)
    case = load_case(collection.images[2], classifier, store, "known")
    tables = {name: TABLES[name](classifier) for name, _ in settings}
    default = default_layers(classifier.network)
    for (name, label), changed in settings.items():
        (row,) = [row for row in tables[name].rows if row.series != "Simonyan" and row.label == label]
        method = DistinctClassSaliency(classifier.network, **{"layer": default, **changed})
        named = {"candidates": case.candidates(4)} if "variant" in changed else {}
        direct = method.class_maps(
            case.prepared.tensor[None], classes=case.classes, attribute_to_layer_input=True, **named
        )
        slots = [direct.classes[0].tolist().index(c) for c in case.classes]
        assert torch.equal(row.method.maps(case), direct.maps[0, slots]), (name, label)


# Gradients


def test_gradients_are_computed_once(classifier, background, collection, tmp_path, passes):
    first = replace(background, images=background.images[:1])
    second = replace(collection, images=collection.images[:2])

    def taken(table, protocol="known"):
        measured(table, classifier, first, second, tmp_path, protocol)
        count = len(passes)
        passes.clear()
        return count

    crf = TABLES["crf"](classifier)
    num_images = 1 + 2
    # The guided ones at three scales, Simonyan's at one.
    assert taken(crf) == 4 * num_images
    for name in ("crf", "layers", "candidates"):
        assert taken(TABLES[name](classifier)) == 0, name
    assert taken(crf, "detected") == 0, "both protocols share them"
    assert taken(TABLES["rule"](classifier)) == 3 * num_images, "the plain ones alone"
    wide = dcsm(classifier, "wide", ("guided", "outer"), scales=(0.6, 1.0, 1.4))
    assert taken(table_of(wide)) == 2 * num_images, "the outer scales alone"


def test_counts_of_another_table_are_reused(classifier, background, collection, folder, monkeypatch):
    expected = measured(TABLES["crf"](classifier), classifier, background, collection, folder)
    monkeypatch.setattr(measure_module, "load_case", None)
    again = measured(TABLES["crf"](classifier), classifier, background, collection, folder)
    assert_same(again, expected)


def assert_same(first, second):
    assert first.exponents == second.exponents
    for ours, theirs in ((first.tuning_result, second.tuning_result), (first.result, second.result)):
        assert (ours.num_images, ours.skipped) == (theirs.num_images, theirs.skipped)
        assert ours.confusions.keys() == theirs.confusions.keys()
        for name, readings in ours.confusions.items():
            assert readings.keys() == theirs.confusions[name].keys()
            assert all(torch.equal(one.counts, theirs.confusions[name][r].counts) for r, one in readings.items())


@pytest.fixture
def case_of(classifier, collection, tmp_path):
    """Load a case with a new store on the same folder."""

    def opened(number=0, **changes):
        item = replace(collection.images[number], **changes)
        return load_case(item, classifier, GradientStore(tmp_path, classifier), "known")

    return opened


@pytest.mark.parametrize("harm", ["cut", "empty", "text", "other tensors", "other points"])
def test_a_damaged_file_of_gradients_is_replaced(case_of, tmp_path, passes, harm):
    expected = simonyan(built(), 8)
    maps = expected.maps(case_of())
    (path,) = (tmp_path / "images").glob("*.safetensors")
    whole = path.read_bytes()
    passes.clear()
    assert torch.equal(expected.maps(case_of()), maps)
    assert passes == []
    if harm == "other points":
        named = load_file(path)
        save_file({name.replace("images", "elsewhere"): value for name, value in named.items()}, path)
    elif harm == "other tensors":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes({"cut": whole[:-100], "empty": b"", "text": b"no tensors at all"}[harm])
    assert torch.equal(expected.maps(case_of()), maps)
    assert passes == [1]
    assert path.read_bytes() == whole
    assert {p.name for p in path.parent.iterdir()} == {path.name, "settings.json"}


def test_corrected_labels_need_further_gradients(case_of, collection, passes):
    method = simonyan(built(), 8)
    (shown, *_) = collection.images[0].classes
    first = case_of(classes=(shown,))
    method.maps(first)
    other = next(c for c in reversed(first.by_score) if c not in first.required)
    passes.clear()
    assert method.maps(case_of(classes=(shown, other))).shape == (2, 64, 64)
    assert passes == [1]


def test_a_store_with_other_settings_is_rejected(classifier, case_of, tmp_path):
    simonyan(classifier, 8).maps(case_of())
    for other, difference in (
        (built(seed=4), r"parameters \([0-9a-f]+ before, [0-9a-f]+ now\)"),
        (replace(classifier, preprocess=Preprocess(size=72)), r"preprocess\.size \(64 before, 72 now\)"),
        (replace(classifier, pooling="average"), r"pass\.pooling \(max before, average now\)"),
    ):
        with pytest.raises(ValueError, match=rf"images: holds gradients with other settings: .*{difference}.*choose"):
            GradientStore(tmp_path, other).load_or_compute("images", "x", None, [], [])
    (tmp_path / "images" / "settings.json").write_text("{half")
    with pytest.raises(ValueError, match=r"settings\.json: is damaged .*Choose another folder"):
        GradientStore(tmp_path, classifier).load_or_compute("images", "x", None, [], [])


# Interrupted runs


def interrupting(method, after):
    """The method, interrupted at its image number ``after`` from 0."""
    left = [after]

    def maps(case):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return method.maps(case)

    return replace(method, maps=maps)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.jsonl"))}


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_an_interrupted_run_resumes(classifier, background, collection, tmp_path, after, monkeypatch):
    monkeypatch.setattr(measure_module, "FURTHER_EXPONENTS", {})
    methods = [simonyan(classifier, 8), simonyan(classifier, 3)]
    expected = measured(table_of(*methods), classifier, background, collection, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        interrupted = table_of(methods[0], interrupting(methods[1], after))
        measured(interrupted, classifier, background, collection, tmp_path / "cut")
    rows = sum(text.count(b"\n") for text in contents(tmp_path / "cut").values())
    assert rows == 2 * after
    again = measured(table_of(*methods), classifier, background, collection, tmp_path / "cut")
    assert_same(again, expected)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_run_that_was_interrupted_while_writing_resumes(classifier, background, collection, tmp_path, monkeypatch):
    table = table_of(simonyan(classifier, 8), simonyan(classifier, 3), simonyan(classifier, 1))
    expected = measured(table, classifier, background, collection, tmp_path / "whole")
    original, calls = measure_module.append_rows, []

    def failing(path, rows):
        calls.append(1)
        if len(calls) == 3 * len(background) + 5:  # In the middle of an image, of which one method has a line.
            with path.open("a") as file:
                file.write(json.dumps(asdict(rows[0]))[:20])
            raise KeyboardInterrupt
        original(path, rows)

    monkeypatch.setattr(measure_module, "append_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        measured(table, classifier, background, collection, tmp_path / "cut")
    monkeypatch.setattr(measure_module, "append_rows", original)
    assert_same(measured(table, classifier, background, collection, tmp_path / "cut"), expected)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_counts_with_other_settings_have_files_of_their_own(classifier, background, collection, tmp_path):
    table = table_of(simonyan(classifier, 8))
    fewer = replace(collection, images=collection.images[1:])
    settings = {"progress": False}

    def both(folder, items, crf):
        return measure_table(
            table, classifier, background, items, "known", folder, crf=crf, **settings
        ).result.confusions

    crf = DenseCRF(iterations=1)
    both(tmp_path / "shared", collection, crf)
    files = set((tmp_path / "shared" / "counts").rglob("*.jsonl"))
    for items, other in ((fewer, crf), (collection, DenseCRF(iterations=3))):
        found = both(tmp_path / "shared", items, other)
        alone = both(tmp_path / f"alone {len(items)}", items, other)
        assert {k: v.counts.tolist() for k, v in next(iter(found.values())).items()} == {
            k: v.counts.tolist() for k, v in next(iter(alone.values())).items()
        }
    now = set((tmp_path / "shared" / "counts").rglob("*.jsonl"))
    assert files < now, "nothing that was counted is lost"


# Bad files


@pytest.mark.parametrize("harm", [damage_image, harm_mask, remove_mask, shrink_mask, forget_classes])
def test_a_bad_file_is_reported_and_the_others_count(
    classifier, background, collection, folder, tmp_path, harm, caplog
):
    table = table_of(simonyan(classifier, 8))
    mine = copied(collection, tmp_path / "scenes")
    item, reason = harm(mine.images[2])
    harmed = replace(mine, images=(*mine.images[:2], item, *mine.images[3:]))
    others = replace(mine, images=(*mine.images[:2], *mine.images[3:]))
    with caplog.at_level(logging.WARNING):
        found = measured(table, classifier, background, harmed, tmp_path / "harmed")
    expected = measured(table, classifier, background, others, tmp_path / "others")
    assert list(found.result.skipped) == ["scene 2"]
    assert reason in found.result.skipped["scene 2"]
    assert "scene 2 is skipped" in caplog.text
    assert found.result.num_images == COUNT - 1
    for settings, one in expected.result.confusions["Simonyan, alpha 8"].items():
        assert torch.equal(found.result.confusions["Simonyan, alpha 8"][settings].counts, one.counts)
    write_ablation(found, tmp_path, "a", command="c", data="d", about={"class_names": CLASS_NAMES, "figure": "a.png"})
    assert f"- `scene 2`: {found.result.skipped['scene 2']}" in (tmp_path / "a.md").read_text()
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["skipped"] == found.result.skipped
    assert content["images"] == COUNT - 1
    # Nothing is read again.
    again = measured(table, classifier, background, harmed, tmp_path / "harmed")
    assert_same(again, found)


def test_only_bad_files(classifier, background, collection, tmp_path):
    harmed = copied(replace(collection, images=collection.images[:2]), tmp_path / "scenes")
    for item in harmed:
        damage_image(item)
    table = table_of(simonyan(classifier, 8))
    for name, tuning_collection, test_collection in (("first", harmed, collection), ("second", background, harmed)):
        with pytest.raises(ValueError, match=r"none of the 2 images could be measured, such as scene 0: .*0\.png"):
            measured(table, classifier, tuning_collection, test_collection, tmp_path / name)


def test_bad_arguments(classifier, background, collection, tmp_path):
    table = table_of(simonyan(classifier, 8))
    first, *others = collection.images
    unmasked = replace(collection, images=(replace(first, mask=None), *others))
    for bad, message in (
        (Collection(CLASS_NAMES, ()), "the collection is empty"),
        (unmasked, "1 of 4 have none, such as scene 0"),
        (replace(collection, class_names=CLASS_NAMES[::-1]), "class names must be those of the collection"),
    ):
        for tuning_collection, test_collection in ((bad, collection), (background, bad)):
            with pytest.raises(ValueError, match=message):
                measured(table, classifier, tuning_collection, test_collection, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    twins = {simonyan(classifier, 8): [LabelSettings(1.0, False)], simonyan(classifier, 8): [LabelSettings(2.0, False)]}
    sweep = Sweep(classifier, collection, "known", GradientStore(tmp_path, classifier), tmp_path, CRF, False)
    with pytest.raises(ValueError, match="methods must have different names, got Simonyan, alpha 8, Simonyan, alpha 8"):
        sweep.run(twins, "")
    for ways in ({}, {"maps": len, "labels": len}):
        with pytest.raises(ValueError, match="the method 'm' must give either maps or labels"):
            Method("m", **ways)


# Counts


def test_rows_round_trip(tmp_path):
    confusion = torch.tensor([[0, 7, 0], [0, 0, 0], [5, 0, 9]])
    entries = to_sparse_counts(confusion)
    assert entries == [[0, 1, 7], [2, 0, 5], [2, 2, 9]]
    assert torch.equal(from_sparse_counts(entries, 3), confusion)
    rows = [CountedCase("a", {"2.0 crf": entries}), SkippedImage("b", "half a file")]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", CountedCase, ["a", "b", "c"], 1) == rows
    for settings, text in ((LabelSettings(0.5, False), "0.5"), (LabelSettings(16.0, True), "16.0 crf")):
        assert str(settings) == text
        assert LabelSettings.parse(text) == settings


# The report


def rows(text):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [cells for cells in lines if cells[0] != "---"]


def percent(confusion):
    return f"{100 * mean_iou(confusion.counts):.1f}"


def test_the_report(classifier, background, collection, folder, tmp_path):
    table = TABLES["crf"](classifier)
    measurement = measured(table, classifier, background, collection, folder)
    about = {"class_names": CLASS_NAMES, "figure": "crf.png", "network": "squeezenet", "head": None}
    paths = write_ablation(measurement, tmp_path / "deep", "crf", command="measure", data="Scenes.", about=about)
    assert [path.name for path in paths] == ["crf.md", "crf.json", "crf.png"]
    text = paths[0].read_text()
    assert "image-level labels" in text
    assert "![" in text
    assert "(crf.png)" in text
    head, *body = rows(text)
    assert head == [
        "",
        "method",
        "exponent",
        *("Eq. 7, before CRF", "Eq. 7, after CRF", "own background, before CRF", "own background, after CRF"),
        *("coverage", "mistaken", "spilled"),
    ]
    readings = [(False, False), (True, False), (False, True), (True, True)]
    for cells, row in zip(body[:3], table.rows, strict=True):
        figures = [
            percent(measurement.confusion(row.method, refined=refined, own_background=own)) for refined, own in readings
        ]
        exponent = measurement.exponents[row.method.name]
        own = measurement.confusion(row.method, refined=False, own_background=True)
        shares = [f"{100 * share:.0f}" for share in (own.coverage, own.mistaken, own.spilled)]
        assert cells == [row.series, row.label, f"{exponent:g}", *figures, *shares]
    classes = body[3:]
    assert classes[0][0] == "IoU in %"
    assert classes[0][1:3] == ["DCSM, N = 3, before CRF", "DCSM, N = 3, after CRF"]
    of_first = measurement.confusion(table.rows[0].method, refined=False, own_background=True)
    for cells, name, share in zip(classes[1:10], ("background", *CLASS_NAMES), of_first.iou.tolist(), strict=True):
        assert cells[:2] == [name, "-" if share != share else f"{100 * share:.1f}"]
    assert classes[10][:2] == ["**mean**", f"**{percent(of_first)}**"]
    assert ["network", "squeezenet"] in classes
    assert ["head", "none"] in classes
    assert ["command", "measure"] in classes
    content = json.loads(paths[1].read_text())
    assert content["protocol"] == "known"
    assert content["images"] == COUNT
    for reported, row in zip(content["rows"], table.rows, strict=True):
        assert (reported["series"], reported["label"], reported["method"]) == (row.series, row.label, row.method.name)
        for title, (refined, own) in zip(head[3:7], readings, strict=True):
            one = measurement.confusion(row.method, refined=refined, own_background=own)
            assert reported["mean IoU"][title] == pytest.approx(one.mean_iou, abs=1e-5)
            shares = [-1 if share is None else share for share in reported["IoU"][title].values()]
            assert shares == pytest.approx(one.iou.nan_to_num(nan=-1).tolist(), abs=1e-5)
    colors = Image.open(paths[2]).convert("RGB").getcolors(1 << 20)
    assert len(colors) > 10


def test_the_figure_draws_numbers_as_curves_and_names_as_points(classifier, background, collection, folder):
    from benchmarks.ablation.report import ablation_figure

    measurement = measured(TABLES["alpha"](classifier), classifier, background, collection, folder)
    (axes,) = ablation_figure(measurement).axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    places = ["1", "2", "3", "5", "8", "9", "12"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == places
    for series in ("DCSM", "Simonyan"):
        mine = [row for row in measurement.table.rows if row.series == series]
        for refined, name in ((False, "before"), (True, "after")):
            line = drawn.pop(f"{series}, {name} the CRF")
            assert line.get_xdata().tolist() == [places.index(row.label) for row in mine]
            expected = [
                100 * measurement.confusion(row.method, refined=refined, own_background=True).mean_iou for row in mine
            ]
            assert line.get_ydata().tolist() == pytest.approx(expected)
            assert line.get_linestyle() == ("-" if refined else "--")
    assert not drawn
    named = ablation_figure(measured(TABLES["crf"](classifier), classifier, background, collection, folder))
    assert {line.get_linestyle() for line in named.axes[0].get_lines()} == {"None"}

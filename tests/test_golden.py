"""Golden values: what the package computes and writes, as recorded in tests/golden/*.json.

Record them again, only after an intended change of behavior, and look at the difference before committing it:

    python tests/test_golden.py --record

In the environment in which they were recorded (versions, processor, threads) values must be equal bit for bit.
Elsewhere hashes are skipped, floats must be close, and label maps must agree on 99.5 % of their pixels.
"""

import base64
import csv
import hashlib
import json
import math
import platform
import re
import sys
import tempfile
import zlib
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from dcsm_attr.attribution.cam import ClassActivationMaps
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.attribution.fusion import FusedSaliency
from dcsm_attr.attribution.simonyan import Simonyan
from dcsm_attr.cli import app
from dcsm_attr.crf.dense_crf import DenseCRF
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene, write_scene_folder
from dcsm_attr.datasets.voc import voc_collection
from dcsm_attr.demo import SCENE_CANVAS, scene_classifier
from dcsm_attr.models.affinity_net import AffinityNet
from dcsm_attr.models.checkpoint import Architecture, TrainedAffinityNet, TrainedSegmentationNet, build_classifier
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.models.scene_net import MEAN, STD, SceneNet, load_scene_net
from dcsm_attr.models.segmentation_net import SegmentationNet
from dcsm_attr.models.stochastic import FickleSettings
from dcsm_attr.segmentation.presets import build_preset_segmenter
from dcsm_attr.segmentation.segmenter import Segmenter
from dcsm_attr.training.affinity import train_affinity_net
from dcsm_attr.training.classifier import train_classifier
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.optimizer import ClassifierSchedule, Schedule
from dcsm_attr.training.scenes import train_scene_net
from dcsm_attr.training.segmentation import train_segmentation_net

GOLDEN = Path(__file__).parent / "golden"
THREADS, STRIDE = 1, 8
# Outside the recorded environment; a mean IoU moves by more than that when a single pixel flips.
RTOL, ATOL, MIOU_ATOL, EQUAL_PIXELS = 1e-4, 1e-5, 5e-3, 0.995


def environment():
    """What results may depend on to the last bit."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.is_file() else ""
    told = dict(re.findall(r"^(.+?)\s*: *(.*)$", text, re.MULTILINE))
    return {
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow", "matplotlib")},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": f"{told.get('model name', platform.machine())} {told.get('cpu family')}/{told.get('model')}",
        "processor_flags": sha256(told.get("flags", "").encode())[:16],
        "threads": THREADS,
    }


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def array_values(array):
    """Pixels, or numbers; not the bytes of a compressed file."""
    return {"shape": list(array.shape), "sha256": sha256(array.dtype.str.encode() + array.tobytes())}


def packed(array, dtype):
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array, dtype=dtype).tobytes(), 9)).decode()


def unpacked(text, dtype):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def weight_values(state):
    """All tensors of a network, whatever their names and their order."""
    arrays = [tensor.detach().cpu().numpy() for tensor in state.values()]
    hashes = sorted(array_values(array)["sha256"] for array in arrays)
    norm = math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays))
    return {"count": sum(array.size for array in arrays), "norm": norm, "sha256": sha256("".join(hashes).encode())}


def close(found, recorded, where):
    """Whether two values agree in another environment than the recorded one."""
    name = where.rpartition("/")[2]
    if isinstance(recorded, float):
        return math.isclose(found, recorded, rel_tol=RTOL, abs_tol=MIOU_ATOL if "/miou" in where else ATOL)
    if name == "float32":
        one, other = unpacked(found, "<f4"), unpacked(recorded, "<f4")
        return one.shape == other.shape and np.allclose(one, other, rtol=RTOL, atol=ATOL)
    if name == "labels" and isinstance(recorded, str):
        one, other = unpacked(found, np.uint8), unpacked(recorded, np.uint8)
        return one.shape == other.shape and (one == other).mean() >= EQUAL_PIXELS
    # Counts follow from pixels, which are compared by themselves.
    return name in ("sha256", "counts") or found == recorded


def differences(found, recorded, exact, where=""):
    """Where values differ from what was recorded, one line each."""
    if found == recorded or (not exact and type(found) is type(recorded) and close(found, recorded, where)):
        return []
    if isinstance(found, dict) and isinstance(recorded, dict):
        inside = [(key, found.get(key, "(missing)"), recorded.get(key, "(missing)")) for key in {**recorded, **found}]
    elif isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        inside = [(number, *pair) for number, pair in enumerate(zip(found, recorded, strict=True))]
    else:
        return [f"{where}: found {str(found)[:200]}, recorded {str(recorded)[:200]}"]
    return [line for key, one, other in inside for line in differences(one, other, exact, f"{where}/{key}")]


CLASSES = 6
NETWORKS = {
    "squeezenet1_1": lambda: torchvision.models.squeezenet1_1(weights=None, num_classes=CLASSES),
    "resnet18": lambda: torchvision.models.resnet18(weights=None, num_classes=CLASSES),
    "scene_net_linear": lambda: fully_convolutional(SceneNet(CLASSES), CLASSES, cut="features", head="linear"),
}
# Index of the scene, its side, the columns that are kept, and the classes that are known to be there.
INPUTS = {"square": (3, 96, 96, None), "high": (5, 112, 96, [[5, 0, 3]])}
METHODS = {
    **{f"dcsm_{name}": partial(DistinctClassSaliency, variant=name) for name in ("paper", "matconvnet", "caffe")},
    "simonyan": Simonyan,
    "cam": ClassActivationMaps,
    "fused": lambda network: FusedSaliency(ClassActivationMaps(network), DistinctClassSaliency(network)),
}


def class_maps(network, method):
    torch.manual_seed(1)
    saliency, values = METHODS[method](NETWORKS[network]().eval()), {}
    for name, (index, side, columns, known) in INPUTS.items():
        pixels = generate_scene(index, 7, side).image[None, :, :, :columns] / 255
        image = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        found = saliency.class_maps(image, known, raw=True)
        maps = found.maps.numpy()
        values[name] = {
            "sum_min_max": [float(maps.sum(dtype=np.float64)), float(maps.min()), float(maps.max())],
            "float32": packed(maps[..., ::STRIDE, ::STRIDE], "<f4"),
            **array_values(maps),
            "raw": {"sum": float(found.raw.double().sum()), **array_values(found.raw.numpy())},
            **{name: getattr(found, name).tolist() for name in ("classes", "detected", "subtracted", "scores")},
        }
    return values


OF_SCENES = {"class_names": CLASS_NAMES, "preprocess": SCENE_CANVAS}
SEGMENTERS = {
    **{name: partial(build_preset_segmenter, preset=name, **OF_SCENES) for name in ("paper", "tuned")},
    "sharp": partial(Segmenter, crf=DenseCRF(bilateral_weight=4), **OF_SCENES),
    "no_crf": partial(Segmenter, crf=None, **OF_SCENES),
}


def label_maps(name):
    segmenter, values = SEGMENTERS[name](load_scene_net()), {}
    for index in range(3):
        found = segmenter.segment(generate_scene(index, 11).image)
        labels = found.labels.numpy().astype(np.uint8)
        counts = np.bincount(labels.ravel(), minlength=1 + len(CLASS_NAMES)).tolist()
        values[f"scene{index}"] = {"counts": counts, "labels": packed(labels, np.uint8), **array_values(labels)}
    return values


SOLVER = ("adamw", "onecycle", 1e-3, 5.0, 1e-2, 2, 2, 1, (0.9, 1.2))
QUIET = {"workers": 0, "progress": False}


@cache
def workspace():
    """A folder for this process, which is removed at its end, with scenes to learn from."""
    folder = tempfile.TemporaryDirectory(prefix="golden-")
    write_scene_folder(Path(folder.name) / "scenes", 6, seed=3, size=64, progress=False)
    return folder


def logged(path):
    """The numbers of a log, without the one column that is a time."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value) for name, value in row.items() if name != "seconds"} for row in rows]


OBJECTIVES = ("pseudo", "sec", "dsrg")
TRAININGS = ("scene_net", "classifier", "classifier-fickle", "affinity", *(f"segmentation-{o}" for o in OBJECTIVES))
FICKLE = Architecture("squeezenet1_1", len(CLASS_NAMES), "features.4", "fickle", fickle=FickleSettings(3, 0.5))
OWN = Architecture("squeezenet1_1", len(CLASS_NAMES), "features.6", "rectified")


def training(name):
    """Two steps, with a validation after each; masks serve as label maps."""
    torch.manual_seed(5)
    scenes, folder = Path(workspace().name) / "scenes", Path(workspace().name) / name
    kind, _, further = name.partition("-")
    if kind == "scene_net":
        return weight_values(
            train_scene_net(folder.with_suffix(".safetensors"), steps=2, size=64, **QUIET).state_dict()
        )
    collection, masks = voc_collection(scenes, "train", masks=False), scenes / "SegmentationClass"
    settings, base = TrainingSettings(Schedule(*SOLVER), 0, validate_every=1), scene_classifier()
    if kind == "classifier":
        start = build_classifier(FICKLE if further else OWN, None, CLASS_NAMES, Preprocess(size=64))
        settings = TrainingSettings(ClassifierSchedule(*SOLVER, pooling="average"), 0, validate_every=1)
        train_classifier(start, collection, voc_collection(scenes, "val"), folder, settings, **QUIET)
    elif kind == "affinity":
        canvas, network = Preprocess("paper", 64, MEAN, STD), AffinityNet(base.network.backbone)
        start = TrainedAffinityNet(network, base.architecture, canvas)
        train_affinity_net(start, collection, masks, folder, settings, radius=3, **QUIET)
    else:
        canvas, head = Preprocess("caffe", 64, MEAN, STD), ("largefov", None)
        network = SegmentationNet(base.network.backbone, len(CLASS_NAMES), *head)
        start = TrainedSegmentationNet(network, base.architecture, *head, CLASS_NAMES, canvas)
        train_segmentation_net(start, collection, masks, folder, settings, objective=further, **QUIET)
    return {"log": logged(folder / "log.csv"), "weights": weight_values(start.network.state_dict())}


NEW = "--size 64 --model squeezenet1_1 --weights none"
TINY = "--steps 2 --batch-size 2 --workers 0 --device cpu"
# In this order, in one folder; each may use what those before it wrote.
COMMANDS = {
    "scenes": "scenes data --count 4 --size 64 --seed 2",
    "labels": "labels data --split train --split val --output labels.csv",
    "attribute": "attribute data/JPEGImages/000000.jpg --weights demo --device cpu --output attribute",
    "segment": "segment data/JPEGImages/000003.jpg --weights demo --device cpu --output segment",
    "train": f"train data {NEW} --head extended {TINY} --output train",
    "train_fickle": f"train data {NEW} --cut features.4 --head fickle {TINY} --output fickle",
    "evaluate": "evaluate data --weights demo --split train --protocol both --device cpu --output evaluate",
    "seeds": "seeds data --weights demo --device cpu --output seeds",
    "seeds_dcsm": "seeds data --weights demo --method dcsm --preset tuned --device cpu --output seeds-dcsm",
    "ficklenet": "ficklenet data --weights fickle/best.safetensors --samples 4 --device cpu --output ficklenet",
    "affinity": f"affinity data --weights demo --method dcsm {TINY} --output affinity",
    "walk": "segment data/JPEGImages/000001.jpg --weights demo --method fusion --device cpu "
    "--walk affinity/network/affinity_net.safetensors --output walk",
    "train_seg": f"train-seg data --label-maps seeds --loss sec --weights demo --head largefov --output-stride 0 "
    f"--size 64 {TINY} --output train-seg",
    "miou": "miou data affinity/pseudo-labels --split train --output miou.json",
    "pseudo_label": "pseudo-label data --weights demo --maps --overlays 2 --batch-size 2 --device cpu --output pseudo",
    "report": "report pseudo",
    "demo": "demo --scenes 2 --output demo",
}


def numbers_below(value, wanted=False):
    """In order, every number that stands below a key with "IoU" in its name."""
    if isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else [("", one) for one in value]
        return [number for key, one in pairs for number in numbers_below(one, wanted or "iou" in key.lower())]
    return [float(value)] if wanted and isinstance(value, (int, float)) else []


def file_values(path):
    """What a file holds, not how it is packed; of other kinds, only that it is not empty."""
    kind = path.suffix
    if kind in (".png", ".jpg"):
        with Image.open(path) as picture:
            return {"mode": picture.mode, **array_values(np.asarray(picture))}
    if kind == ".npz":
        with np.load(path) as arrays:
            return {name: array_values(arrays[name]) for name in sorted(arrays)}
    if kind == ".safetensors":
        return weight_values(load_file(path))
    if path.name == "log.csv":
        return logged(path)
    if kind in (".csv", ".txt"):
        return {"text_sha256": sha256(path.read_text(encoding="utf-8").encode())}
    if kind == ".jsonl":
        return [sorted(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if kind == ".json":
        # The keys alone, since settings may be renamed; and mean IoUs, for which names do not matter either.
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"keys": sorted(content), "miou": numbers_below(content)}
    return {"empty": not path.stat().st_size}


@cache
def commands():
    """Run all commands, and look after each at the files that were not there before."""
    folder, values, known = Path(workspace().name) / "commands", {}, set()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, line in COMMANDS.items():
            result = CliRunner().invoke(app, line.split())
            files = {path for path in Path().rglob("*") if path.is_file()}
            values[name] = {
                "ended": result.exit_code if result.exception is None else repr(result.exception),
                "files": {path.as_posix(): file_values(path) for path in sorted(files - known)},
            }
            known = files
            if name == "demo":
                printed = re.findall(r"^ +\D+?(\d+\.\d)\b", result.output, re.MULTILINE)
                values[name]["miou"] = [float(number) / 100 for number in printed]
    return values


CASES = {
    "class_maps": {f"{net}-{method}": partial(class_maps, net, method) for net in NETWORKS for method in METHODS},
    "label_maps": {name: partial(label_maps, name) for name in SEGMENTERS},
    "trainings": {name: partial(training, name) for name in TRAININGS},
    "commands": {name: lambda name=name: commands()[name] for name in COMMANDS},
}


@pytest.fixture(autouse=True)
def _recorded_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("section", "case"), [(section, case) for section, cases in CASES.items() for case in cases])
def test_as_recorded(section, case):
    recorded = json.loads((GOLDEN / f"{section}.json").read_text(encoding="utf-8"))
    assert list(recorded["values"]) == list(CASES[section])
    found = json.loads(json.dumps(CASES[section][case]()))
    exact = environment() == recorded["environment"]
    different = differences(found, recorded["values"][case], exact)
    assert not different, "\n".join([f"{'exact' if exact else 'close'} comparison", *different[:20]])


def record():
    torch.set_num_threads(THREADS)
    for section, cases in CASES.items():
        content = {"environment": environment(), "values": {name: found() for name, found in cases.items()}}
        text = json.dumps(content, indent=1, ensure_ascii=False)
        text = re.sub(r"\[[^\[\]{}]*\]", lambda match: re.sub(r"\s+", " ", match[0]), text)
        (GOLDEN / f"{section}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    record()

"""The headings of the troubleshooting page are messages of the code; most of them are provoked here."""

import ast
import errno
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PooledCNN, TinyVGG
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer, squeezenet1_1
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from typer.testing import CliRunner

from benchmarks.ablation.grabcut import grabcut
from benchmarks.peers.methods import import_library
from dcsm_attr import ClassActivationMaps, DenseCRF, DistinctClassSaliency, Segmenter
from dcsm_attr.cli import app
from dcsm_attr.datasets.collection import folder_collection
from dcsm_attr.datasets.masks import read_mask
from dcsm_attr.io import atomic_path
from dcsm_attr.models.weights import load_model, load_weights
from dcsm_attr.pipelines.ray import RayEngine
from dcsm_attr.training.checkpoints import TensorBoardLog
from dcsm_attr.training.data import BatchPlan

ROOT = Path(__file__).parents[1]
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
_FILLED_IN = re.compile(r"\{[^{}]*\}")


def fixed_parts(text):
    return _FILLED_IN.split(text.removesuffix(" …"))


def texts(source):
    """The fixed parts of each string in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield fixed_parts("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield fixed_parts(node.value)


def matches(parts, heading):
    """Whether a string of the code, as its fixed parts, is the message of a heading."""
    *before, last = fixed_parts(heading)
    number = len(before)
    if parts[:number] != before or len(parts) <= number:
        return False
    return parts[number].startswith(last) if heading.endswith(" …") else parts[number:] == [last]


def test_every_heading_is_a_message_of_the_code():
    files = [*(ROOT / "dcsm_attr").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    strings = [parts for path in files for parts in texts(path.read_text(encoding="utf-8"))]
    assert [heading for heading in HEADINGS if not any(matches(parts, heading) for parts in strings)] == []
    assert len(HEADINGS) == len(set(HEADINGS)) > 60


def assert_under(beginning, message):
    """The message has the fixed parts of the heading with this beginning."""
    [heading] = [one for one in HEADINGS if one.startswith(beginning)]
    # Python prepends the number of a system error, and some messages continue after the heading.
    assert re.search(".*".join(map(re.escape, fixed_parts(heading))), message, re.DOTALL), message


def command(*arguments):
    """Run a command line and re-raise its error."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, Exception):
        raise result.exception


def with_text(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(content, encoding="utf-8")
    return name


def saved_image(name, size=(8, 6), mode="RGB", color=0):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(name)
    return name


def train(labels, *options):
    """Train on two images with these labels."""
    saved_image("photos/a.png")
    saved_image("photos/b.png")
    command(
        *("train", "photos", "--image-labels", with_text("labels.csv", labels)),
        *("--model=squeezenet1_1", "--weights=none"),
        *("--size=32", "--steps=1", "--workers=0", *options),
    )


def weights(**tensors):
    save_file(tensors, "w.safetensors")
    return "w.safetensors"


def pickled(name):
    torch.save(PooledCNN(), name)
    return name


def cut_off(name):
    Path(name).write_bytes(Path(name).read_bytes()[:-40])
    return name


def scenes(*options):
    command("scenes", "scenes", "--count", 2, "--size", 32, *options)
    return "scenes"


def scenes_without_masks():
    scenes()
    for mask in Path("scenes/SegmentationClass").iterdir():
        mask.unlink()
    return "scenes"


def voc_folder():
    with_text("VOC/ImageSets/Segmentation/train.txt", "a\n")
    saved_image("VOC/JPEGImages/a.jpg")
    return "VOC"


def full_disk():
    with atomic_path("labels.png"):
        raise OSError(errno.ENOSPC, "No space left on device")


def saliency(model=None, **options):
    return DistinctClassSaliency(TinyVGG() if model is None else model, **options)


def image_rows(image, **options):
    return Segmenter(TinyVGG(), **options).segment(image)


def broken(model):
    nn.init.constant_(next(model.parameters()), float("nan"))
    return model


X = torch.zeros(1, 3, 16, 16)
HALVES = torch.full((1, 2, 16, 16), 0.5)
PIXELS = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
LABELED = "id,split,labels\na,train,cat\nb,val,cat\n"


class Squeezed(PooledCNN):
    """Returns (N,), as models with one class often do."""

    def forward(self, x):
        return super().forward(x)[:, 0]


class InATuple(PooledCNN):
    """Returns scores and features."""

    def forward(self, x):
        return super().forward(x), x


class WithIdleLayer(PooledCNN):
    """Has a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.idle = nn.Conv2d(3, 4, 1)


class OfOneSize(PooledCNN):
    """Accepts 16 x 16 pixels only."""

    def forward(self, x):
        return super().forward(x + torch.zeros(16, 16))


def flattened(classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, classes))


# Mistakes by the beginning of the heading that they lead to.
MISTAKES = {
    "{model} is a transformer: its": lambda: saliency(VisionTransformer(32, 16, 1, 1, 8, 8)),
    "the model has no rectifier": lambda: saliency(nn.Conv2d(3, 2, 3), layer="").attribute(X),
    "layer {item!r} is not in": lambda: saliency(layer="features.99"),
    "layer {layer} is not a module of": lambda: saliency(layer=TinyVGG().features),
    "layer {layer} was not reached": lambda: saliency(WithIdleLayer(), layer="idle").attribute(X),
    "layers cannot be chosen": lambda: saliency(lambda x: x),
    "the model must return a tensor": lambda: saliency(InATuple(), layer="conv2").attribute(X),
    "the model must return scores": lambda: saliency(Squeezed(), layer="conv2").attribute(X),
    "the model failed on the images": lambda: saliency(OfOneSize(), layer="conv2").attribute(X),
    "DataParallel runs": lambda: saliency(nn.DataParallel(PooledCNN())),
    "TorchScript hides": lambda: saliency(torch.jit.script(nn.ReLU())),
    "{model} is a detection model": lambda: saliency(ssdlite320_mobilenet_v3_large(weights_backbone=None)),
    "the scores come from a linear": lambda: ClassActivationMaps(flattened(), scales=(1.0,)).attribute(X),
    "torchvision has no": lambda: load_model("vgg61", "DEFAULT"),
    "inputs must have shape": lambda: saliency().attribute(X[0]),
    "inputs must be floating point": lambda: saliency().attribute(PIXELS),
    "inputs must be finite": lambda: saliency().attribute(X / 0),
    "inputs have {channels} channels": lambda: saliency().attribute(X[:, :1]),
    "gradients cannot be computed": lambda: torch.inference_mode()(saliency().attribute)(X),
    "target {target!r} is out": lambda: saliency().attribute(X, 4),
    "target {target!r} does not": lambda: saliency(scales=(1.0,)).attribute(X, (1, 2)),
    "{name} must lie between": lambda: saliency().class_maps(X, classes=[4]),
    "candidates must include": lambda: saliency().attribute(X, 3, candidates=[0, 1]),
    "there is no class {name!r} among the {count}": lambda: command(
        "segment", saved_image("a.png"), "--weights", "demo", "--classes", "dog"
    ),
    "class_names has": lambda: image_rows(saved_image("a.png"), class_names=["one"]),
    "the model's scores contain NaN": lambda: saliency(broken(TinyVGG())).attribute(X),
    "{source} does not fit": lambda: load_model("squeezenet1_1", weights(strange=torch.zeros(2))),
    "{path}: {error}; nothing in it": lambda: load_model("squeezenet1_1", pickled("model.pth")),
    "{source}: weights must be finite": lambda: load_weights(
        nn.Linear(1, 1, False), {"weight": X[:1, :1, 0, 0] / 0}, "w"
    ),
    "{path}: there is no such file.": lambda: load_model("squeezenet1_1", "nowhere.pth"),
    "{path}: the file is empty": lambda: load_model("squeezenet1_1", with_text("empty.pth", "")),
    "{path}: not a complete safetensors": lambda: load_model("squeezenet1_1", with_text("cut.safetensors", "{}")),
    "{path}: holds weights without": lambda: command("seeds", ".", "--weights", weights(strange=torch.zeros(2))),
    "{weights!r} is neither": lambda: load_model("squeezenet1_1", "IMAGENET"),
    "{name}: there is no such file.": lambda: image_rows("nowhere.jpg"),
    "{name}: not an image": lambda: image_rows(with_text("text.jpg", "text")),
    "{name}: cannot be read": lambda: image_rows(cut_off(saved_image("a.png", (64, 64)))),
    "{name}: has more than": lambda: image_rows(saved_image("a.png"), max_pixels=9),
    "an image tensor must": lambda: image_rows(X[0] - 1),
    "{folder}: the folder contains no": lambda: command("segment", Path(with_text("folder/text", "")).parent),
    "{data}: is not a VOC folder": lambda: command("train", Path(saved_image("photos/a.png")).parent),
    "{path}, line 1: must name": lambda: train("a,train,cat\n"),
    "{where}: has {count} fields": lambda: train("id,split,labels\na,train,cat,dog\n"),
    "{path}, line {line}: {id} has no": lambda: train("id,split,labels\na,train,\n"),
    "{labels}: {count} of {count} ids": lambda: train("id,split,labels\nc,train,cat\n"),
    "{labels}: no row belongs": lambda: train("id,split,labels\na,train,cat\nb,train,cat\n"),
    "{root}: not a VOC folder": lambda: command("evaluate", ".", "--weights", "demo"),
    "{path}: there is no list": lambda: command("evaluate", scenes(), "--weights", "demo", "--split", "test"),
    "{folder}: {count} of {count} {what}": lambda: command("evaluate", scenes_without_masks(), "--weights", "demo"),
    "{root}: has no image-level": lambda: command("train", voc_folder()),
    "the images of {data}": lambda: command(
        "seeds", voc_folder(), "--weights", "demo", "--image-labels", with_text("labels.csv", "id,labels\na,cat\n")
    ),
    "the model's class names must": lambda: command(
        "evaluate",
        scenes(),
        "--model=squeezenet1_1",
        "--weights",
        weights(**squeezenet1_1().state_dict()),
        "--class-names=imagenet",
    ),
    "{path}: a mask must be a": lambda: read_mask(saved_image("mask.png"), class_count=2),
    "{path}: labels must be": lambda: read_mask(saved_image("mask.png", mode="L", color=7), class_count=2),
    "{path}: a mask must have": lambda: read_mask(saved_image("mask.png", mode="L"), (8, 8), class_count=2),
    "--label-maps": lambda: command("train-seg", scenes(), "--label-maps", "nowhere"),
    "{folder}: holds {contents} with other": lambda: [
        command("pseudo-label", scenes(), "--weights=demo", "--no-crf", f"--batch-size={size}") for size in (1, 2)
    ],
    "there is no class {name!r} among the {number}": lambda: command(
        *("pseudo-label", Path(saved_image("photos/a.png")).parent, "--weights=demo"),
        *("--image-labels", with_text("labels.csv", "id,labels\na,cat\n")),
    ),
    "{path}: not a complete checkpoint": lambda: train(
        LABELED, "--output", Path(with_text("classifier/last.pt", "text")).parent
    ),
    "batch_size must be a multiple": lambda: BatchPlan(8, 16, 100, 0, world_size=3),
    "{folder}: holds another series": lambda: [scenes(f"--seed={seed}") for seed in (0, 1)],
    "--shard must be": lambda: command("pseudo-label", "photos", "--weights=demo", "--shard=3"),
    "a shard's index": lambda: command("pseudo-label", "photos", "--weights=demo", "--shard=8/8"),
    "--actors must be": lambda: command("pseudo-label", "photos", "--weights=demo", "--engine=ray", "--actors=4..8"),
    "cannot write {file}": full_disk,
    "cannot write to the folder": lambda: command("demo", "--output", Path(with_text("file", "")) / "folder"),
    "images must be uint8 RGB": lambda: DenseCRF()(HALVES, X),
    "probabilities must lie in": lambda: DenseCRF()(4 * HALVES, PIXELS),
    "the backend 'triton' runs on": lambda: DenseCRF(backend="triton")(HALVES, PIXELS),
}


@pytest.mark.parametrize("beginning", MISTAKES)
def test_mistakes_raise_the_message_of_their_heading(beginning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the message is compared below
        MISTAKES[beginning]()
    assert_under(beginning, str(caught.value))


WARNINGS = {
    "no rectifier lies between": lambda: saliency(PooledCNN(), layer="fc").attribute(X),
    "the gradient at {layers} is": lambda: saliency(PooledCNN(), layer="bn").attribute(X),
    "an image has a single": lambda: saliency().attribute(X, 0, candidates=[0]),
    "{labels}: {count} images in": lambda: folder_collection("photos", with_text("labels.csv", "id,labels\na,cat\n")),
}


@pytest.mark.parametrize("beginning", WARNINGS)
def test_warnings_have_the_message_of_their_heading(beginning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        saved_image(f"photos/{name}.png")
    with pytest.warns(UserWarning) as caught:
        WARNINGS[beginning]()
    assert_under(beginning, str(caught[0].message))


# The missing module, and what needs it.
MISSING = {
    "backend='pydensecrf'": ("pydensecrf", lambda: DenseCRF(backend="pydensecrf")(HALVES, PIXELS)),
    "--engine ray needs": ("ray", lambda: list(RayEngine()(None, []))),
    "GrabCut needs": ("cv2", lambda: grabcut(np.zeros((8, 8, 3), np.uint8), torch.rand(8, 8))),
    "logs for TensorBoard": ("torch.utils.tensorboard", lambda: TensorBoardLog(Path("logs"), ())),
    "{uri}: places other": ("pyarrow.fs", lambda: image_rows("s3://bucket/photo.jpg")),
    "this method is that": ("torchcam", lambda: import_library("torchcam")),
}


@pytest.mark.parametrize("beginning", MISSING)
def test_missing_packages_have_the_message_of_their_heading(beginning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, use = MISSING[beginning]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        use()
    assert_under(beginning, str(caught.value))

"""Count the files of the package that one call enters: what somebody who debugs the call has to read.

Usage: ``python -m benchmarks.entered_files [--output benchmarks/results/entered_files.json]``

A file counts if at least one of its functions runs during the call, in any thread. Each call is made once before it is
counted, so that module bodies, which run at import, do not count. Networks have random weights and images are
generated: the same files are entered whatever their values. Captum's Grad-CAM is counted for comparison.
"""

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import captum
import torch
import torchvision
from captum.attr import LayerGradCam
from PIL import Image

import dcsm_attr
from dcsm_attr import DistinctClassSaliency, Segmenter
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import write_json
from dcsm_attr.models.checkpoint import Architecture, TrainedSegmentationNet, build_classifier
from dcsm_attr.models.segmentation_net import SegmentationNet
from dcsm_attr.training.classifier import SCHEDULES, train_classifier
from dcsm_attr.training.loop import TrainingSettings
from dcsm_attr.training.segmentation import train_segmentation_net

_CLASS_NAMES = ("ant", "bee")
_ARCHITECTURE = Architecture("squeezenet1_1", len(_CLASS_NAMES), "features.4", "linear")
_CANVAS = Preprocess(size=32)
_TWO_STEPS = TrainingSettings(
    replace(SCHEDULES["modern"], batch_size=2, steps=2, head_only_steps=1), validate_every=1, mixed_precision=False
)


def main() -> None:
    """Count, print a table, and write the result if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file for the result; default: none")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        entered = {
            name: entered_files(call, package)
            for package, calls in (
                (captum, {"captum: LayerGradCam.attribute": grad_cam}),
                (dcsm_attr, package_calls(Path(folder))),
            )
            for name, call in calls.items()
        }
    for name, files in entered.items():
        print(f"{name:<40}{len(files):>4}")
    if output is not None:
        counts = {name: {"count": len(files), "files": files} for name, files in entered.items()}
        write_json(output, {"measured": run_environment("python -m benchmarks.entered_files"), "calls": counts})


def entered_files(call: Callable[[], object], package: object) -> list[str]:
    """Names of the files of a package whose functions a call enters.

    Args:
        call: makes the call; it is made twice, and the second time counts.
        package: the imported package.

    Returns:
        Paths relative to the folder of the package, sorted.
    """
    call()
    root = Path(str(package.__file__)).parent
    names: set[str] = set()

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            names.add(frame.f_code.co_filename)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    paths = [Path(name) for name in names if name.endswith(".py")]
    return sorted(path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root))


def grad_cam() -> torch.Tensor:
    """Captum's Grad-CAM of one image."""
    model = _model()
    return LayerGradCam(model, model.features[-1]).attribute(torch.rand(1, 3, 64, 64), target=3)


def package_calls(folder: Path) -> dict[str, Callable[[], object]]:
    """The calls of this package that are counted.

    Args:
        folder: scratch folder for images and training runs.
    """
    collection, labels = _collection(folder)
    model = _model()
    runs = iter(range(1000))

    def attribute() -> object:
        return DistinctClassSaliency(model).attribute(torch.rand(1, 3, 64, 64), target=3)

    def segment() -> object:
        return Segmenter(model, preprocess=Preprocess(size=64)).segment(collection.images[0].path, classes=[3, 5])

    def train() -> object:
        classifier = build_classifier(_ARCHITECTURE, None, _CLASS_NAMES, _CANVAS)
        run = folder / f"run {next(runs)}"
        return train_classifier(classifier, collection, collection, run, _TWO_STEPS, workers=0, progress=False)

    def train_segmentation() -> object:
        backbone = build_classifier(_ARCHITECTURE, None, _CLASS_NAMES, _CANVAS).network.backbone
        network = SegmentationNet(backbone, len(_CLASS_NAMES), "fcn", None)
        start = TrainedSegmentationNet(network, _ARCHITECTURE, "fcn", None, _CLASS_NAMES, _CANVAS, "labels")
        run = folder / f"run {next(runs)}"
        return train_segmentation_net(start, collection, labels, run, _TWO_STEPS, workers=0, progress=False)

    return {
        "DistinctClassSaliency.attribute": attribute,
        "Segmenter.segment": segment,
        "train_classifier, two steps": train,
        "train_segmentation_net, two steps": train_segmentation,
    }


def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.squeezenet1_1(weights=None).eval()


def _collection(folder: Path) -> tuple[Collection, Path]:
    """Four images of one class each, and the folder of their label maps."""
    labels = folder / "labels"
    labels.mkdir()
    images = []
    for number in range(4):
        shown = number % len(_CLASS_NAMES)
        pixels = torch.randint(0, 255, (32, 32, 3), generator=torch.Generator().manual_seed(number)).to(torch.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels.numpy()).save(path)
        Image.new("L", (32, 32), 1 + shown).save(labels / path.name)
        images.append(LabeledImage(str(number), path, (shown,)))
    return Collection(_CLASS_NAMES, tuple(images)), labels


if __name__ == "__main__":
    main()

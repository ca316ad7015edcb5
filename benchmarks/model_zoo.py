"""Measure every classification CNN of torchvision: default layers, guided rectifiers, time and memory.

    python -m benchmarks.model_zoo [NAME ...]

Without names: all models that are not in results/models/models.json yet, so that an interrupted run resumes. Each model
is measured in its own process, so that memory is that of one model. Weights are random, on which time, memory, layers
and counts do not depend. Time is processor time of one thread, which excludes other processes, except that they share
its caches. Writes results/models/models.json, and its tables as results/models/models.md.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.model_tables import FORWARD, OURS, report
from benchmarks.speed.comparison import measure_peak_memory
from dcsm_attr import DistinctClassSaliency, GuidedRectifiers, Segmenter
from dcsm_attr.attribution.gradients import LayerPoint, run_forward
from dcsm_attr.attribution.maps import absolute_channel_maximum
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import atomic_path, make_writable_folder, write_json
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.models.weights import build_model

SIZE = 224
CANVAS = 128
CANDIDATES = [0, 1, 2]
# Models with more seconds per call are timed once, others five times.
SLOW = 2.0
TRANSFORMERS = ("maxvit", "swin", "vit")

# Names of autograd nodes without the number at the end, as in "ReluBackward0".
_RECTIFIER_NODES = {
    *("ReluBackward", "HardtanhBackward", "LeakyReluBackward", "PreluKernelBackward", "EluBackward", "CeluBackward"),
    *("SiluBackward", "GeluBackward", "MishBackward", "HardswishBackward", "SoftplusBackward"),
}

HERE = Path(__file__).parent
RESULT = HERE / "results" / "models" / "models.json"


def convolutional_names() -> list[str]:
    """Return the models of torchvision, without transformers."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(TRANSFORMERS)]


def describe_layers(model: nn.Module, names: tuple[str, ...], image: Tensor) -> list[dict[str, Any]]:
    """Return name, nominal stride and channels of the input of each layer."""
    found = {}

    def note(name: str, x: Tensor) -> None:
        found[name] = {"name": name, "stride": 2 ** round(math.log2(SIZE / x.shape[2])), "channels": x.shape[1]}

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name in names
    ]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def guided_count(model: nn.Module, layers: tuple[str, ...], image: Tensor) -> dict[str, int]:
    """Count rectifiers between image and scores, those that are guided, and those above the first layer."""
    in_graph = count_rectifiers(model(image.clone().requires_grad_())).total()
    with GuidedRectifiers() as rule:
        model(image.clone().requires_grad_())
    points = [LayerPoint(name, model.get_submodule(name), at_input=True) for name in layers]
    recording = run_forward(model, (image,), (), points, absolute_channel_maximum, guided=True)
    return {"in graph": in_graph, "guided": rule.guided, "above the first layer": recording.num_guided_rectifiers}


def count_rectifiers(output: Tensor) -> Counter[str]:
    """Count the rectifiers in the graph of a tensor, which needs no hooks and no look at the modules.

    Args:
        output: with a graph recorded by PyTorch's own functions.

    Returns:
        Number of nodes by the name of the autograd node, without its number.
    """
    seen: set[Any] = set()
    pending: list[Any] = [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
    return Counter(name for node in seen if (name := node.name().rstrip("0123456789")) in _RECTIFIER_NODES)


def check_model(model: nn.Module, attribution: Tensor) -> None:
    """Check what must hold for every model without any argument."""
    assert attribution.shape == (1, 1, SIZE, SIZE)
    assert attribution.isfinite().all()
    assert 0 <= attribution.min() < attribution.max() <= 1
    image_array = np.random.default_rng(0).integers(0, 256, (CANVAS, CANVAS - 24, 3), dtype=np.uint8)
    segmentation = Segmenter(model, preprocess=Preprocess(size=CANVAS)).segment(image_array)
    assert segmentation.labels.shape == image_array.shape[:2]
    image = torch.randn(1, 3, CANVAS, CANVAS)
    network = fully_convolutional(model)
    with torch.no_grad():
        assert network(image).shape[:2] == model(image).shape
    maps = DistinctClassSaliency(network).class_maps(image, CANDIDATES).maps
    assert maps.shape == (1, 3, CANVAS, CANVAS)
    assert maps.isfinite().all()
    assert maps.max() > 0


def processor_seconds(run: Callable[[], Any]) -> float:
    """Return the median processor time of a call."""
    seconds: list[float] = []
    while not seconds or (seconds[0] < SLOW and len(seconds) < 5):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measure_model(name: str) -> dict[str, Any]:
    """Measure one model; expects a new process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(name).eval()
    image = torch.randn(1, 3, SIZE, SIZE)
    dcs = DistinctClassSaliency(model)
    layers = describe_layers(model, dcs.layers, image)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(image)

    implementations = {FORWARD: forward, OURS: lambda: dcs.attribute(image, CANDIDATES[0], candidates=CANDIDATES)}
    # The first run of each, which is also the warm-up.
    memory = {implementation: measure_peak_memory(run) for implementation, run in implementations.items()}
    seconds = {implementation: processor_seconds(run) for implementation, run in implementations.items()}
    check_model(model, dcs.attribute(image))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": layers,
        "rectifiers": guided_count(model, dcs.layers, image),
        "processor seconds": seconds,
        "peak memory in bytes": memory,
    }


def measure_in_process(name: str) -> dict[str, Any]:
    """Run :func:`measure_model` in a new process; return its result or its error."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.model_zoo", "--to", str(target), name], capture_output=True, text=True
        )
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
        measured: dict[str, Any] = json.loads(target.read_text())
    return measured


def write(content: dict[str, Any]) -> None:
    """Write the result and its tables."""
    write_json(RESULT, content)
    with atomic_path(RESULT.with_suffix(".md")) as path:
        path.write_text(report(content), encoding="utf-8")


def main() -> None:
    """Measure the named or missing models, one after the other."""
    if sys.argv[1:2] == ["--to"]:
        write_json(sys.argv[2], measure_model(sys.argv[3]))
        return
    make_writable_folder(RESULT.parent)
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    missing = [name for name in convolutional_names() if name not in content["models"]]
    for name in sys.argv[1:] or missing:
        content["models"][name] = measure_in_process(name)
        content |= {
            "measured": run_environment("python -m benchmarks.model_zoo"),
            "size": SIZE,
            "classes": len(CANDIDATES),
        }
        write(content)
        print(name, content["models"][name].get("failed", "measured"), flush=True)


if __name__ == "__main__":
    main()

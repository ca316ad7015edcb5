"""Everything that the package writes, each into a folder of its own, and how a reader tells that a file is whole.

Run as a program, it writes some of them over and over in forked processes. ``killed``: these are killed in the middle,
at each call of the system that an audit hook sees, and at some numbers of bytes, where the system itself kills.
``full``: files must not become larger than some numbers of bytes, as on a full disk.
"""

import csv
import json
import os
import resource
import shutil
import signal
import sys
from functools import partial
from io import BytesIO
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dcsm_attr import DenseCRF, Segmenter
from dcsm_attr.cli.runs import RunManifest
from dcsm_attr.datasets.labels import ImageLabels, LabelRow, write_image_labels
from dcsm_attr.datasets.masks import label_image
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.datasets.scenes import write_scene_folder
from dcsm_attr.evaluation.report import write_report
from dcsm_attr.evaluation.result import Confusion, Evaluation
from dcsm_attr.io import FolderStorage
from dcsm_attr.models.checkpoint import Architecture, build_classifier, load_classifier, save_network
from dcsm_attr.models.scene_net import load_scene_net
from dcsm_attr.models.weights import load_weights_only
from dcsm_attr.training.checkpoints import TrainingLog, save_checkpoint

# At these sizes a file is cut off: before its first byte, in its header, and further on.
BYTES = (0, 1, 100, 3_000)


def results(folder):
    """Label maps, maps, figures and the manifest of an image."""
    folder.mkdir(parents=True, exist_ok=True)
    _segmentation().save(folder, overview=True)


def attributions(folder):
    folder.mkdir(parents=True, exist_ok=True)
    _segmentation().save_attribution(folder)


def run_manifest(folder):
    folder.mkdir(parents=True, exist_ok=True)
    manifest = RunManifest(folder, 40)
    for number in range(40):
        manifest.add_result(Path(f"{number}.png"), folder / str(number))
    manifest.write()


def report(folder):
    folder.mkdir(parents=True, exist_ok=True)
    counts = Confusion(torch.eye(3, dtype=torch.int64))
    scores, present = torch.tensor([[0.1, 0.2]]), torch.tensor([[True, False]])
    evaluation = Evaluation(
        "known", ("ant", "bee"), counts, counts, scores, present, ("a",), {"b": "why"}, (), {"crf": None}
    )
    write_report({"one": [evaluation]}, folder, command="command", data="data")


def classifier(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save_network(_classifier(), folder / "best.safetensors")


def checkpoint(folder):
    folder.mkdir(parents=True, exist_ok=True)
    network = nn.Conv2d(3, 40, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    save_checkpoint(folder / "last.pt", network, optimizer, schedule, {"step": 1})


def log(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(3):
        TrainingLog(folder / "log.csv", ["text"]).append({"step": step, "text": "x" * 2000})


def labels(folder):
    folder.mkdir(parents=True, exist_ok=True)
    rows = {f"{number:04}": LabelRow("train", (0,)) for number in range(400)}
    write_image_labels(folder / "labels.csv", ImageLabels(("ant", "bee"), rows))


def scenes(folder):
    write_scene_folder(folder, 2, size=32, progress=False)


def storage(folder):
    stored = FolderStorage(folder, ".unfinished")
    try:
        if "png" not in _made:
            buffer = BytesIO()
            label_image(np.random.default_rng(0).integers(0, 21, (60, 80))).save(buffer, "PNG")
            _made["png"] = buffer.getvalue()
        stored.write("labels/a.png", _made["png"])
        stored.write("parts/00000000.jsonl", b'{"name": "a"}\n' * 300)
    finally:
        stored.discard_scratch()


WRITERS = {
    writer.__name__: writer
    for writer in (results, attributions, run_manifest, report, classifier, checkpoint, log, labels, scenes, storage)
}

_made = {}


def _segmentation():
    if "segmentation" not in _made:
        segmenter = Segmenter(load_scene_net(), crf=DenseCRF(iterations=1), preprocess=Preprocess(size=48))
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        _made["segmentation"] = segmenter.segment(pixels, raw=True)
    return _made["segmentation"]


def _classifier():
    if "classifier" not in _made:
        architecture = Architecture("squeezenet1_1", 2, "features.3", "linear")
        _made["classifier"] = build_classifier(architecture, None, ("ant", "bee"))
    return _made["classifier"]


def check_whole(path):
    """Read a file to its end; raises where it is not complete."""
    kind = path.suffix
    if kind in (".png", ".jpg"):
        with Image.open(path) as picture:
            picture.load()
    elif kind == ".npz":
        with np.load(path) as arrays:
            assert all(arrays[name].size for name in arrays)
    elif kind == ".json":
        assert json.loads(path.read_text(encoding="utf-8"))
    elif kind == ".safetensors":
        assert load_file(path)
        assert load_classifier(path).class_names
    elif kind == ".pt":
        assert load_weights_only(path)["random_state"]
    elif kind == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(None not in row.values() for row in rows)
        assert path.read_bytes().endswith(b"\n")
    else:
        assert path.read_text(encoding="utf-8").endswith("\n"), kind


def visible_files(folder):
    """Those under final names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def in_a_fork(work):
    """Run in a process that may be killed; whether it came to its end, and whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, os.WIFSIGNALED(status)


def killed_at_event(writer, folder, number):
    """Kill at the ``number``-th call of the system that opens, renames, changes or removes a file in the folder."""
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.chmod", "os.mkdir") and str(folder) in str(arguments[0]):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    writer(folder)


def killed_at_size(writer, folder, size):
    """Have the system kill at the first write that would make a file larger."""
    # Python ignores the signal, so that writing raises an OSError.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    writer(folder)


def killed_everywhere(writer, folder):
    """Kill at every moment; how often, how many files there should be, and what was not whole."""
    # Once in this process, so that all is imported and made.
    writer(folder / "warm")
    whole = {path.relative_to(folder / "warm") for path in visible_files(folder / "warm")}
    kills, broken = 0, []
    moments = chain(((killed_at_size, size) for size in BYTES), ((killed_at_event, number) for number in count(1)))
    for number, (how, moment) in enumerate(moments):
        target = folder / f"{number}"
        # Half of the time there are files of an earlier run.
        if number % 2:
            shutil.copytree(folder / "warm", target)
        finished, was_killed = in_a_fork(partial(how, writer, target, moment))
        kills += was_killed
        for path in visible_files(target):
            try:
                assert path.relative_to(target) in whole, "a name that is not final"
                check_whole(path)
            except Exception as error:
                broken.append(f"{how.__name__} {moment}: {path.relative_to(target)}: {type(error).__name__} {error}")
        if finished and how is killed_at_event:
            break
    return {"kills": kills, "files": sorted(map(str, whole)), "broken": broken}


def out_of_room(writer, folder, size):
    """Write where no file may become larger; what was raised, and what stands there."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        writer(folder)
    except OSError as error:
        said = {"errno": error.errno, "text": str(error)}
    except Exception as error:
        said = {"errno": None, "text": f"{type(error).__name__}: {error}"}
    else:
        said = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    (folder.parent / f"{folder.name}.json").write_text(json.dumps(said))


def full_everywhere(writer, folder):
    """What happens at each size; and what was not whole, or was left."""
    writer(folder / "warm")
    largest = max(path.stat().st_size for path in visible_files(folder / "warm"))
    said, broken = {}, []
    for size in (*BYTES, largest - 1, largest):
        target = folder / str(size)
        in_a_fork(partial(out_of_room, writer, target, size))
        said[size] = json.loads((folder / f"{size}.json").read_text())
        for path in target.rglob("*"):
            try:
                assert not path.name.startswith("."), "was left"
                if path.is_file():
                    check_whole(path)
            except Exception as error:
                broken.append(f"{size}: {path.relative_to(target)}: {type(error).__name__} {error}")
    return {"said": said, "largest": largest, "broken": broken}


if __name__ == "__main__":
    # Such as killed/labels.
    found, ways = {}, {"killed": killed_everywhere, "full": full_everywhere}
    for both in sys.argv[2:]:
        way, writer_name = both.split("/")
        found[both] = ways[way](WRITERS[writer_name], Path(sys.argv[1]) / both)
    sys.stdout.write(json.dumps(found))

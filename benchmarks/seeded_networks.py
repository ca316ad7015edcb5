"""Train a segmentation network from each kind of seed, and evaluate seeds and networks.

    python -m benchmarks.seeded_networks VOC CLASSIFIER FICKLE FOLDER [--loss sec] [TRAIN-SEG OPTIONS]

CLASSIFIER and FICKLE are files that ``dcsm-attr train`` wrote, the latter with ``--head fickle``. Each kind of seed of
split train is written into FOLDER and compared with the masks. ``dcsm-attr train-seg`` then trains a network from it
with the given options, such as ``--weights CLASSIFIER --head fcn --size 257``, which is evaluated on split val, with
known and with detected classes. Every command resumes. Prints a table and writes results/seeded_networks.json.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import make_writable_folder, write_json

RESULT = Path(__file__).parent / "results" / "seeded_networks.json"
_STEPS = ("before the CRF", "after the CRF")


@dataclass(frozen=True)
class Source:
    """One kind of label maps.

    Attributes:
        name: name in the table.
        command: command that writes it, without data and output; empty if the label maps exist.
        labels: path of the label maps in its folder.
        loss: loss of the training. None: the one given on the command line.
    """

    name: str
    command: tuple[str, ...]
    labels: str = "."
    loss: str | None = None


def sources(voc: Path, classifier: Path, fickle: Path) -> list[Source]:
    """Return the kinds of seeds that are compared."""
    weights = ("--weights", str(classifier))
    tuned = ("--preset", "tuned")
    # Shares for which more than half of the foreground is right on split train: results/seed_shares.json.
    return [
        Source("dcsm", ("seeds", *weights, "--method", "dcsm", *tuned, "--threshold", "0.8")),
        Source("cam", ("seeds", *weights, "--method", "cam", "--threshold", "0.4")),
        Source("fusion", ("seeds", *weights, "--method", "fusion", *tuned, "--threshold", "0.4")),
        Source("ficklenet", ("ficklenet", "--weights", str(fickle))),
        Source("affinity", ("affinity", *weights, "--method", "cam"), "pseudo-labels", "pseudo"),
        # Ground truth, the upper bound.
        Source("masks", (), str((voc / "SegmentationClass").resolve()), "pseudo"),
    ]


def run(*arguments: object) -> None:
    """Run a command of the package; exit if it fails."""
    subprocess.run([sys.executable, "-m", "dcsm_attr", *map(str, arguments)], check=True)


def train_and_evaluate(source: Source, voc: Path, folder: Path, loss: str, options: list[str]) -> dict[str, Any]:
    """Write the label maps, evaluate them, train a network, and evaluate it."""
    if source.command:
        command, *settings = source.command
        run(command, voc, *settings, "--output", folder / "labels")
    labels = folder / "labels" / source.labels
    run("miou", voc, labels, "--split", "train", "--output", folder / "seeds.json")
    used_loss = source.loss or loss
    network = folder / f"network-{used_loss}"
    run("train-seg", voc, "--label-maps", labels, "--loss", used_loss, *options, "--output", network)
    weights = network / "segmentation_net.safetensors"
    evaluation = ("--protocol", "both", "--output", network / "evaluation")
    run("evaluate", voc, "--weights", weights, "--split", "val", *evaluation)
    found = json.loads((network / "evaluation" / "evaluation.json").read_text())["evaluations"]
    seeds = json.loads((folder / "seeds.json").read_text())
    return {
        "loss": used_loss,
        "seeds, mean IoU": _percent(seeds["mean IoU"]),
        "seeds, unknown": _percent(seeds["unknown"]),
        **{f"{one['protocol']}, {step}": _percent(one[step]["mean IoU"]) for one in found for step in _STEPS},
    }


def _percent(value: float) -> float:
    return round(100 * value, 2)


def main() -> None:
    """Run everything, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("voc", "classifier", "fickle", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--loss", choices=("sec", "dsrg"), default="dsrg", help="loss for seeds")
    parser.add_argument("--source", action="append", help="kind of seed, may be repeated; default: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    given, options = parser.parse_known_args()
    folder = make_writable_folder(given.folder)
    results = {}
    for source in sources(given.voc, given.classifier, given.fickle):
        if given.source and source.name not in given.source:
            continue
        own_folder = make_writable_folder(folder / source.name)
        results[source.name] = train_and_evaluate(source, given.voc, own_folder, given.loss, options)
    columns = list(next(iter(results.values())))
    print(f"{'':>10}" + "".join(f"{column:>26}" for column in columns))
    for name, row in results.items():
        print(f"{name:>10}" + "".join(f"{row[column]!s:>26}" for column in columns))
    command = ["python", "-m", "benchmarks.seeded_networks", "VOC", "CLASSIFIER", "FICKLE", "FOLDER"]
    named = [Path(option).name if Path(option).is_file() else option for option in options]
    command_line = shlex.join([*command, f"--loss={given.loss}", *named])
    write_json(given.result, {"measured": run_environment(command_line), "in %": results})


if __name__ == "__main__":
    main()

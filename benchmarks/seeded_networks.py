"""Segmentation networks trained from each kind of seed, beside the seeds themselves.

    python -m benchmarks.seeded_networks VOC CLASSIFIER FICKLE FOLDER [--loss sec] [TRAIN-SEG OPTIONS]

CLASSIFIER and FICKLE are files that ``dcsm-attr train`` wrote, the latter with ``--head fickle``. Each kind of seed of
split train is written into FOLDER, compared with the masks, learned from by ``dcsm-attr train-seg`` with the options
that follow, such as ``--weights CLASSIFIER --head fcn --size 257``, and the network measured on split val, told
the classes and not. Every command resumes. Writes results/seeded_networks.json and prints its table.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcsm_attr.evaluation.result import measured_on
from dcsm_attr.io import make_writable_folder, write_json

RESULT = Path(__file__).parent / "results" / "seeded_networks.json"
_STEPS = ("before the CRF", "after the CRF")


@dataclass(frozen=True)
class Source:
    """One kind of label maps.

    Attributes:
        name: for the table.
        command: that writes it, but for data and output; empty, if they are there.
        labels: where in its folder the label maps stand.
        loss: that learns from it. None: the one that is asked for.
    """

    name: str
    command: tuple[str, ...]
    labels: str = "."
    loss: str | None = None


def sources(voc: Path, classifier: Path, fickle: Path) -> list[Source]:
    """What is compared."""
    weights = ("--weights", str(classifier))
    tuned = ("--preset", "tuned")
    # Shares at which more than half of the foreground is right on images of train: results/seed_shares.json.
    return [
        Source("dcsm", ("seeds", *weights, "--method", "dcsm", *tuned, "--share", "0.8")),
        Source("cam", ("seeds", *weights, "--method", "cam", "--share", "0.4")),
        Source("fusion", ("seeds", *weights, "--method", "fusion", *tuned, "--share", "0.4")),
        Source("ficklenet", ("ficklenet", "--weights", str(fickle))),
        Source("affinity", ("affinity", *weights, "--method", "cam"), "pseudo-labels", "pseudo"),
        # What the same network learns from the truth: no seeds can give more.
        Source("masks", (), str((voc / "SegmentationClass").resolve()), "pseudo"),
    ]


def run(*arguments: object) -> None:
    """One command of the package, which ends this run if it fails."""
    subprocess.run([sys.executable, "-m", "dcsm_attr", *map(str, arguments)], check=True)


def measured(source: Source, voc: Path, folder: Path, loss: str, options: list[str]) -> dict[str, Any]:
    """Write the label maps, measure them, train, and measure the network."""
    if source.command:
        command, *settings = source.command
        run(command, voc, *settings, "--output", folder / "labels")
    labels = folder / "labels" / source.labels
    run("miou", voc, labels, "--split", "train", "--output", folder / "seeds.json")
    own = source.loss or loss
    network = folder / f"network-{own}"
    run("train-seg", voc, "--labels-from", labels, "--loss", own, *options, "--output", network)
    weights = network / "segmentation_net.safetensors"
    evaluation = ("--protocol", "both", "--resume", "--output", network / "evaluation")
    run("evaluate", voc, "--weights", weights, "--split", "val", *evaluation)
    found = json.loads((network / "evaluation" / "evaluation.json").read_text())["evaluations"]
    seeds = json.loads((folder / "seeds.json").read_text())
    return {
        "loss": own,
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
    parser.add_argument("--loss", choices=("sec", "dsrg"), default="dsrg", help="for seeds")
    parser.add_argument("--source", action="append", help="one of the kinds of seeds; all, if not given")
    parser.add_argument("--result", type=Path, default=RESULT)
    given, options = parser.parse_known_args()
    folder = make_writable_folder(given.folder)
    results = {}
    for source in sources(given.voc, given.classifier, given.fickle):
        if given.source and source.name not in given.source:
            continue
        own_folder = make_writable_folder(folder / source.name)
        results[source.name] = measured(source, given.voc, own_folder, given.loss, options)
    columns = list(next(iter(results.values())))
    print(f"{'':>10}" + "".join(f"{column:>26}" for column in columns))
    for name, row in results.items():
        print(f"{name:>10}" + "".join(f"{row[column]!s:>26}" for column in columns))
    command = ["python", "-m", "benchmarks.seeded_networks", "VOC", "CLASSIFIER", "FICKLE", "FOLDER"]
    named = [Path(option).name if Path(option).is_file() else option for option in options]
    told = shlex.join([*command, f"--loss={given.loss}", *named])
    write_json(given.result, {"measured": measured_on(told), "in %": results})


if __name__ == "__main__":
    main()

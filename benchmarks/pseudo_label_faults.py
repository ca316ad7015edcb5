"""Faults during `dcsm-attr pseudo-label` over real images: no result may be lost, and no file incomplete.

    python -m benchmarks.pseudo_label_faults VOC CLASSIFIER FOLDER [--count N] [OPTIONS OF pseudo-label]

A list of images of train, among them twenty files that are broken or not images, is labeled once without faults; then
by runs that are killed by SIGKILL at ten random times; with --disk, a small file system that is filled (for example
``mount -t tmpfs -o size=64m tmpfs DISK``), by a run whose disk is full; and, if Ray is installed, by a run with an
actor that is killed. Every file of the result, and the manifest except its times, is compared with the run without
faults, also after each kill. Writes results/pseudo_label_faults.json.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from dcsm_attr.datasets.voc import read_voc_list
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import make_writable_folder, write_json

RESULT = Path(__file__).parent / "results" / "pseudo_label_faults.json"
KILLS = 10
BROKEN = 20
ROOM = 300_000


def written_list(voc: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """Write the list, the broken files, and the labels."""
    paths = [entry.image.resolve() for entry in read_voc_list(voc, "train")]
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    draw = random.Random(0)
    rows = []
    for number in range(BROKEN):
        path = folder / f"broken{number:02d}.jpg"
        whole = draw.choice(chosen).read_bytes()
        path.write_bytes((b"", b"not an image", whole[: len(whole) // 2], whole[:30])[number % 4])
        chosen.insert(draw.randrange(len(chosen)), path)
        rows.append(f"{path.stem},train,dog\n")
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in chosen))
    (folder / "labels.csv").write_text((voc / "image_labels.csv").read_text().rstrip("\n") + "\n" + "".join(rows))
    return folder / "list.txt", folder / "labels.csv"


def files(folder: Path) -> dict[str, bytes]:
    """Contents of all files without times, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name in ("labels", "overlays", "maps")
    }


def manifest(folder: Path) -> list[dict[str, Any]]:
    """Lines of the manifest without times."""
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def differences(folder: Path, undisturbed: Path, *, complete: bool) -> int:
    """Number of files that differ from the run without faults."""
    expected, found = files(undisturbed), files(folder)
    wrong = sum(expected.get(name) != content for name, content in found.items())
    if complete:
        wrong += len(expected.keys() - found.keys()) + (manifest(folder) != manifest(undisturbed))
        wrong += sum(1 for path in folder.glob(".*"))
    return wrong


class Runs:
    """Runs of one command into different folders."""

    def __init__(self, command: list[str], logs: Path) -> None:
        self.command, self.logs = command, logs

    def started(self, output: Path, *engine: str) -> psutil.Popen:
        """Start a run in its own process group."""
        command = [*self.command, *engine, "--output", str(output)]
        with (self.logs / f"{output.name}.log").open("ab") as log:
            return psutil.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def ended(self, output: Path, *engine: str) -> int:
        """Exit status of a complete run; 1 if an image could not be read."""
        return int(self.started(output, *engine).wait())


def killed(runs: Runs, folder: Path, undisturbed: Path, seconds: float) -> dict[str, Any]:
    """Kill ten runs with all their processes at random times, then complete the run."""
    draw, output = random.Random(1), folder / "killed"
    left, wrong = [], 0
    for _ in range(KILLS):
        process = runs.started(output)
        # Without the time to start, all of them together would complete the run: most have images left to label.
        wait = draw.uniform(0.1, 2 * seconds / KILLS) + 4
        try:
            process.wait(wait)
        except psutil.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        left.append(len(files(output)))
        wrong += differences(output, undisturbed, complete=False)
        print(f"killed after {wait:.1f} s: {left[-1]} files, {wrong} wrong", flush=True)
    status = runs.ended(output)
    wrong += differences(output, undisturbed, complete=True)
    return {"kills": KILLS, "files after each kill": left, "exit status at last": status, "wrong files": wrong}


def full(runs: Runs, disk: Path, undisturbed: Path) -> dict[str, Any]:
    """Run on a disk that is almost full, then again with enough space."""
    output, ballast = disk / "pseudo-labels", disk / "ballast"
    try:
        with ballast.open("wb") as file:
            left = shutil.disk_usage(disk).free - ROOM
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 20)))
        status = runs.ended(output)
        found = {"exit status on the full disk": status, "files": len(files(output))}
        wrong = differences(output, undisturbed, complete=False)
        log = (runs.logs / f"{output.name}.log").read_text(errors="replace")
        messages = (line for line in log.splitlines() if "Make room" in line)
        found["message"] = next(messages, "no message about room").replace(str(disk), "DISK")
        ballast.unlink()
        found["exit status with room"] = runs.ended(output)
        return {**found, "wrong files": wrong + differences(output, undisturbed, complete=True)}
    finally:
        ballast.unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)


def actor_killed(runs: Runs, folder: Path, undisturbed: Path) -> dict[str, Any]:
    """Run on Ray, and kill an actor when a third of the images is labeled."""
    output = folder / "ray"
    process = runs.started(output, "--engine", "ray", "--actors", "2")
    target, kills = len(files(undisturbed)) // 3, 0
    while process.poll() is None:
        if not kills and len(files(output)) >= target:
            actors = [one for one in process.children(recursive=True) if "_Model" in " ".join(one.cmdline())]
            if actors:
                actors[0].kill()
                kills = 1
        time.sleep(0.5)
    if not kills:
        raise SystemExit("no actor of Ray was found to be killed")
    wrong = differences(output, undisturbed, complete=True)
    return {"actors killed": kills, "exit status": process.wait(), "wrong files": wrong}


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("voc", "classifier", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=180, help="readable images")
    parser.add_argument("--disk", type=Path, help="a small file system, to be filled")
    parser.add_argument("--result", type=Path, default=RESULT)
    given, options = parser.parse_known_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    folder = make_writable_folder(given.folder)
    listed, labels = written_list(given.voc, folder, given.count)
    command = [sys.executable, "-m", "dcsm_attr", "pseudo-label", str(listed), "--image-labels", str(labels)]
    runs = Runs([*command, "--weights", str(given.classifier), "--overlays", "10", *options], folder)
    undisturbed = folder / "undisturbed"
    begun = time.monotonic()
    status = runs.ended(undisturbed)
    seconds = time.monotonic() - begun
    lines = manifest(undisturbed)
    failed = [line for line in lines if "error" in line]
    results: dict[str, Any] = {
        "undisturbed": {
            "exit status": status,
            "labeled": lines[0]["labeled"],
            "failures in the manifest": len(failed),
            "of them broken on purpose": sum(line["name"].startswith("broken") for line in failed),
        },
        "killed by SIGKILL": killed(runs, folder, undisturbed, seconds),
    }
    if given.disk is not None:
        results["full disk"] = full(runs, given.disk, undisturbed)
    if _has_ray():
        results["actor of Ray killed"] = actor_killed(runs, folder, undisturbed)
    for name, found in results.items():
        print(name, found)
    options = ["--count", str(given.count), *options, *([] if given.disk is None else ["--disk", "DISK"])]
    named = [Path(option).name if Path(option).is_file() else option for option in options]
    command_line = shlex.join(["python", "-m", "benchmarks.pseudo_label_faults", "VOC", "CLASSIFIER", "FOLDER", *named])
    write_json(given.result, {"measured": run_environment(command_line), "images": given.count + BROKEN, **results})


def _has_ray() -> bool:
    try:
        import ray.data  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()

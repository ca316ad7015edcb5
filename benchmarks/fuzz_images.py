"""Segment broken image files with `dcsm-attr segment`: no crash, no hang, and every file accounted for.

    python -m benchmarks.fuzz_images --files 5040

Generates scenes, saves them in six formats, mutates the files, and passes them to the command in batches, each in its
own process and folder. Every file must be either segmented, with complete outputs, or named in run.json with the
reason; the input must not change, and no file may appear outside the output folder. Takes about forty minutes on two
cores. Writes results/fuzz/images.md and .json. Exits with status 1 if there was a problem; the files of that batch are
kept.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.broken_images import MUTATIONS, Seeds, generate_files
from dcsm_attr.evaluation.report import markdown_table
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import atomic_path, make_writable_folder, write_json

BATCH = 120
# A valid image takes one second.
SECONDS_PER_FILE = 10
MAX_PIXELS = 100_000
OPTIONS = ("--weights", "demo", "--device", "cpu", "--max-pixels", str(MAX_PIXELS), "--output", "out")
_WRITTEN = {"labels.png", "overlay.png", "overview.png", "maps.npz", "manifest.json"}
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WebP": "webp", "TIFF": "tif"}


@dataclass(frozen=True)
class BrokenFile:
    """A file, its format and its mutation."""

    name: str
    kind: str
    mutation: str
    content: bytes


@dataclass(frozen=True)
class Outcome:
    """Result of a batch.

    Attributes:
        reasons: by file name, why the file was rejected; None if it was segmented.
        problems: descriptions of violated requirements; empty if there are none.
        seconds: duration of the command.
    """

    reasons: dict[str, str | None]
    problems: list[str]
    seconds: float


def broken_files(count: int, seed: int) -> Iterator[BrokenFile]:
    """Generate the files of a run; all formats and mutations occur equally often."""
    seeds: Seeds = generate_files(seed)
    kinds, mutations = list(seeds), list(MUTATIONS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        mutation = mutations[number // len(kinds) % len(mutations)]
        random = Random(f"{seed} {number}")
        content = MUTATIONS[mutation](random.choice(seeds[kind]), seeds, random)
        name = f"{number:05}-{mutation.replace(' ', '-')}.{_ENDINGS[kind]}"
        yield BrokenFile(name, kind, mutation, content)


#: Runs the command in a folder with a number of files; returns its exit status and its standard error.
Command = Callable[[Path, int], tuple[int, str]]


def run_command(sandbox: Path, files: int) -> tuple[int, str]:
    """Run the command in a process.

    Raises:
        subprocess.TimeoutExpired: if it does not end in time.
    """
    # Matplotlib writes its list of fonts there.
    folders = {"HOME": "home", "MPLCONFIGDIR": "home", "TMPDIR": "temporary"}
    ended = subprocess.run(
        [sys.executable, "-m", "dcsm_attr", "segment", "in", *OPTIONS],
        cwd=sandbox,
        env={**os.environ, **{name: str(sandbox / folder) for name, folder in folders.items()}},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60 + SECONDS_PER_FILE * files,
        check=False,
    )
    return ended.returncode, ended.stderr


def segment_files(files: list[BrokenFile], sandbox: Path, command: Command = run_command) -> Outcome:
    """Run the command on files in an empty sandbox, and check its output."""
    folder = sandbox / "in"
    for part in ("in", "home", "temporary"):
        (sandbox / part).mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.content)
    before = _digests(folder)
    start = time.perf_counter()
    try:
        status, errors = command(sandbox, len(files))
    except subprocess.TimeoutExpired:
        return Outcome({}, ["did not end"], time.perf_counter() - start)
    seconds = time.perf_counter() - start
    problems = []
    if _digests(folder) != before:
        problems.append("the input was changed")
    unexpected = {path.name for path in sandbox.iterdir()} - {"in", "out", "home", "temporary"}
    unexpected |= {path.name for path in (sandbox / "temporary").rglob("*") if path.is_file()}
    if unexpected:
        problems.append(f"files outside the output folder: {sorted(unexpected)}")
    has_manifest = (sandbox / "out" / "run.json").is_file()
    if "Traceback" in errors or status not in (0, 1) or not has_manifest:
        return Outcome({}, [*problems, f"crashed with {status}: {errors[-2000:]}"], seconds)
    reasons, output_problems = _check_output(files, sandbox / "out")
    if (status == 1) != any(reasons.values()):
        problems.append(f"status {status}, but {sum(map(bool, reasons.values()))} were rejected")
    return Outcome(reasons, problems + output_problems, seconds)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _check_output(files: list[BrokenFile], output: Path) -> tuple[dict[str, str | None], list[str]]:
    """Return the reason of each rejected file, and problems of the manifest or the outputs."""
    manifest = json.loads((output / "run.json").read_text(encoding="utf-8"))
    named = Counter(Path(entry["image"]).name for entry in manifest["results"] + manifest["failures"])
    problems = []
    if named != Counter(file.name for file in files):
        problems.append("run.json does not name every file exactly once")
    if not all(entry["reason"].strip() for entry in manifest["failures"]):
        problems.append("run.json has a failure without a reason")
    folders = [entry["folder"] for entry in manifest["results"]]
    expected = {*folders, "run.json", "settings.json"}
    if {path.name for path in output.iterdir()} != expected or len(set(folders)) < len(folders):
        problems.append("the output folder holds something else than run.json and a folder for each result")
    for folder in folders:
        try:
            _check_whole(output / folder)
        except (OSError, ValueError, KeyError, AssertionError) as error:
            problems.append(f"{folder}: not whole ({type(error).__name__}: {error})")
    rejected = {Path(entry["image"]).name: entry["reason"] for entry in manifest["failures"]}
    return {file.name: rejected.get(file.name) for file in files}, problems


def _check_whole(folder: Path) -> None:
    """Check that the outputs of one image are complete, can be decoded, and belong together."""
    assert {path.name for path in folder.iterdir()} == _WRITTEN, "other files than those that are promised"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    size = tuple(manifest["size"])
    for name in ("labels.png", "overlay.png", "overview.png"):
        with Image.open(folder / name) as image:
            image.load()
            if name != "overview.png":
                assert (image.height, image.width) == size, f"{name} has another size"
            if name == "labels.png":
                shown = set(np.unique(np.asarray(image)).tolist())
                assert shown <= {0, *map(int, manifest["label_values"])}, "labels that are not in the manifest"
    with np.load(folder / "maps.npz") as arrays:
        for name in ("maps", "raw", "probabilities"):
            assert arrays[name].shape[1:] == size, f"{name} has another size"
            assert np.isfinite(arrays[name]).all(), f"{name} is not finite"
        assert len(arrays["classes"]) == len(arrays["maps"]), "classes and maps differ in number"


def general_reason(reason: str) -> str:
    """Remove names and numbers from a reason, so that equal reasons can be counted."""
    general = re.sub(r"b['\"].*['\"]", "...", reason.split(": ", 1)[1])
    return re.sub(r"0x[0-9a-f]+|\d+", "N", general)


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Run all batches.

    Returns:
        The counts, the reasons and the problems, JSON-serializable.
    """
    files = list(broken_files(count, seed))
    tables: dict[str, dict[str, Counter[str]]] = {}
    reasons: Counter[str] = Counter()
    problems: list[str] = []
    seconds, accounted = 0.0, 0
    for start in range(0, count, BATCH):
        batch = files[start : start + BATCH]
        sandbox = Path(tempfile.mkdtemp(prefix="fuzz-"))
        outcome = segment_files(batch, sandbox)
        for file in batch:
            of_kind = tables.setdefault(file.kind, {}).setdefault(file.mutation, Counter())
            reason = outcome.reasons.get(file.name, "lost: in a crash")
            of_kind["read" if reason is None else "rejected"] += 1
            if reason is not None:
                reasons[general_reason(reason)] += 1
            if reason is not None and file.mutation == "untouched":
                outcome.problems.append(f"{file.name} is whole, but was rejected: {reason}")
        seconds += outcome.seconds
        accounted += len(outcome.reasons)
        problems += [f"files {start} and after: {problem}" for problem in outcome.problems]
        if outcome.problems:
            print(f"{sandbox}: {outcome.problems}")
        else:
            shutil.rmtree(sandbox)
        print(f"{start + len(batch)} of {count} files, {seconds:.0f} s, {len(problems)} problems", flush=True)
    return {
        "files": count,
        "seed": seed,
        "accounted for": accounted,
        "segmented": sum(counts["read"] for of_kind in tables.values() for counts in of_kind.values()),
        "seconds": round(seconds, 1),
        "problems": problems,
        "counts": {kind: {name: dict(counts) for name, counts in rows.items()} for kind, rows in tables.items()},
        "reasons": dict(reasons.most_common()),
    }


def _markdown(result: dict[str, Any], measured: dict[str, Any]) -> str:
    rows = [["segmented of all", *result["counts"]]]
    for mutation in MUTATIONS:
        cells = [of_kind.get(mutation, {}) for of_kind in result["counts"].values()]
        rows.append([mutation, *(f"{one.get('read', 0)} of {sum(one.values())}" for one in cells)])
    reasons = [["reason of the rejection", "files"], *([f"`{name}`", str(n)] for name, n in result["reasons"].items())]
    command = shlex.join(["dcsm-attr", "segment", "in", *OPTIONS])
    summary = (
        f"{result['files']} files of six formats, broken with seed {result['seed']}: {result['segmented']} were "
        f"segmented, with complete and decodable outputs; {result['files'] - result['segmented']} were rejected, "
        f"each named in run.json with its reason. {result['accounted for']} of {result['files']} are accounted for "
        f"exactly once. Crashes, hangs, files outside the output folder and other problems: "
        f"{len(result['problems'])}. {result['seconds']:.0f} s, in batches of {BATCH} files, each a process "
        f"`{command}`."
    )
    origin = "`{command}`, {processor}, {cores} cores, commit {commit}.".format(**measured)
    blocks = ["# Broken image files", summary, markdown_table(rows), markdown_table(reasons), origin]
    blocks[2:2] = [f"- {problem}" for problem in result["problems"]]
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    """Run all batches and write the result; exit with status 1 if there are problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5040)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = fuzz(arguments.files, arguments.seed)
    measured = run_environment(f"python -m benchmarks.fuzz_images --files {arguments.files} --seed {arguments.seed}")
    folder = make_writable_folder(Path(__file__).parent / "results" / "fuzz")
    write_json(folder / "images.json", {"measured": measured, **result})
    with atomic_path(folder / "images.md") as path:
        path.write_text(_markdown(result, measured), encoding="utf-8")
    sys.exit(1 if result["problems"] else 0)


if __name__ == "__main__":
    main()

"""Images per second and memory of `dcsm-attr pseudo-label` with one process, two, and two actors of Ray.

    python -m benchmarks.pseudo_label_rates VOC CLASSIFIER FOLDER [--count N] [OPTIONS OF pseudo-label]

Each engine labels all images of train and val into FOLDER, in its own process. Its memory (with that of its children)
and the number of finished images are sampled every three seconds. The rate counts from the first finished batch to the
last one; the time to start is reported separately. Writes results/pseudo_label_rates.json and .png.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from dcsm_attr.datasets.voc import read_voc_list
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import atomic_buffer, make_writable_folder, write_json

RESULT = Path(__file__).parent / "results" / "pseudo_label_rates.json"
_PAUSE = 3.0
ENGINES = {
    "one process": ("--workers", "1"),
    "two processes": ("--workers", "2"),
    "Ray, two actors": ("--engine", "ray", "--actors", "2"),
}


def image_list(voc: Path, folder: Path, count: int) -> tuple[Path, int]:
    """Write a list of evenly spaced images of train and val."""
    paths = [entry.image.resolve() for split in ("train", "val") for entry in read_voc_list(voc, split)]
    total = len(paths)
    chosen = [paths[i * total // count] for i in range(min(count or total, total))] if count else paths
    listed = folder / "images.txt"
    listed.write_text("".join(f"{path}\n" for path in chosen))
    return listed, len(chosen)


def watched(command: list[str], output: Path) -> dict[str, Any]:
    """Run a command, and sample the number of finished images and the memory over time."""
    start = time.monotonic()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        memory = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                # Shared pages, such as Ray's store and torch's libraries, count in equal shares for their processes.
                memory += one.memory_full_info().pss
            except psutil.Error:
                continue
        finished = sum(1 for _ in (output / "labels").glob("*.png"))
        samples.append((round(time.monotonic() - start, 1), finished, round(memory / 2**20)))
        # Adding up the memory of twenty processes takes a tenth of a second of a core.
        time.sleep(_PAUSE)
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)}: ended with {process.returncode}")
    return {"seconds": round(time.monotonic() - start, 1), "seconds, images, MiB": samples}


def summarize(found: dict[str, Any], num_images: int) -> dict[str, Any]:
    """The rate, the time to start, and the memory in the second and the last quarter of the images."""
    samples = found["seconds, images, MiB"]
    first = next(sample for sample in samples if sample[1])
    last = next((sample for sample in samples if sample[1] == num_images), (found["seconds"], num_images, 0))
    rate = (num_images - first[1]) / (last[0] - first[0])

    def mean(low: float, high: float) -> float:
        memory = [mib for _, done, mib in samples if low <= done / num_images < high]
        return round(sum(memory) / max(1, len(memory)))

    return {
        "images per second": round(rate, 3),
        "seconds until the first": first[0],
        "seconds in all": found["seconds"],
        "MiB, second quarter": mean(0.25, 0.5),
        "MiB, last quarter": mean(0.75, 1.0),
        "MiB, most": max(mib for *_, mib in samples),
        "samples": samples[:: max(1, len(samples) // 100)],
    }


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot the memory over the number of finished images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, found in results.items():
        _, done, memory = zip(*found["samples"], strict=True)
        axes.plot(done, [mib / 1024 for mib in memory], label=name)
    axes.set(xlabel="finished images", ylabel="GiB, of all processes", ylim=(0, None))
    axes.legend()
    with atomic_buffer(path) as file:
        figure.savefig(file, dpi=100)


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("voc", "classifier", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=0, help="number of images; 0: all")
    parser.add_argument("--result", type=Path, default=RESULT)
    given, options = parser.parse_known_args()
    folder = make_writable_folder(given.folder)
    listed, num_images = image_list(given.voc, folder, given.count)
    labels = given.voc / "image_labels.csv"
    results = {}
    for name, engine in ENGINES.items():
        output = folder / name
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "dcsm_attr", "pseudo-label", str(listed), "--image-labels", str(labels)]
        command += ["--weights", str(given.classifier), *engine, *options, "--output", str(output)]
        results[name] = summarize(watched(command, output), num_images)
        print(name, {key: value for key, value in results[name].items() if key != "samples"}, flush=True)
    rates = {name: found["images per second"] for name, found in results.items()}
    overhead = 100 * (rates["two processes"] / rates["Ray, two actors"] - 1)
    print(f"Ray takes {overhead:.1f} % more time per image than two processes")
    named = [Path(option).name if Path(option).is_file() else option for option in options]
    command_line = shlex.join(["python", "-m", "benchmarks.pseudo_label_rates", "VOC", "CLASSIFIER", "FOLDER", *named])
    content = {
        "measured": run_environment(command_line),
        "images": num_images,
        "by engine": results,
        "Ray's overhead in %": round(overhead, 1),
    }
    write_json(given.result, content)
    draw(results, given.result.with_suffix(".png"))


if __name__ == "__main__":
    main()

"""Write results of comparisons as Markdown and JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.comparison import OURS, Outcome, Scaling
from dcsm_attr.evaluation.report import markdown_table, provenance_section
from dcsm_attr.evaluation.result import run_environment
from dcsm_attr.io import atomic_path, make_writable_folder

__all__ = ["outcome_table", "scaling_text", "write_benchmark"]

_MIB = 2**20


def write_benchmark(
    outcomes: Sequence[Outcome], scalings: Sequence[Scaling], folder: str | Path, name: str, *, command: str
) -> list[Path]:
    """Write ``NAME.md`` and ``NAME.json`` into a folder, which is created if missing.

    Args:
        outcomes: results of comparisons.
        scalings: further measurements.
        folder: where to write; earlier files with these names are replaced.
        name: stem of the file names.
        command: reproduces the result, see :func:`dcsm_attr.evaluation.result.run_environment`.

    Returns:
        The paths written.

    Raises:
        OSError: if the folder cannot be written to.
    """
    folder = make_writable_folder(folder)
    measured = {**run_environment(command), "threads": torch.get_num_threads()}
    content = {
        "measured": measured,
        "comparisons": [_outcome_content(outcome) for outcome in outcomes],
        "scaling": [scaling.to_dict() for scaling in scalings],
    }
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    with atomic_path(paths[0]) as path:
        path.write_text(_markdown(outcomes, scalings, measured), encoding="utf-8")
    with atomic_path(paths[1]) as path:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return paths


def _outcome_content(outcome: Outcome) -> dict[str, Any]:
    return {
        "title": outcome.title,
        "seconds": {name: timing.to_dict() for name, timing in outcome.timings.items()},
        "times ours": {name: round(outcome.ratio(name), 4) for name in outcome.timings if name != OURS},
        "peak memory in bytes": dict(outcome.memory),
        **({"largest errors": dict(outcome.errors)} if outcome.errors else {}),
    }


def _markdown(outcomes: Sequence[Outcome], scalings: Sequence[Scaling], measured: Mapping[str, Any]) -> str:
    parts = [
        "# Speed",
        "Implementations run in turn in one process, after one warm-up run each. Peak memory is the increase during "
        "one run, in a separate process.",
    ]
    for outcome in outcomes:
        parts += [f"## {outcome.title}", outcome_table(outcome)]
    for scaling in scalings:
        parts += [f"## {scaling.title}", scaling_text(scaling)]
    return "\n\n".join([*parts, provenance_section(measured)]) + "\n"


def outcome_table(outcome: Outcome) -> str:
    """Format one comparison as a Markdown table: milliseconds, ratio to ours, peak memory, errors if known."""
    error = ["largest error"] if outcome.errors else []
    rows = [["", "median ms", "fastest", "slowest", "times ours", "peak memory MiB", *error]]
    for name, timing in outcome.timings.items():
        memory = outcome.memory.get(name)
        rows.append(
            [
                name,
                *(f"{1000 * value:.0f}" for value in timing.to_dict().values()),
                f"{outcome.ratio(name):.2f}",
                "-" if memory is None else f"{memory / _MIB:.0f}",
                *(f"{outcome.errors[name]:.0e}" for _ in error),
            ]
        )
    return markdown_table(rows)


def scaling_text(scaling: Scaling) -> str:
    """Format milliseconds per count and the line through them as Markdown."""
    rows = [[scaling.unit, *map(str, scaling.counts)], ["ms", *(f"{1000 * s:.0f}" for s in scaling.seconds)]]
    backward = (
        ""
        if scaling.partial_backward is None
        else f" One partial backward pass of plain PyTorch takes {1000 * scaling.partial_backward:.0f} ms."
    )
    return (
        f"{markdown_table(rows)}\n\nA straight line with {1000 * scaling.slope:.0f} ms for each of the {scaling.unit} "
        f"explains {scaling.r_squared:.4f} of the variance.{backward}"
    )

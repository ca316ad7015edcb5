"""What ``python -m benchmarks.speed`` wrote, by the tables of the package itself."""

from collections.abc import Mapping
from typing import Any

from benchmarks.speed.comparison import Outcome

from benchmarks.speed.report import outcome_table, scaling_text
from benchmarks.speed.scaling import Scaling
from benchmarks.speed.timing import Timing
from docs_pages.results import origin

__all__ = ["comparisons"]


def comparisons(content: Mapping[str, Any]) -> list[str]:
    """Every comparison and every line of one result file, and where they were measured."""
    blocks = []
    for comparison in content["comparisons"]:
        blocks += [f"### {comparison['title']}", outcome_table(_outcome(comparison))]
    for scaling in content["scaling"]:
        blocks += [f"### {scaling['title']}", scaling_text(_scaling(scaling))]
    return [*blocks, origin(content["measured"])]


def _outcome(comparison: Mapping[str, Any]) -> Outcome:
    timings = {
        name: Timing((seconds["fastest"], seconds["median"], seconds["slowest"]))
        for name, seconds in comparison["seconds"].items()
    }
    return Outcome(
        comparison["title"], timings, comparison["peak memory in bytes"], comparison.get("largest errors", {})
    )


def _scaling(content: Mapping[str, Any]) -> Scaling:
    seconds = content["seconds"]
    return Scaling(
        content["title"],
        content["title"].split()[-1],
        [int(count) for count in seconds],
        list(seconds.values()),
        content.get("seconds of a partial backward pass"),
    )

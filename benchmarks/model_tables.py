"""Format the result of :mod:`benchmarks.model_zoo` as tables, for its report and the page of models."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dcsm_attr.evaluation.report import markdown_table

FORWARD, OURS = "one forward pass", "attribute"
# The default scales of DistinctClassSaliency.
_SCALES = (0.8, 1.0, 1.2)


def report(content: Mapping[str, Any]) -> str:
    """Return the report in Markdown."""
    return f"# Every classification CNN of torchvision\n\n{tables(content)}\n"


def tables(content: Mapping[str, Any]) -> str:
    """Return summary, origin, cost and layers as Markdown, with headings of the third level."""
    parts = [
        summary(content),
        model_origin(content),
        "### Cost",
        cost_table(content),
        "### Layers",
        layer_table(content),
    ]
    return "\n\n".join(parts)


def passes(found: Mapping[str, Any]) -> bool:
    """Return whether all checks pass and all rectifiers are guided."""
    return "failed" not in found and found["rectifiers"]["guided"] == found["rectifiers"]["in graph"]


def summary(content: Mapping[str, Any]) -> str:
    """Return how many models pass, and the cost of an attribution in forward passes."""
    passed = sum(map(passes, content["models"].values()))
    measured = [found["processor seconds"] for found in content["models"].values() if "failed" not in found]
    ratios = sorted(seconds[OURS] / seconds[FORWARD] for seconds in measured) or [0.0]
    size = content["size"]
    return (
        f"{passed} of {len(content['models'])} pass. `attribute` takes {ratios[0]:.1f} to {ratios[-1]:.1f} times one "
        f"forward pass, in the median {ratios[len(ratios) // 2]:.1f}: three scales, which are "
        f"{sum(round(s * size) ** 2 for s in _SCALES) / size**2:.1f} times the pixels, with a forward pass and "
        f"{content['classes']} backward passes to the first layer each."
    )


def model_origin(content: Mapping[str, Any]) -> str:
    """Return command, machine and versions of the measurement."""
    return (
        "`{command}`, {processor}, one thread of {cores} cores, no GPU, torch {torch}, torchvision "
        "{torchvision}, commit {commit}."
    ).format(**content["measured"])


def cost_table(content: Mapping[str, Any]) -> str:
    """Return rectifiers, time and memory per model."""
    rows = [["model", "guided", "above the layers", "forward ms", "attribute ms", "times", "forward MiB"]]
    rows[0] += ["attribute MiB", "pass"]
    for name, found in sorted(content["models"].items()):
        if "failed" in found:
            rows.append([name, *["-"] * 7, f"no: {found['failed']}"])
            continue
        seconds = [found["processor seconds"][implementation] for implementation in (FORWARD, OURS)]
        memory = [found["peak memory in bytes"][implementation] / 2**20 for implementation in (FORWARD, OURS)]
        count = found["rectifiers"]
        rows.append(
            [
                name,
                f"{count['guided']} of {count['in graph']}",
                str(count["above the first layer"]),
                *(f"{1000 * s:.0f}" for s in seconds),
                f"{seconds[1] / seconds[0]:.1f}",
                *(f"{m:.0f}" for m in memory),
                "yes" if passes(found) else "no",
            ]
        )
    return markdown_table(rows)


def layer_table(content: Mapping[str, Any]) -> str:
    """Return the default layers per model."""
    rows = [["model", "default layers by stride, with the channels of their inputs"]]
    measured = {name: found for name, found in sorted(content["models"].items()) if "failed" not in found}
    return markdown_table([*rows, *([name, _layer_text(found["layers"])] for name, found in measured.items())])


def _layer_text(layers: Sequence[Mapping[str, Any]]) -> str:
    strides = defaultdict(list)
    for layer in layers:
        strides[layer["stride"]].append(f"{layer['name']} ({layer['channels']})")
    return "; ".join(f"**{stride}**: {', '.join(names)}" for stride, names in strides.items())

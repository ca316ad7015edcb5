"""Results of the scripts in ``benchmarks/``, each of a form of its own, as tables."""

from collections.abc import Mapping
from typing import Any

from dcsm_attr.evaluation.report import format_value, markdown_table

__all__ = [
    "broken_files",
    "contrast_forms",
    "crf_parity",
    "demo_seeds",
    "fault_table",
    "fickle_rates",
    "map_shares",
    "preset_search",
    "pseudo_label_rates",
    "region_growing",
    "seed_shares",
    "seeded_networks",
    "stochastic_forms",
]

_SAMPLES = "samples"


def _table(head: list[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a name, one column a key of the first row, values as they stand."""
    columns = next(iter(rows.values()))
    return markdown_table(
        [
            [*head, *columns],
            *(
                [*name.split(", ", len(head) - 1), *(format_value(row[key]) for key in columns)]
                for name, row in rows.items()
            ),
        ]
    )


def demo_seeds(content: Mapping[str, Any]) -> str:
    """Mean IoU of the demo's networks, by the seeds of the networks and of the scenes."""
    steps = list(content["results"][0]["mean IoU in %"])
    rows = [["seed of the network", "seed of the scenes", *steps]]
    rows += [
        [str(one["network"]), str(one["scenes"]), *(f"{one['mean IoU in %'][step]:.1f}" for step in steps)]
        for one in content["results"]
    ]
    return markdown_table(rows)


def map_shares(content: Mapping[str, Any]) -> str:
    """How much of each class's map falls on its own animal."""
    rows = [["photograph", "class", "box, of the picture", "raw", "distinct"]]
    for photograph, animals in content["share of each map on its own animal"].items():
        rows += [
            [photograph, animal, *(f"{shares[key]:.2f}" for key in ("area", "raw", "distinct"))]
            for animal, shares in animals.items()
        ]
    return markdown_table(rows)


def fickle_rates(content: Mapping[str, Any], figure: str) -> str:
    """One figure of FickleNet's seeds (mean IoU, covered, spilled) over rate and number of maps."""
    rates = content["by rate, then by draws"]
    draws = list(next(iter(rates.values())))
    rows = [["dropout", "rate", *(f"N = {count}" for count in draws)]]
    rows += [
        [*name.split(", "), *(f"{by_draws[count][figure]:.1f}" for count in draws)] for name, by_draws in rates.items()
    ]
    return markdown_table(rows)


def seed_shares(content: Mapping[str, Any]) -> str:
    """Seeds by the share of the maximum that foreground is above, and the share that background is."""
    return _table(["maps", "share", "background"], {_values_alone(name): row for name, row in content["in %"].items()})


def _values_alone(name: str) -> str:
    maps, share, background = name.split(", ")
    return ", ".join([maps, share.removeprefix("share "), background.removeprefix("background ")])


def seeded_networks(content: Mapping[str, Any]) -> str:
    """Segmentation networks by the label maps that they learned from."""
    rows = {
        name: {key: f"{value:.1f}" if isinstance(value, float) else value for key, value in row.items()}
        for name, row in content["in %"].items()
    }
    return _table(["label maps to learn from"], rows)


def preset_search(content: Mapping[str, Any]) -> str:
    """The mean IoU of each choice of layers and of the CRF, over the exponent of the background."""
    exponents = list(content["results"][0]["mean IoU in %, by exponent"])
    widths = ("bilateral_weight", "bilateral_xy", "bilateral_rgb", "gaussian_weight", "gaussian_xy")
    rows = [["layers", "CRF", *(f"{float(exponent):g}" for exponent in exponents)]]
    for one in content["results"]:
        crf = " / ".join(f"{one['crf'][width]:g}" for width in widths)
        rows.append([one["layers"], crf, *(f"{one['mean IoU in %, by exponent'][key]:.1f}" for key in exponents)])
    return markdown_table(rows)


def crf_parity(content: Mapping[str, Any]) -> str:
    """The CRF beside pydensecrf: how far apart, and how fast."""
    rows = [["kernels", "labels", "labels equal", "largest difference of a probability", "ours", "pydensecrf", "ratio"]]
    for name, row in content["rows"].items():
        kernels, labels = name.rsplit(", ", 1)
        seconds = [f"{row[key]:.2f} s" for key in ("seconds", "seconds of pydensecrf")]
        equal = f"{100 * row['labels equal']:.7g} %"
        rows.append(
            [kernels, labels.split()[0], equal, f"{row['largest difference']:.0e}", *seconds, f"{row['ratio']:.2f}"]
        )
    return markdown_table(rows)


def stochastic_forms(content: Mapping[str, Any]) -> str:
    """Seconds and memory of each form of stochastic hidden unit selection, and of many maps by two ways."""
    rows = [["work", "form", "seconds", "MiB"]]
    for work, forms in content.items():
        if work in ("measured", "rounds"):
            continue
        for form, cost in forms.items():
            seconds, mib = (cost["seconds"], f"{cost['MiB']:.0f}") if isinstance(cost, dict) else (cost, "-")
            rows.append([work.removesuffix(", seconds"), form, f"{seconds:.4f}", mib])
    return markdown_table(rows)


def contrast_forms(content: Mapping[str, Any]) -> str:
    """Milliseconds of the two forms of Eq. 4 by the number of classes."""
    by_classes = content["seconds by number of classes"]
    forms = next(iter(by_classes.values()))
    rows = [["classes", *by_classes]]
    rows += [[f"{form}, ms", *(f"{1000 * row[form]:.1f}" for row in by_classes.values())] for form in forms]
    return markdown_table(rows)


def region_growing(content: Mapping[str, Any]) -> str:
    """Milliseconds of growing seeds, and of connected components, by the size of the maps."""
    sizes = {key.removesuffix(", seconds"): row for key, row in content.items() if key != "measured"}
    return markdown_table(
        [
            ["size of the maps", *(f"{work}, ms" for work in next(iter(sizes.values())))],
            *([size, *(f"{1000 * seconds:.1f}" for seconds in row.values())] for size, row in sizes.items()),
        ]
    )


def pseudo_label_rates(content: Mapping[str, Any]) -> str:
    """Photographs a second, and memory, by who does the work."""
    engines = content["by engine"]
    return _table(
        ["engine"],
        {name: {key: value for key, value in row.items() if key != _SAMPLES} for name, row in engines.items()},
    )


def fault_table(content: Mapping[str, Any]) -> str:
    """What each fault did to a run."""
    rows = [["fault", "", ""]]
    for fault, found in content.items():
        if isinstance(found, dict) and fault != "measured":
            rows += [[fault, key, format_value(value)] for key, value in found.items()]
    return markdown_table(rows)


def broken_files(content: Mapping[str, Any]) -> str:
    """How many broken image files were segmented, by format and by what was done to them; and why others were not."""
    formats = content["counts"]
    damages = next(iter(formats.values()))
    rows = [["segmented of all", *formats]]
    rows += [[damage, *(_read_of_all(formats[name][damage]) for name in formats)] for damage in damages]
    reasons = [["reason of a refusal", "files"], *([why, str(count)] for why, count in content["reasons"].items())]
    said = (
        f"{content['files']} files: {content['segmented']} segmented, the others refused; "
        f"{content['accounted for']} accounted for exactly once; {len(content['problems'])} problems; "
        f"{content['seconds']:.0f} s."
    )
    return "\n\n".join([said, markdown_table(rows), markdown_table(reasons)])


def _read_of_all(counts: Mapping[str, int]) -> str:
    return f"{counts.get('read', 0)} of {sum(counts.values())}"

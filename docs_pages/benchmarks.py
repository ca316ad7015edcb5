"""The page of benchmarks: every committed figure of time, memory, parity and robustness."""

from benchmarks.model_tables import model_origin, summary
from docs_pages.comparisons import comparisons
from docs_pages.layout import page
from docs_pages.results import Results, origin, table_section
from docs_pages.single_results import (
    broken_files,
    contrast_forms,
    crf_parity,
    fault_table,
    pseudo_label_rates,
    region_growing,
    stochastic_forms,
)

__all__ = ["benchmarks"]

_ABOUT = """Every table of this page is made from the files of
[`benchmarks/results/`](../../benchmarks/results) when the site is built; none is typed. Below each stands the command
that measured it, and the machine. Where the time went: [Speed](speed.md)."""

_COMPARISONS = """Implementations run in turn in one process, after one run each to warm up. Peak memory is what an
implementation used more than before it began, in a process of its own."""


def benchmarks(results: Results) -> str:
    """The whole page."""
    return page(
        "Benchmarks",
        [
            _ABOUT,
            *_comparisons(results, "Class maps", "speed/saliency*.json", "speed/scaling.json"),
            *table_section("## The two forms of Eq. 4", results.json("subtraction.json"), contrast_forms),
            "## The dense CRF",
            *_crf(results),
            *_comparisons(results, "From files to label maps", "speed/pipeline*.json"),
            *_comparisons(results, "AffinityNet's random walk", "affinity/walk.json"),
            *table_section(
                "## FickleNet's stochastic hidden units",
                results.json("stochastic_selection.json"),
                stochastic_forms,
                "Features of 41 x 41 x 512, windows of 9 x 9, 20 classes, one thread.",
            ),
            *table_section(
                "## DSRG's region growing",
                results.json("region_growing.json"),
                region_growing,
                "With the connected components that it needs, beside SciPy's.",
            ),
            *_collections(results),
            "## Every classification CNN of torchvision",
            *_models(results),
            "Layers and cost of each: [Models](../models.md).",
            *_robustness(results),
        ],
    )


def _comparisons(results: Results, title: str, *patterns: str) -> list[str]:
    names = [name for pattern in patterns for name in results.names(pattern)]
    blocks = [f"## {title}", _COMPARISONS]
    for name in names:
        blocks += comparisons(results.json(name))
    return blocks


def _crf(results: Results) -> list[str]:
    parity = results.json("crf_parity.json")
    return [
        *table_section(
            "### Beside pydensecrf, photograph by photograph",
            parity,
            crf_parity,
            f"{parity['photographs']} photographs, {parity['iterations']} iterations; median seconds per image.",
        ),
        _COMPARISONS,
        *comparisons(results.json("speed/crf.json")),
    ]


def _collections(results: Results) -> list[str]:
    rates, faults = results.json("pseudo_label_rates.json"), results.json("pseudo_label_faults.json")
    overhead = rates["Ray's overhead in %"]
    return [
        "## Whole collections",
        "### Photographs a second",
        f"{rates['photographs']} photographs. Two actors of Ray take {overhead} % more time an image than two "
        "processes.",
        pseudo_label_rates(rates),
        f"![Photographs and memory over time]({results.link('pseudo_label_rates.png')})",
        origin(rates["measured"]),
        *table_section(
            "### Faults", faults, fault_table, f"{faults['photographs']} photographs, some of them broken on purpose."
        ),
    ]


def _models(results: Results) -> list[str]:
    content = results.json("models/models.json")
    return [summary(content), model_origin(content)]


def _robustness(results: Results) -> list[str]:
    return [
        "## Robustness",
        *table_section("### Broken image files", results.json("fuzz/images.json"), broken_files),
        "### Coverage",
        results.text("robustness/coverage.md"),
        "### Mutants",
        results.text("robustness/mutants.md").replace("\n## ", "\n#### "),
    ]

"""The page of accuracy: every committed figure of how well maps, labels and networks agree with the truth."""

from collections.abc import Mapping
from typing import Any

from docs_pages.ablations import sections
from docs_pages.evaluations import comparison, label_table, rows_per_class, training_log
from docs_pages.layout import folded, page
from docs_pages.results import Results, origin, table_section
from docs_pages.single_results import demo_seeds, fickle_rates, map_shares, preset_search, seed_shares, seeded_networks

__all__ = ["accuracy"]

_ABOUT = """Every table of this page is made from the files of
[`benchmarks/results/`](../../benchmarks/results) when the site is built; none is typed. Below each stands the command
that measured it, and the machine. Mean IoU is in per cent. *Known* is the protocol of pseudo-labels: the image-level
labels are told; *detected* that of a test set: nothing is told. The figures of a subset of VOC compare with no
published one. What they mean: [DCSM](voc.md), [AffinityNet](affinity.md), [FickleNet and networks](ficklenet.md)."""

_COLUMNS = """*Eq. 7* takes the background as one minus the maximum of the maps; *own background* takes it to the power
at which a method is best on images of the training set, the *exponent*. *Coverage* is the share of the true
foreground that is labeled as foreground, *mistaken* the share of this that has a wrong class, *spilled* the share of
what is labeled as foreground that is background; before the CRF, with a background of its own, in per cent."""


def accuracy(results: Results) -> str:
    """The whole page."""
    return page(
        "Accuracy",
        [
            _ABOUT,
            *_voc(results),
            *_demo(results),
            "## The tables of the DCSM paper, and further ones",
            _COLUMNS,
            *_tables(results, "ablations_*/*.json"),
            *_affinity(results),
            *_ficklenet(results),
        ],
    )


def _voc(results: Results) -> list[str]:
    names = [*results.names("voc_*.json"), *results.names("*/*/evaluation.json")]
    contents = {name: results.json(name) for name in names}
    reports = {name: results.link(name.replace(".json", ".md")) for name in names}
    logs = {name: results.csv(name) for name in results.names("*_training.csv")}
    search = results.json("tune_preset.json")
    return [
        "## PASCAL VOC",
        next(iter(contents.values()))["data"],
        comparison(contents, reports),
        *(rows_per_class(name, content) for name, content in contents.items()),
        "### How the classifiers learned",
        "What `dcsm-attr train` logged; the commands stand [beside the networks](voc.md).",
        *(folded(name, [training_log(rows)]) for name, rows in logs.items()),
        *table_section(
            "### How the preset `tuned` was chosen",
            search,
            preset_search,
            f"Mean IoU after the CRF on {search['photographs']} photographs that the classifier had not seen, by the "
            "exponent of the background; known classes, subtracted from each other alone. The CRF by w1, gamma alpha, "
            "gamma beta, w2, gamma gamma of Eq. 8.",
        ),
        *table_section(
            "### Two photographs of two animals",
            results.json("animal_share.json"),
            map_shares,
            "The share of each class's map that falls on its own animal, in boxes drawn by eye.",
        ),
    ]


def _demo(results: Results) -> list[str]:
    demo = results.json("demo_seeds.json")
    about = f"{demo['scenes']} unseen scenes; background and eight classes, those that the network detects."
    return table_section("## The demo", demo, demo_seeds, about)


def _tables(results: Results, pattern: str) -> list[str]:
    contents: dict[str, Mapping[str, Any]] = {name: results.json(name) for name in results.names(pattern)}
    pictures = {
        # The table's own picture before that of its exponents, whose name is longer.
        name: [results.link(one) for one in sorted(results.names(f"{name.removesuffix('.json')}*.png"), key=len)]
        for name in contents
    }
    return sections(contents, pictures)


def _affinity(results: Results) -> list[str]:
    labels = {name: results.json(name) for name in results.names("affinity/labels_*.json")}
    return [
        "## AffinityNet",
        *_tables(results, "affinity/*-known.json"),
        "On photographs of the training set:",
        *_tables(results, "affinity/train/*-known.json"),
        "### The confident labels that AffinityNet learns from",
        label_table(labels),
        origin(next(iter(labels.values()))["measured"]),
    ]


def _ficklenet(results: Results) -> list[str]:
    rates = results.json("fickle_rates.json")
    shares = results.json("seed_shares.json")
    titles = {
        "mean IoU": "Mean IoU of the seeds",
        "covered": "Foreground that the seeds cover, in %",
        "spilled": "Of the seeds' foreground, what is background, in %",
    }
    return [
        "## FickleNet, seeds, and segmentation networks",
        "### FickleNet over rate and number of maps",
        f"{rates['photographs']} photographs; what no map is sure of counts as background.",
        *(block for key, title in titles.items() for block in (f"**{title}**", fickle_rates(rates, key))),
        f"![Mean IoU over the number of maps]({results.link('fickle_rates.png')})",
        origin(rates["measured"]),
        *table_section(
            "### Seeds of class maps",
            shares,
            seed_shares,
            f"In %, on {shares['photographs']} photographs: foreground above a share of the maximum, background the "
            "share of the image with the lowest gradient.",
        ),
        *table_section(
            "### Networks by what they learned from", results.json("seeded_networks.json"), seeded_networks, "In %."
        ),
    ]

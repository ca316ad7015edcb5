"""The pages of results: every file of ``benchmarks/results`` as tables, with its command and machine."""

import csv
import json
import posixpath
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dcsm_attr.evaluation.report import format_value, markdown_table

__all__ = ["Results", "accuracy_page", "benchmarks_page", "tables"]

_ABOUT = """Every table on this page is generated from the files of [`benchmarks/results/`](../../benchmarks/results)
when the site is built. The last line of each result names the command that measured it and the machine."""

_ACCURACY = """Mean IoU is in percent. In the protocol *known*, the image-level labels are given, as for pseudo-labels;
in the protocol *detected*, the classes are those that the classifier detects, as on a test set. Results on a subset of
VOC cannot be compared with published ones. Interpretation: [DCSM](voc.md), [AffinityNet](affinity.md),
[FickleNet and networks](ficklenet.md)."""

_BENCHMARKS = """All implementations run in turn in one process, after one warm-up run each. Peak memory is the
additional memory of an implementation in a separate process. Where the time goes: [Speed](speed.md)."""


class Results:
    """Blocks of Markdown from a folder of results; records which files were used.

    Args:
        folder: ``benchmarks/results``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._used: set[str] = set()

    def names(self, *patterns: str) -> list[str]:
        """The files that match, sorted, as paths below the folder."""
        found = (path for pattern in patterns for path in sorted(self._folder.glob(pattern)))
        return [path.relative_to(self._folder).as_posix() for path in found if path.is_file()]

    def unused(self) -> list[str]:
        """Files that are on no page."""
        return [name for name in self.names("**/*") if name not in self._used]

    def text(self, name: str) -> str:
        """The text of a file."""
        self._used.add(name)
        return (self._folder / name).read_text(encoding="utf-8")

    def json(self, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads(self.text(name))

    def blocks(self, name: str) -> list[str]:
        """One JSON file: its report in Markdown if there is one, otherwise tables of its content; its origin."""
        content, report, figure = self.json(name), name.replace(".json", ".md"), name.replace(".json", ".png")
        figures: list[str] = []
        if self.names(report):
            blocks = [self._report(report)]
        else:
            blocks = tables(content)
            figures = self.names(figure)
        self._used.update(self.names(name.replace(".json", "*.png")))
        return [*blocks, *(f"![{one}]({_link(one)})" for one in figures), origin(content["measured"])]

    def _report(self, name: str) -> str:
        """A report without its title and its list of versions; headings become bold lines."""
        text = re.sub(r"\A# .*\n|^## Measured with\n(?s:.*)", "", self.text(name), flags=re.MULTILINE)
        text = re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.MULTILINE)
        folder = name.rpartition("/")[0]
        return re.sub(r"\]\((?!https?:)([^)#]+)\)", lambda link: f"]({_link(folder, link[1])})", text).strip()

    def title(self, name: str) -> str:
        """The title of the report of a JSON file."""
        return self.text(name.replace(".json", ".md")).partition("\n")[0].removeprefix("# ")

    def training_log(self, name: str) -> str:
        """A CSV file as a table."""
        head, *body = csv.reader(self.text(name).splitlines())
        return markdown_table([[title.replace("_", " ") for title in head], *body])


def accuracy_page(results: Results) -> str:
    """The page of agreement between maps, labels or networks and ground-truth masks."""
    evaluations = results.names("voc_*.json", "*/*/evaluation.json")
    blocks = ["# Accuracy", _ABOUT, _ACCURACY, "## PASCAL VOC", evaluation_table(results, evaluations)]
    blocks += [_folded(name, results.blocks(name)) for name in evaluations]
    blocks += ["### Training of the classifiers", "The log of `dcsm-attr train`; the commands are in [DCSM](voc.md)."]
    blocks += [_folded(name, [results.training_log(name)]) for name in results.names("*_training.csv")]
    for title, name in {
        "### Selection of the preset `tuned`": "tune_preset.json",
        "### Two images with two animals each": "animal_share.json",
        "## The demo": "demo_seeds.json",
    }.items():
        blocks += [title, *results.blocks(name)]
    blocks += ["## The tables of the DCSM paper, and further tables", *_tabs_by_title(results, "ablations_*/*.json")]
    blocks += ["## AffinityNet", *_tabs_by_title(results, "affinity/*-known.json", "affinity/train/*.json")]
    blocks += ["### The confident labels that AffinityNet learns from"]
    blocks += [_folded(name, results.blocks(name)) for name in results.names("affinity/labels_*.json")]
    blocks += ["## FickleNet, seeds, and segmentation networks"]
    for title, name in {
        "FickleNet by dropout rate and number of maps": "fickle_rates.json",
        "Seeds of class maps by thresholds": "seed_shares.json",
        "Segmentation networks by the labels that they learned from": "seeded_networks.json",
    }.items():
        blocks.append(_folded(title, results.blocks(name)))
    return "\n\n".join(blocks) + "\n"


def benchmarks_page(results: Results) -> str:
    """The page of time, memory, parity and robustness."""
    blocks = ["# Benchmarks", _ABOUT, _BENCHMARKS]
    for title, patterns in {
        "## Class maps": ("speed/saliency*.json", "speed/scaling.json"),
        "## The two implementations of Eq. 4": ("subtraction.json",),
        "## The dense CRF": ("crf_parity.json", "speed/crf.json"),
        "## From files to label maps": ("speed/pipeline*.json",),
        "## AffinityNet's random walk": ("affinity/walk.json",),
        "## FickleNet's stochastic hidden units": ("stochastic_selection.json",),
        "## Whole collections": ("pseudo_label_rates.json", "pseudo_label_faults.json"),
        "## Classification CNNs of torchvision": ("models/models.json",),
        "## Files that a call enters": ("entered_files.json",),
        "## Broken image files": ("fuzz/images.json",),
    }.items():
        blocks.append(title)
        for name in results.names(*patterns):
            blocks += results.blocks(name)
    blocks += ["## Coverage", results.text("robustness/coverage.md")]
    blocks += ["## Mutants", re.sub(r"^#+ (.*)$", r"**\1**", results.text("robustness/mutants.md"), flags=re.MULTILINE)]
    return "\n\n".join(blocks) + "\n"


def evaluation_table(results: Results, names: Iterable[str]) -> str:
    """The means of several evaluations, one row per evaluation and protocol."""
    steps = ("before the CRF", "after the CRF")
    precision = "mean average precision of the classifier"
    rows = [["result", "protocol", *(f"mean IoU {step}" for step in steps), "mean AP of the classifier"]]
    for name in names:
        for one in results.json(name)["evaluations"]:
            shares = [*(one[step] and one[step]["mean IoU"] for step in steps), one[precision]]
            percents = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
            rows.append([name.removesuffix(".json"), one["protocol"], *percents])
    return markdown_table(rows)


def tables(content: Any) -> list[str]:
    """Nested JSON as tables, without the entry ``measured``.

    The dictionaries that directly hold values are rows, named by their keys; rows with the same columns share a table.
    A table of one row is transposed. Long lists, such as samples over time, are left out.
    """
    by_columns: dict[tuple[str, ...], list[tuple[tuple[str, ...], Mapping[str, Any]]]] = {}
    for path, row in _rows({key: value for key, value in content.items() if key != "measured"}):
        by_columns.setdefault(tuple(row), []).append((path, row))
    blocks = []
    for columns, rows in by_columns.items():
        if len(rows) == 1:
            [(path, row)] = rows
            cells = [[", ".join(path), ""], *([key, _cell(value)] for key, value in row.items())]
        else:
            shared = len(posixpath.commonprefix([path for path, _ in rows]))
            names = [", ".join(path[shared:]) for path, _ in rows]
            cells = [
                ["", *columns],
                *([name, *map(_cell, row.values())] for name, (_, row) in zip(names, rows, strict=True)),
            ]
        blocks.append(markdown_table(cells))
    return blocks


def _rows(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        leaves = {key: one for key, one in value.items() if _is_cell(one)}
        if leaves:
            yield path, leaves
        for key, one in value.items():
            yield from _rows(one, (*path, key))
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, Mapping):
                yield path, dict(_flat(item))


def _flat(item: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, one in item.items():
        if isinstance(one, Mapping):
            yield from _flat(one, f"{prefix}{key}, ")
        else:
            yield prefix + key, one


def _is_cell(value: Any) -> bool:
    if isinstance(value, list):
        return 0 < len(value) <= 10 and not any(isinstance(one, (list, dict)) for one in value)
    return not isinstance(value, Mapping)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else format_value(value)


def origin(measured: Mapping[str, Any]) -> str:
    """The command and the machine of a result, in one line."""
    return (
        f"`{measured['command']}`; {measured['processor']}, {measured['cores']} cores, "
        f"{measured.get('gpu') or 'no GPU'}, torch {measured['torch']}, commit {measured['commit']}."
    )


def _tabs_by_title(results: Results, *patterns: str) -> list[str]:
    """One heading per table, one tab per network; first the tables of the paper, in its order."""
    by_title: dict[str, list[str]] = {}
    for name in results.names(*patterns):
        by_title.setdefault(results.title(name), []).append(name)

    def number_in_paper(title: str) -> int:
        found = re.search(r"\(Table (\d+) of the paper\)", title)
        return int(found[1]) if found else 99

    blocks = []
    for title in sorted(by_title, key=lambda title: (number_in_paper(title), title)):
        panes = [f'=== "{name.removesuffix(".json")}"\n\n{_indented(results.blocks(name))}' for name in by_title[title]]
        blocks += [f"### {title}", *panes]
    return blocks


def _folded(title: str, blocks: Iterable[str]) -> str:
    return f'??? note "{title}"\n\n{_indented(blocks)}'


def _indented(blocks: Iterable[str]) -> str:
    return textwrap.indent("\n\n".join(blocks), "    ")


def _link(*parts: str) -> str:
    return "/".join(part for part in ("../../benchmarks/results", *parts) if part)

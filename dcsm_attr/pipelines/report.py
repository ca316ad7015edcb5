"""The report of a run: one static HTML page, which any browser shows without a network.

The manifest is read line by line into :class:`RunStatistics`, whose size does not grow with the number of images. The
page is rendered from it as plain tables, inline SVG and thumbnails as data URIs. It has no script, and its content
security policy forbids to load anything. All text from the run is escaped.
"""

import heapq
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from html import escape
from io import BytesIO
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dcsm_attr.datasets.images import pixel_limit, read_image
from dcsm_attr.datasets.masks import label_image, overlay, voc_colors
from dcsm_attr.evaluation.report import format_value
from dcsm_attr.io import Storage, flatten_settings
from dcsm_attr.pipelines.run import MANIFEST

__all__ = ["RunStatistics", "write_report"]

_REPORT = "report.html"
_RESUME_HINT = "Start the run again: it resumes, and writes the manifest again."


def write_report(storage: Storage, *, num_thumbnails: int = 200, progress: bool = True) -> str:
    """Write ``report.html`` from the manifest of a run that is finished or was interrupted.

    Counts, means and histograms are of all images. Half of the thumbnails are the images with the lowest confidence;
    the others are a random sample, with equally many images of each class, which is the same each time.

    Args:
        storage: of the run; an earlier report is replaced.
        num_thumbnails: largest number of thumbnails. They take most of the time and of the size of the page.
        progress: whether to show a progress bar.

    Returns:
        The name of the page in the storage.

    Raises:
        FileNotFoundError: if the storage has no manifest.
        ImportError: if images are named by URIs, and pyarrow is missing.
        OSError: if the manifest cannot be read or the page cannot be written.
        ValueError: if ``num_thumbnails`` is negative, or the manifest is damaged.
    """
    if num_thumbnails < 0:
        raise ValueError(f"num_thumbnails must be at least 0, got {num_thumbnails}.")
    lines = _read_manifest(storage)
    with _manifest_errors(storage, 1):
        run = _parse_line(next(lines, b""))
        run |= {key: int(run[key]) for key in ("images", "labeled", "failed")}
        settings = flatten_settings({**run["settings"], "outputs": run["outputs"]})
        half = num_thumbnails // 2
        # Images without a class get the same share as a class.
        statistics = RunStatistics(num_thumbnails - half, half // (len(run["class_names"]) + 1))
    for number, line in enumerate(lines, 2):
        with _manifest_errors(storage, number):
            statistics.add(_parse_line(line))
    if (statistics.labeled, statistics.failed) != (run["labeled"], run["failed"]):
        raise ValueError(
            f"{storage.location}: {MANIFEST} must have a line for each image that its first line counts, "
            f"{run['labeled']} labeled and {run['failed']} failed; it has {statistics.labeled} and "
            f"{statistics.failed}. {_RESUME_HINT}"
        )
    # A name that is not valid text is shown with its escape sequence.
    page = _render_page(storage, run, settings, statistics, progress).encode(errors="backslashreplace")
    storage.write(_REPORT, page)
    return _REPORT


def _read_manifest(storage: Storage) -> Iterator[bytes]:
    try:
        return iter(BytesIO(storage.read(MANIFEST)))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{storage.location}: has no {MANIFEST}, so that there is no run to report. Give the folder that "
            "dcsm-attr pseudo-label wrote to."
        ) from error


@contextmanager
def _manifest_errors(storage: Storage, number: int) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{storage.location}: line {number} of {MANIFEST} is damaged ({type(error).__name__}: {error}). "
            f"{_RESUME_HINT}"
        ) from error


# Keys of manifests that were written by version 0.1.
_OLD_KEYS = {"photographs": "images", "photograph": "image", "labelled": "labeled"}


def _parse_line(line: bytes) -> dict[str, Any]:
    return {_OLD_KEYS.get(key, key): value for key, value in json.loads(line).items()}


_NUM_BARS = 10
_LOW_SCORE = 0.5
_MAX_LOW_SCORES = 50
_MAX_FAILURE_KINDS = 50
_MAX_EXAMPLES = 20


class _Distribution:
    """Histogram and mean of values in [0, 1]."""

    def __init__(self) -> None:
        self.counts, self._total = [0] * _NUM_BARS, 0.0

    def add(self, value: float) -> None:
        # Means of float32 probabilities can be slightly above 1.
        if not 0 <= value <= 1 + 1e-3:
            raise ValueError(f"scores, shares and confidences must be in [0, 1], got {value}")
        self.counts[min(int(value * _NUM_BARS), _NUM_BARS - 1)] += 1
        self._total += value

    @property
    def mean(self) -> float | None:
        count = sum(self.counts)
        return self._total / count if count else None


class _SmallestEntries:
    """Keeps the entries with the smallest keys; of equal keys, those that come first."""

    def __init__(self, size: int) -> None:
        self.count, self._size = 0, size
        # The root of a heap is its smallest item: here the entry that is dropped first.
        self._heap: list[tuple[float, int, Any]] = []

    def add(self, key: float, entry: Any) -> None:
        self.count += 1
        heapq.heappush(self._heap, (-key, -self.count, entry))
        if len(self._heap) > self._size:
            heapq.heappop(self._heap)

    def sorted(self) -> list[Any]:
        return [entry for *_, entry in sorted(self._heap, key=lambda item: item[:2], reverse=True)]


class _ClassStatistics:
    def __init__(self, name: str, value: int, sample_size: int) -> None:
        self.name, self.value, self.sample = name, value, _SmallestEntries(sample_size)
        self.score, self.share, self.confidence = _Distribution(), _Distribution(), _Distribution()


class RunStatistics:
    """Statistics of a run, of a size that does not depend on the number of images.

    Attributes:
        labeled, failed: numbers of images.
        score, share: distributions over all known classes of all images.
        confidence: distribution over all images.
        lowest: the images with the lowest confidence.
        low_scores: pairs of an image's name and a known class, those with the lowest scores below 0.5.
        failures: number and examples of failures, by kind.
        seconds: total over all images, by step.
    """

    def __init__(self, num_lowest: int, num_per_class: int) -> None:
        """Take the numbers of images to keep for thumbnails: of the lowest confidence, and of each class."""
        self.labeled, self.failed = 0, 0
        self.score, self.share, self.confidence = _Distribution(), _Distribution(), _Distribution()
        self.lowest, self.low_scores = _SmallestEntries(num_lowest), _SmallestEntries(_MAX_LOW_SCORES)
        self.failures: dict[str, tuple[int, list[list[str]]]] = {}
        self.seconds: dict[str, float] = {}
        self._classes: dict[int, _ClassStatistics] = {}
        # Images that are known to show no class.
        self._no_class = _ClassStatistics("no class", 0, num_per_class)
        self._num_per_class = num_per_class

    @property
    def classes(self) -> list[_ClassStatistics]:
        """Statistics of the classes that occur, by number; last those of images without a class, if there are any."""
        classes = [self._classes[number] for number in sorted(self._classes)]
        return [*classes, self._no_class] if self._no_class.sample.count else classes

    def add(self, entry: Mapping[str, Any]) -> None:
        """Count an image.

        Args:
            entry: its line of the manifest.

        Raises:
            KeyError, TypeError, ValueError: if the line is damaged.
        """
        if "error" in entry:
            self._add_failure(entry["name"], str(entry["image"]), entry["error"])
            return
        if len(entry["size"]) != 2:
            raise ValueError(f"size must be height and width, got {entry['size']}")
        shown = []
        for known in entry["classes"]:
            number = known["class"]
            if number not in self._classes:
                self._classes[number] = _ClassStatistics(known["name"], known["value"], self._num_per_class)
            shown.append(self._classes[number])
            for statistics in (self, shown[-1]):
                statistics.score.add(known["score"])
                statistics.share.add(known["share"])
            if known["score"] < _LOW_SCORE:
                self.low_scores.add(known["score"], (entry["name"], known))
        # The checksum sorts the images in a random order that is always the same.
        order = crc32(entry["name"].encode(errors="surrogatepass"))
        for one in shown or [self._no_class]:
            one.confidence.add(entry["confidence"])
            one.sample.add(order, entry)
        self.confidence.add(entry["confidence"])
        self.lowest.add(entry["confidence"], entry)
        for step, seconds in entry["seconds"].items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds
        self.labeled += 1

    def _add_failure(self, name: str, image: str, reason: str) -> None:
        kind = failure_kind(reason, image)
        if kind not in self.failures and len(self.failures) >= _MAX_FAILURE_KINDS:
            kind = "other reasons"
        count, examples = self.failures.get(kind, (0, []))
        self.failures[kind] = (count + 1, [*examples, [name, image, reason]][:_MAX_EXAMPLES])
        self.failed += 1


def failure_kind(reason: str, image: str) -> str:
    """Replace the path of the image and all numbers in the reason of a failure by an ellipsis."""
    without_name = reason.replace(image, "…") if image else reason
    return re.sub(r"\d+", "…", without_name).removeprefix("…: ")


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere }
h2 { margin-top: 2.2rem }
table { border-collapse: collapse }
th, td { padding: .15rem .9rem .15rem 0; text-align: left; font-weight: normal; vertical-align: middle }
thead th, .notice, .low { font-weight: 600 }
td.number { text-align: right; font-variant-numeric: tabular-nums }
figcaption { font-size: 13px }
.hint { opacity: .75 }
summary { cursor: pointer; padding: .15rem 0 }
svg { fill: currentColor; vertical-align: middle }
.charts svg { border-bottom: 1px solid }
.charts, .grid { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem }
figure { margin: 0; width: 200px }
.pair { display: grid }
.pair img { grid-area: 1 / 1; max-width: 100% }
.pair:hover img + img { visibility: hidden }
""".strip()


def _render_page(
    storage: Storage, run: Mapping[str, Any], settings: Mapping[str, Any], statistics: RunStatistics, progress: bool
) -> str:
    digest = b64encode(sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>Pseudo-labels</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>Pseudo-labels of {run['images']:,} images</h1>",
        *_render_counts(run, statistics),
        "<h2>Distributions</h2>\n<div class='charts'>",
        _chart(statistics.score, "Score", "the model's probability of a known class"),
        _chart(statistics.share, "Area", "share of the image with the label of a known class"),
        _chart(statistics.confidence, "Confidence", "mean probability of the labels of an image"),
        "</div>\n<h2>Classes</h2>",
        _render_classes(statistics.classes),
        f"<p>Number of classes of the model: {len(run['class_names']):,}.</p>\n<h2>Low scores</h2>",
        _render_low_scores(statistics.low_scores),
        "<h2>Failures</h2>",
        f"<p>Images that could not be read: {statistics.failed:,}.</p>",
        *_render_failures(statistics.failures),
        "<h2>Settings</h2>",
        _details(f"{len(settings)} settings", _table([], ([name, format_value(settings[name])] for name in settings))),
        "<h2>Thumbnails</h2>\n<p class='hint'>Point at an image to see it without its labels.</p>",
        *_render_thumbnails(storage, statistics, progress),
        f"<p class='hint'>Written by dcsm_attr {escape(str(run['dcsm_attr']))}.</p>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _render_counts(run: Mapping[str, Any], statistics: RunStatistics) -> Iterator[str]:
    unfinished = run["images"] - run["labeled"] - run["failed"]
    if unfinished:
        reason = f" It stopped: {run['stopped']}" if "stopped" in run else ""
        yield f"<p class='notice'>{escape(f'This run is not finished: {unfinished:,} images are missing.{reason}')}</p>"
    counts = {**{key: run[key] for key in ("images", "labeled", "failed")}, "unfinished": unfinished}
    yield _table([], ([name, count] for name, count in counts.items()))
    total = sum(statistics.seconds.values())
    if total:
        yield f"<h2>Speed</h2>\n<p>{statistics.labeled / total:.3g} images per second, one step after the other.</p>"
        steps = [[s, f"{t / statistics.labeled:.3g} s", f"{t / total:.0%}"] for s, t in statistics.seconds.items()]
        yield _table(["step", "mean per image", "share of the time"], steps)


def _render_classes(classes: list[_ClassStatistics]) -> str:
    rows = []
    for one in classes:
        means = [_percent(one.share.mean), _decimal(one.score.mean), _decimal(one.confidence.mean)]
        rows.append([_chip(one.value), one.name, one.sample.count, *means, _bars(one.score, 60, 18)])
    head = ["label", "class", "images", "mean area", "mean score", "mean confidence", "scores"]
    return _details(f"{len(rows):,} rows", _table(head, rows), opened=len(rows) <= 50)


def _render_low_scores(low_scores: _SmallestEntries) -> str:
    rows = [
        [name, _chip(known["value"]), known["name"], _decimal(known["score"]), _percent(known["share"])]
        for name, known in low_scores.sorted()
    ]
    text = f"<p>Known classes with a score below {_LOW_SCORE}: {low_scores.count:,}.</p>\n"
    return text + _details(f"{len(rows)} lowest", _table(["image", "label", "class", "score", "area"], rows))


def _render_failures(failures: Mapping[str, tuple[int, list[list[str]]]]) -> Iterator[str]:
    for kind, (count, examples) in sorted(failures.items(), key=lambda item: -item[1][0]):
        yield _details(f"{kind} ({count:,})", _table(["image", "path", "reason"], examples))


def _render_thumbnails(storage: Storage, statistics: RunStatistics, progress: bool) -> Iterator[str]:
    groups = [("Lowest confidence", statistics.lowest), *((one.name, one.sample) for one in statistics.classes)]
    with tqdm(
        total=sum(len(group.sorted()) for _, group in groups), unit="image", desc="report", disable=not progress
    ) as bar:
        for title, group in groups:
            figures = []
            for entry in group.sorted():
                figures.append(_figure(storage, entry))
                bar.update()
            grid = "<div class='grid'>\n" + "\n".join(figures) + "\n</div>"
            yield _details(f"{title}: {len(figures)}", grid, opened=group is statistics.lowest)


def _figure(storage: Storage, entry: Mapping[str, Any]) -> str:
    height, width = entry["size"]
    image = _read_thumbnail(entry["image"], height * width)
    labels = _read_labels(storage, entry["labels"], (width, height))
    shown = [image, None if labels is None else _color_labels(labels, image)]
    pair = "".join(f'<img src="{_data_uri(one)}" alt=""/>' for one in shown if one is not None)
    caption = [escape(entry["name"]), f"confidence {_decimal(entry['confidence'])}"]
    for known in entry["classes"]:
        text = f"{escape(known['name'])} {_decimal(known['score'])}, area {_percent(known['share'])}"
        low = " class='low'" if known["score"] < _LOW_SCORE else ""
        caption.append(f"{_chip(known['value'])} <span{low}>{text}</span>")
    caption += [f"The {name} cannot be read." for name, one in (("image", image), ("label map", labels)) if one is None]
    return f"<figure><div class='pair'>{pair}</div><figcaption>{'<br/>'.join(caption)}</figcaption></figure>"


_THUMBNAIL_SIDE = 200


def _read_thumbnail(location: str, max_pixels: int) -> Image.Image | None:
    """Read an image; None if it cannot be read, or has more pixels than it had in the run."""
    try:
        image = read_image(location, max_pixels=max_pixels)
    except (OSError, ValueError):
        return None
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    return image


def _read_labels(storage: Storage, name: str, size: tuple[int, int]) -> Image.Image | None:
    """Read a label map; None if it cannot be read, or is not one of this size."""
    try:
        with pixel_limit(size[0] * size[1]), Image.open(BytesIO(storage.read(name)), formats=["PNG"]) as opened:
            if opened.mode != "P" or opened.size != size:
                return None
            return label_image(np.asarray(opened))
    except (OSError, SyntaxError, ValueError):
        return None


def _color_labels(labels: Image.Image, image: Image.Image | None) -> Image.Image:
    """Lay the colors of a label map over a thumbnail; without one, the label map alone."""
    if image is None:
        labels.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.NEAREST)
        return labels.convert("RGB")
    small: npt.NDArray[np.uint8] = np.asarray(labels.resize(image.size, Image.Resampling.NEAREST))
    return Image.fromarray(overlay(np.asarray(image), small))


def _data_uri(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()


class _Markup(str):
    """Markup of this module, which is not escaped."""


def _table(head: list[str], rows: Iterable[list[Any]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _cell(content: Any) -> str:
    if isinstance(content, _Markup):
        return f"<td>{content}</td>"
    return f"<td class='number'>{content:,}</td>" if isinstance(content, int) else f"<td>{escape(content)}</td>"


def _details(summary: str, content: str, *, opened: bool = False) -> str:
    state = ' open=""' if opened else ""
    return f"<details{state}>\n<summary>{escape(summary)}</summary>\n{content}\n</details>"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _chip(value: int) -> _Markup:
    """The color and the number of a label."""
    color = "#{:02x}{:02x}{:02x}".format(*voc_colors()[value].tolist())
    return _Markup(f'<svg width="14" height="14"><rect width="14" height="14" fill="{color}"/></svg> {value}')


def _bars(distribution: _Distribution, width: int, height: int) -> _Markup:
    """Bars of a histogram, each with its count as a tooltip."""
    highest, step = max(1, *distribution.counts), width / _NUM_BARS
    bars = "".join(
        f'<rect x="{i * step:g}" y="{height * (1 - count / highest):.1f}" width="{step * 0.9:g}" '
        f'height="{height * count / highest:.1f}"><title>{i / _NUM_BARS:g} to {(i + 1) / _NUM_BARS:g}: {count:,}'
        "</title></rect>"
        for i, count in enumerate(distribution.counts)
    )
    return _Markup(f'<svg width="{width}" height="{height}">{bars}</svg>')


def _chart(distribution: _Distribution, title: str, description: str) -> str:
    counts = " ".join(f"{count}" for count in distribution.counts)
    return (
        f"<div><h3>{title}</h3><p class='hint'>{description};<br/>mean {_decimal(distribution.mean)}</p>"
        f"{_bars(distribution, 300, 110)}<p class='hint'>0 to 1; counts: {counts}</p></div>"
    )

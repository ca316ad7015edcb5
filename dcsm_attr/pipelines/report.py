"""The report of a run for people: one page with its figures and thumbnails, for a browser without a network.

What the lines of a run's manifest amount to: counts, means and histograms, in memory that hardly grows with them.

The report's page: style, script and figures in one file, to which a browser adds nothing from anywhere.

Small pictures of an image and of its labels, for the report of a run.
"""

import heapq
import json
import re
import tempfile
from array import array
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from statistics import median
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.masks import VOID, MaskError, label_image, overlay, read_mask, voc_colors
from dcsm_attr.evaluation.report import format_value
from dcsm_attr.io import Storage, flatten_settings, is_uri, read_uri
from dcsm_attr.pipelines.run import MANIFEST

__all__ = ["BINS", "THUMBNAIL_SIDE", "RunStatistics", "Thumbnail", "failure_kind", "page", "thumbnail", "write_report"]


#: Bars of a histogram, which together are the range from 0 to 1.
BINS = 10

_DISAGREES_BELOW = 0.5
_DISAGREEMENTS = 50
_KINDS = 50
_EXAMPLES = 20
_OTHER_KINDS = "other reasons"


@dataclass
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    total: float = 0.0

    def add(self, value: float) -> None:
        # Means of float32 probabilities can lie a little beyond 1.
        if not 0 <= value <= 1 + 1e-3:
            raise ValueError(f"scores, shares and confidences must be in [0, 1], got {value}")
        self.counts[min(int(value * BINS), BINS - 1)] += 1
        self.total += value

    def content(self) -> dict[str, Any]:
        count = sum(self.counts)
        return {"counts": self.counts, "count": count, "mean": round(self.total / count, 4) if count else None}


@dataclass
class _Histograms:
    """Of some photographs, and of the classes that they show."""

    score: _Histogram = field(default_factory=_Histogram)
    share: _Histogram = field(default_factory=_Histogram)
    confidence: _Histogram = field(default_factory=_Histogram)

    def add(self, classes: Iterable[Mapping[str, Any]], confidence: float) -> None:
        for one in classes:
            self.score.add(one["score"])
            self.share.add(one["share"])
        self.confidence.add(confidence)

    def content(self) -> dict[str, Any]:
        return {
            "score": self.score.content(),
            "share": self.share.content(),
            "confidence": self.confidence.content(),
        }


@dataclass
class _Kind:
    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


class RunStatistics:
    """The figures of a run, from one entry of its manifest after the other."""

    def __init__(self) -> None:
        self.labeled = 0
        self.failed = 0
        self._all = _Histograms()
        # A photograph that is known to show no class is of no class: None.
        self._classes: dict[int | None, tuple[str, int, _Histograms]] = {}
        self._disagreement_counts = 0
        self._disagreements: list[tuple[float, int, int, dict[str, Any]]] = []
        self._kinds: dict[str, _Kind] = {}
        self._seconds: dict[str, array[float]] = {}
        self._totals: array[float] = array("d")

    def add_labeled(self, entry: Mapping[str, Any]) -> None:
        """Count an image that has a label image.

        Args:
            entry: its line of the manifest.

        Raises:
            KeyError, TypeError, ValueError: if the line is not as a run writes it.
        """
        classes, confidence = entry["classes"], entry["confidence"]
        self._all.add(classes, confidence)
        for one in classes:
            self._of(one["class"], one["name"], one["value"]).add([one], confidence)
        if not classes:
            self._of(None, "", 0).add([], confidence)
        for position, one in enumerate(classes):
            self._note_disagreement(entry, position, one)
        for stage, seconds in entry["seconds"].items():
            self._seconds.setdefault(stage, array("d")).append(seconds)
        self._totals.append(sum(entry["seconds"].values()))
        self.labeled += 1

    def add_failed(self, entry: Mapping[str, Any]) -> None:
        """Count an image that has none.

        Args:
            entry: its line of the manifest, with ``"error"``.

        Raises:
            KeyError, TypeError: if the line is not as a run writes it.
        """
        example = {key: str(entry[key]) for key in ("name", "image", "error")}
        kind = failure_kind(example["error"], example["image"])
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _OTHER_KINDS
        found = self._kinds.setdefault(kind, _Kind())
        found.count += 1
        if len(found.examples) < _EXAMPLES:
            found.examples.append(example)
        self.failed += 1

    def content(self) -> dict[str, Any]:
        """The figures, JSON-serializable.

        Returns:
            ``histograms``: of ``score``, ``share`` and ``confidence``, each with ``counts`` of :data:`BINS` bars, the
            ``count`` of values and their ``mean`` (None without any). ``classes``: those that occur, in the order of
            their numbers, with ``photographs`` and histograms of their own; last, with None as its number, what is
            known to show none. ``disagreements``: known classes to which the classifier gives the smallest scores,
            of all those, ``disagreeing`` in number, that are below ``disagrees_below``.
            ``failures``: by kind, the most frequent first. ``speed``: seconds; None where nothing was labeled.
        """
        numbers = sorted(number for number in self._classes if number is not None)
        classes = [
            {
                "class": number,
                "name": name,
                "value": value,
                "photographs": histograms.confidence.content()["count"],
                "histograms": histograms.content(),
            }
            for number in [*numbers, *({None} & self._classes.keys())]
            for name, value, histograms in [self._classes[number]]
        ]
        doubtful = sorted(self._disagreements, key=lambda item: item[:3], reverse=True)
        # The sort is stable: of kinds that are equally frequent, the one that was met first.
        kinds = sorted(self._kinds.items(), key=lambda item: -item[1].count)
        return {
            "histograms": self._all.content(),
            "classes": classes,
            "disagrees_below": _DISAGREES_BELOW,
            "disagreeing": self._disagreement_counts,
            "disagreements": [found for *_, found in doubtful],
            "failures": [{"kind": kind, "count": one.count, "examples": one.examples} for kind, one in kinds],
            "speed": self._speed(),
        }

    def _of(self, number: int | None, name: str, value: int) -> _Histograms:
        return self._classes.setdefault(number, (name, value, _Histograms()))[2]

    def _note_disagreement(self, entry: Mapping[str, Any], position: int, known: Mapping[str, Any]) -> None:
        if known["score"] >= _DISAGREES_BELOW:
            return
        self._disagreement_counts += 1
        found = {
            "name": entry["name"],
            "photograph": entry["image"],
            "class": known["class"],
            "score": round(known["score"], 4),
            "share": round(known["share"], 4),
        }
        # The heap has its smallest on top, the one to go: the highest score, and of equal ones the last.
        item = (-known["score"], -self.labeled, -position, found)
        if len(self._disagreements) < _DISAGREEMENTS:
            heapq.heappush(self._disagreements, item)
        elif item[:3] > self._disagreements[0][:3]:
            heapq.heapreplace(self._disagreements, item)

    def _speed(self) -> dict[str, Any] | None:
        if not self._totals:
            return None
        seconds = sum(self._totals)
        return {
            "photographs_a_second": self.labeled / seconds if seconds else None,
            "median": median(self._totals),
            "stages": [
                {"name": stage, "median": median(values), "share": sum(values) / seconds if seconds else None}
                for stage, values in self._seconds.items()
            ],
        }


def failure_kind(reason: str, photograph: str) -> str:
    """What reasons have in common that differ in the image and in numbers only, each replaced by an ellipsis."""
    without_name = reason.replace(photograph, "…") if photograph else reason
    return re.sub(r"\d+", "…", without_name).removeprefix("…: ")


def page(content: Mapping[str, Any]) -> str:
    """The page as HTML.

    Everything that comes from files goes into it as JSON, and from there into the page as text, never as markup. The
    policy in its head forbids a browser to load anything, and to run anything but the script that was shipped.

    Args:
        content: what ``assets/report.js`` shows, JSON-serializable.

    Raises:
        ValueError: if a number in it is not finite.
    """
    style, script = _asset("report.css"), _asset("report.js")
    return Template(_asset("report.html")).substitute(
        style=style, style_digest=_digest(style), script=script, script_digest=_digest(script), content=_json(content)
    )


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end the element that it stands in, nor begin a comment there."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("dcsm_attr") / "assets" / name).read_text(encoding="utf-8")


#: Pixels of the longer side.
THUMBNAIL_SIDE = 200

_QUALITY = 75


@dataclass(frozen=True)
class Thumbnail:
    """JPEG files of at most :data:`THUMBNAIL_SIDE` pixels a side.

    Attributes:
        labels: the colors of the labels over the image, or alone where it cannot be read; None if there is no
            label image of the image's size.
        photograph: None if it cannot be read, or has more pixels than it had in the run.
    """

    labels: bytes | None
    photograph: bytes | None


def thumbnail(storage: Storage, entry: Mapping[str, Any]) -> Thumbnail:
    """Make the small pictures of an image.

    Args:
        storage: of the run.
        entry: the image's line in the manifest.

    Raises:
        ImportError: if it is named by a URI, and pyarrow is missing.
    """
    height, width = entry["size"]
    photograph = _open_image(entry["image"], height * width)
    if photograph is not None:
        photograph.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    labels = _labels(storage, entry["labels"], (height, width))
    return Thumbnail(
        None if labels is None else _jpeg(_overlaid(labels, photograph)),
        None if photograph is None else _jpeg(photograph),
    )


def _open_image(location: str, max_pixels: int) -> Image.Image | None:
    try:
        if is_uri(location):
            with _as_file(read_uri(location)) as path:
                return read_image(path, max_pixels=max_pixels)
        return read_image(location, max_pixels=max_pixels)
    except (OSError, ValueError):
        return None


def _labels(storage: Storage, name: str, size: tuple[int, int]) -> Image.Image | None:
    try:
        with _as_file(storage.read(name)) as path:
            labels = read_mask(path, size, VOID, max_pixels=size[0] * size[1])
    except (OSError, MaskError):
        return None
    return label_image(labels.numpy())


def _overlaid(labels: Image.Image, photograph: Image.Image | None) -> Image.Image:
    if photograph is None:
        labels.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.NEAREST)
        return labels.convert("RGB")
    small: npt.NDArray[np.uint8] = np.asarray(labels.resize(photograph.size, Image.Resampling.NEAREST))
    return Image.fromarray(overlay(np.asarray(photograph), small))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """What was read from a store, where the readers of this package, which trust no file, look for it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


_REPORT = "report.html"
_RERUN_HINT = "Start the run again: it resumes, and writes the file anew."


def write_report(storage: Storage, *, photographs: int = 1000, progress: bool = True) -> str:
    """Write ``report.html``, from the manifest of a run that is finished or was interrupted.

    Counts, means and histograms are of all images. The same run gives the same bytes, as long as its images
    can be read; of one that cannot, the label image is shown alone.

    Args:
        storage: of the run; an earlier report is replaced.
        photographs: so many get a thumbnail at most, evenly spread over the run. They are what takes time and room.
        progress: whether to show a bar.

    Returns:
        The name of the page in the storage.

    Raises:
        FileNotFoundError: if the storage has no manifest.
        ImportError: if photographs are named by URIs, and pyarrow is missing.
        OSError: if the manifest cannot be read or the page cannot be written.
        ValueError: if ``photographs`` is negative, or the manifest is not as a run writes it.
    """
    if photographs < 0:
        raise ValueError(f"photographs must be at least 0, got {photographs}.")
    lines = _manifest(storage)
    with _as_written(storage, 1):
        run = json.loads(next(lines, b""))
        spread = _evenly_spread(run["labeled"], photographs)
        head = {"run": _run(run), "settings": _settings(run)}
    figures, rows = RunStatistics(), []
    with tqdm(total=run["labeled"] + run["failed"], unit="photo", desc="report", disable=not progress) as bar:
        for number, line in enumerate(lines, 2):
            with _as_written(storage, number):
                entry = json.loads(line)
                if "error" in entry:
                    figures.add_failed(entry)
                else:
                    if figures.labeled in spread:
                        rows.append(_row(entry, thumbnail(storage, entry)))
                    figures.add_labeled(entry)
            bar.update()
    _check_complete(storage, run, figures)
    storage.write(_REPORT, page({**head, "thumbnails": rows, **_colorize(figures.content())}).encode())
    return _REPORT


def _manifest(storage: Storage) -> Iterator[bytes]:
    try:
        content = storage.read(MANIFEST)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{storage.location}: has no {MANIFEST}, so that no run of dcsm-attr pseudo-label can be reported from "
            "there. Give the folder that the run was told to write to."
        ) from error
    # Lines are taken from these bytes, not copied.
    return iter(BytesIO(content))


@contextmanager
def _as_written(storage: Storage, number: int) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{storage.location}: line {number} of {MANIFEST} is not as a run writes it ({type(error).__name__}: "
            f"{error}). {_RERUN_HINT}"
        ) from error


def _check_complete(storage: Storage, run: Mapping[str, Any], figures: RunStatistics) -> None:
    if (figures.labeled, figures.failed) != (run["labeled"], run["failed"]):
        raise ValueError(
            f"{storage.location}: {MANIFEST} must have a line for each image that its first line counts, "
            f"{run['labeled']} labeled and {run['failed']} failed; it has {figures.labeled} and {figures.failed}. "
            f"{_RERUN_HINT}"
        )


def _evenly_spread(total: int, count: int) -> frozenset[int]:
    """Positions of so many of all, or of all."""
    count = min(total, count)
    return frozenset(number * total // count for number in range(count))


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    photographs, labeled, failed = (int(run[key]) for key in ("images", "labeled", "failed"))
    return {
        "version": run["dcsm_attr"],
        "photographs": photographs,
        "labeled": labeled,
        "failed": failed,
        "unfinished": photographs - labeled - failed,
        "class_count": len(run["class_names"]),
    }


def _settings(run: Mapping[str, Any]) -> list[list[str]]:
    told = flatten_settings({**run["settings"], "outputs": run["outputs"]})
    return [[name, format_value(value)] for name, value in told.items()]


def _row(entry: Mapping[str, Any], pictures: Thumbnail) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "photograph": entry["image"],
        "size": entry["size"],
        "classes": [[one["class"], round(one["score"], 4), round(one["share"], 4)] for one in entry["classes"]],
        "confidence": round(entry["confidence"], 4),
        "with_labels": _data_uri(pictures.labels),
        "alone": _data_uri(pictures.photograph),
    }


def _data_uri(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else "data:image/jpeg;base64," + b64encode(jpeg).decode()


def _colorize(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, and the color that each class has in the label images."""
    colors = voc_colors().tolist()
    for one in figures["classes"]:
        one["color"] = "#{:02x}{:02x}{:02x}".format(*colors[one["value"]])
    return figures

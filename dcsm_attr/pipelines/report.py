"""The report of a run for people: one page with its figures and thumbnails, for a browser without a network."""

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from tqdm import tqdm

from dcsm_attr.evaluation.markdown import value_text
from dcsm_attr.palette import voc_colours
from dcsm_attr.pipelines.manifest import MANIFEST
from dcsm_attr.pipelines.report_figures import RunFigures
from dcsm_attr.pipelines.report_page import page
from dcsm_attr.pipelines.report_thumbnails import Thumbnail, thumbnail
from dcsm_attr.settings import flattened
from dcsm_attr.storage import Storage

__all__ = ["write_report"]

_REPORT = "report.html"
_MEND = "Start the run again: it goes on where it was, and writes the file anew."


def write_report(storage: Storage, *, photographs: int = 1000, progress: bool = True) -> str:
    """Write ``report.html``, from the manifest of a run that is finished or was interrupted.

    Counts, means and histograms are of all photographs. The same run gives the same bytes, as long as its photographs
    can be read; of one that cannot, the label picture is shown alone.

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
        spread = _evenly_spread(run["labelled"], photographs)
        head = {"run": _run(run), "settings": _settings(run)}
    figures, rows = RunFigures(), []
    with tqdm(total=run["labelled"] + run["failed"], unit="photo", desc="report", disable=not progress) as bar:
        for number, line in enumerate(lines, 2):
            with _as_written(storage, number):
                entry = json.loads(line)
                if "error" in entry:
                    figures.add_failed(entry)
                else:
                    if figures.labelled in spread:
                        rows.append(_row(entry, thumbnail(storage, entry)))
                    figures.add_labelled(entry)
            bar.update()
    _check_complete(storage, run, figures)
    storage.write(_REPORT, page({**head, "thumbnails": rows, **_coloured(figures.content())}).encode())
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
            f"{error}). {_MEND}"
        ) from error


def _check_complete(storage: Storage, run: Mapping[str, Any], figures: RunFigures) -> None:
    if (figures.labelled, figures.failed) != (run["labelled"], run["failed"]):
        raise ValueError(
            f"{storage.location}: {MANIFEST} must have a line for each photograph that its first line counts, "
            f"{run['labelled']} labelled and {run['failed']} failed; it has {figures.labelled} and {figures.failed}. "
            f"{_MEND}"
        )


def _evenly_spread(total: int, count: int) -> frozenset[int]:
    """Positions of so many of all, or of all."""
    count = min(total, count)
    return frozenset(number * total // count for number in range(count))


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    photographs, labelled, failed = (int(run[key]) for key in ("photographs", "labelled", "failed"))
    return {
        "version": run["dcsm_attr"],
        "photographs": photographs,
        "labelled": labelled,
        "failed": failed,
        "unfinished": photographs - labelled - failed,
        "class_count": len(run["class_names"]),
    }


def _settings(run: Mapping[str, Any]) -> list[list[str]]:
    told = flattened({**run["settings"], "outputs": run["outputs"]})
    return [[name, value_text(value)] for name, value in told.items()]


def _row(entry: Mapping[str, Any], pictures: Thumbnail) -> dict[str, Any]:
    return {
        "name": entry["name"],
        "photograph": entry["photograph"],
        "size": entry["size"],
        "classes": [[one["class"], round(one["score"], 4), round(one["share"], 4)] for one in entry["classes"]],
        "confidence": round(entry["confidence"], 4),
        "with_labels": _data_uri(pictures.labels),
        "alone": _data_uri(pictures.photograph),
    }


def _data_uri(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else "data:image/jpeg;base64," + b64encode(jpeg).decode()


def _coloured(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures, and the colour that each class has in the label pictures."""
    colours = voc_colours().tolist()
    for one in figures["classes"]:
        one["colour"] = "#{:02x}{:02x}{:02x}".format(*colours[one["value"]])
    return figures

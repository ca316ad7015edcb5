"""One table measured: the background of each method chosen on one set of images, its figures taken on another.

What one method got right and wrong in one image, and its line in a file.

Many methods on the same images: each image is read once, each CRF built once, each count kept.
"""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import dcsm_attr
from benchmarks.ablation.gradients import GradientStore
from benchmarks.ablation.methods import Case, Method, load_case
from benchmarks.ablation.tables import Table
from dcsm_attr.attribution.maps import label_scores
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.masks import VOID, resize_labels
from dcsm_attr.evaluation.evaluate import SkippedImage, append_lines, format_row, load_rows, row_parser
from dcsm_attr.evaluation.label_maps import SKIPPED_ERRORS, check_collection
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, Protocol, labels_digest
from dcsm_attr.models.checkpoint import Classifier

__all__ = [
    "EXPONENTS",
    "FURTHER_EXPONENTS",
    "CountedCase",
    "CountsRow",
    "Measurement",
    "Reading",
    "Sweep",
    "SweepResult",
    "dense",
    "measure_table",
    "parse_counts_row",
    "sparse",
]


@dataclass(frozen=True, order=True)
class Reading:
    """How labels were read off maps.

    Attributes:
        exponent: of the background, see :func:`dcsm_attr.attribution.maps.background`.
        refined: whether by the CRF.
    """

    exponent: float
    refined: bool

    def __str__(self) -> str:
        """As in a file: ``"2.0"``, or ``"2.0 crf"``."""
        return f"{self.exponent} crf" if self.refined else f"{self.exponent}"

    @staticmethod
    def parsed(text: str) -> "Reading":
        """The inverse of ``str``."""
        exponent, *refined = text.split(" ")
        return Reading(float(exponent), refined == ["crf"])


@dataclass(frozen=True)
class CountedCase:
    """An image that was measured.

    Attributes:
        name: its id.
        counts: for each reading, as text, the entries of the confusion matrix that are not zero: truth, prediction,
            pixels.
    """

    name: str
    counts: Mapping[str, list[list[int]]]


CountsRow = CountedCase | SkippedImage


def sparse(confusion: Tensor) -> list[list[int]]:
    """The entries ``[truth, prediction, pixels]`` of a matrix ``(L, L)`` that are not zero."""
    where = confusion.nonzero()
    return torch.cat([where, confusion[where[:, 0], where[:, 1]][:, None]], dim=1).tolist()


def dense(entries: list[list[int]], labels: int) -> Tensor:
    """The matrix ``(L, L)`` int64 of :func:`sparse`."""
    confusion = torch.zeros(labels, labels, dtype=torch.int64)
    for truth, prediction, pixels in entries:
        confusion[truth, prediction] = pixels
    return confusion


parse_counts_row: Callable[[str | bytes], CountsRow] = row_parser(CountedCase, "counts")


_logger = logging.getLogger(__name__)

# Labels that a method gives itself depend on no background.
_GIVEN = Reading(1.0, refined=False)

# Labelings of an image that go through the CRF together: bounds memory.
_CHUNK_SIZE = 16


@dataclass(frozen=True)
class SweepResult:
    """What was counted.

    Attributes:
        confusions: by the method's name and the reading.
        photographs: number of those that were counted.
        skipped: the reason, by the name of each image that was not.
    """

    confusions: Mapping[str, Mapping[Reading, Confusion]]
    photographs: int
    skipped: Mapping[str, str]

    def __or__(self, other: "SweepResult") -> "SweepResult":
        """With further readings of the same images."""
        readings = {name: dict(of_method) for name, of_method in self.confusions.items()}
        for name, of_method in other.confusions.items():
            readings.setdefault(name, {}).update(of_method)
        return SweepResult(readings, max(self.photographs, other.photographs), {**self.skipped, **other.skipped})


@dataclass(frozen=True)
class Sweep:
    """Measures methods on one collection under one protocol.

    Attributes:
        classifier: whose maps they are.
        collection: photographs with masks, of the classifier's classes.
        protocol: what is told about an image.
        store: of gradients.
        folder: where the counts are kept, a file for each method; an interrupted sweep resumes, and one
            with further methods counts these alone.
        crf: refines the readings that ask for it, of the methods that bring none.
        on_canvas: whether labels are compared with the mask on the canvas, which is several times faster and good
            enough to choose between settings, or at the image's own size, as :func:`evaluate` does.
        progress: whether to show a bar.
    """

    classifier: Classifier
    collection: Collection
    protocol: Protocol
    store: GradientStore
    folder: Path
    crf: DenseCRF
    on_canvas: bool = False
    progress: bool = True

    def __call__(self, readings: Mapping[Method, Sequence[Reading]], description: str) -> SweepResult:
        """Count.

        Args:
            readings: of each method, with different names.
            description: for the bar.

        Returns:
            The sums over all images that could be read.

        Raises:
            OSError: if the folder cannot be written to.
            ValueError: if names are not unique, the folder belongs to another network or collection, or none of the
                photographs could be read.
        """
        names = [method.name for method in readings]
        if len(set(names)) < len(names):
            raise ValueError(f"methods must have different names, got {', '.join(names)}.")
        files = {method: self._path(method, wanted) for method, wanted in readings.items()}
        rows: dict[Method, list[CountsRow]] = {
            method: load_rows(files[method], self._described(method, wanted), self._names, 1, parse_counts_row)
            for method, wanted in readings.items()
        }
        done = min(map(len, rows.values()), default=len(self.collection))
        with tqdm(
            total=len(self.collection), initial=done, unit="photo", desc=description, disable=not self.progress
        ) as bar:
            for number in range(done, len(self.collection)):
                due = {method: readings[method] for method in readings if len(rows[method]) == number}
                for method, row in self._counted(number, due).items():
                    append_lines(files[method], [format_row(row)])
                    rows[method].append(row)
                bar.update()
        return self._summed(rows)

    @property
    def _names(self) -> list[str]:
        return [photograph.name for photograph in self.collection]

    def _path(self, method: Method, readings: Sequence[Reading]) -> Path:
        short = re.sub(r"[^a-z0-9.]+", "-", method.name.lower()).strip("-")[:80]
        digest = hashlib.sha256(json.dumps(self._described(method, readings)).encode()).hexdigest()[:8]
        return self.folder / f"{short}-{digest}.jsonl"

    def _described(self, method: Method, readings: Sequence[Reading]) -> dict[str, Any]:
        return {
            "dcsm_attr": dcsm_attr.__version__,
            "method": method.name,
            "readings": [str(reading) for reading in sorted(readings)],
            "protocol": self.protocol.value,
            "parameters": self.store.parameters,
            "pooling": self.classifier.pooling,
            "preprocess": asdict(self.classifier.preprocess),
            "crf": asdict(method.crf or self.crf),
            "on_canvas": self.on_canvas,
            "photographs": labels_digest(self.collection),
        }

    def _counted(self, number: int, due: Mapping[Method, Sequence[Reading]]) -> dict[Method, CountsRow]:
        photograph = self.collection.images[number]
        try:
            case = load_case(photograph, self.classifier, self.store, self.protocol)
        except SKIPPED_ERRORS as error:
            _logger.warning("%s is skipped: %s", photograph.name, error)
            return {method: SkippedImage(photograph.name, str(error)) for method in due}
        counts = {method: {_GIVEN: method.labels(case)} for method in due if method.labels is not None}
        unrefined = {
            method: _label_probabilities(method, case, readings)
            for method, readings in due.items()
            if method.maps is not None
        }
        for method, probabilities in self._refined(unrefined, case).items():
            counts[method] = {reading: self._labels(values, case) for reading, values in probabilities.items()}
        labels = 1 + len(self.collection.class_names)
        mask = resize_labels(case.mask, case.prepared.pixels.shape[1:]) if self.on_canvas else case.mask
        return {
            method: CountedCase(
                case.name,
                {
                    str(reading): sparse(confusion_matrix(_of_classes(found, case, mask), mask, labels, VOID))
                    for reading, found in of_method.items()
                },
            )
            for method, of_method in counts.items()
        }

    def _labels(self, probabilities: Tensor, case: Case) -> Tensor:
        sized = probabilities if self.on_canvas else case.prepared.restore(probabilities)
        # As argmax, which is several times slower along the first dimension.
        return sized.max(dim=0).indices

    def _refined(
        self, unrefined: Mapping[Method, Mapping[Reading, Tensor]], case: Case
    ) -> dict[Method, dict[Reading, Tensor]]:
        """Run each CRF on all that asks for it, with one lattice."""
        result = {method: dict(of_method) for method, of_method in unrefined.items()}
        of_crf: dict[DenseCRF, list[tuple[Method, Reading]]] = defaultdict(list)
        for method, of_method in result.items():
            of_crf[method.crf or self.crf] += [(method, reading) for reading in of_method if reading.refined]
        for crf, keys in of_crf.items():
            for start in range(0, len(keys), _CHUNK_SIZE):
                part = keys[start : start + _CHUNK_SIZE]
                stacked = torch.stack([result[method][reading] for method, reading in part])
                refined_part = crf.refine_alternatives(stacked, case.prepared.pixels)
                for (method, reading), refined in zip(part, refined_part, strict=True):
                    result[method][reading] = refined
        return result

    def _summed(self, rows: Mapping[Method, Sequence[CountsRow]]) -> SweepResult:
        labels = 1 + len(self.collection.class_names)
        confusions = {}
        counted = set[str]()
        skipped = {}
        for method, of_method in rows.items():
            totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(labels, labels, dtype=torch.int64))
            for row in of_method:
                if isinstance(row, SkippedImage):
                    skipped[row.name] = row.reason
                    continue
                counted.add(row.name)
                for reading, entries in row.counts.items():
                    totals[reading] += dense(entries, labels)
            if not totals:
                raise ValueError(
                    f"none of the {len(of_method)} photographs could be measured, such as {of_method[0].name}: "
                    f"{skipped[of_method[0].name]}"
                )
            confusions[method.name] = {Reading.parsed(text): Confusion(total) for text, total in totals.items()}
        return SweepResult(confusions, len(counted), skipped)


def _label_probabilities(method: Method, case: Case, readings: Sequence[Reading]) -> dict[Reading, Tensor]:
    assert method.maps is not None
    cropped = case.prepared.crop(method.maps(case))[None]
    present = torch.ones(1, cropped.shape[1], dtype=torch.bool)
    exponents = sorted({reading.exponent for reading in readings})
    scores = torch.cat([label_scores(cropped, present, exponent) for exponent in exponents])
    if method.walk is not None:
        scores = method.walk(case, scores)
    by_exponent = dict(zip(exponents, scores / scores.sum(dim=1, keepdim=True), strict=True))
    return {reading: by_exponent[reading.exponent] for reading in readings}


def _of_classes(slots: Tensor, case: Case, mask: Tensor) -> Tensor:
    """From slots (0 background, ``1 + k``) to labels (``1 + c``), at the size of the mask."""
    return resize_labels(torch.tensor([0, *(1 + c for c in case.classes)])[slots], mask.shape)


#: Exponents of the background among which each method's is chosen; the foreground begins at 0.72, 0.68, 0.62, 0.56,
#: 0.5, 0.44, 0.38, 0.28, 0.19 and 0.12 of a map's range.
EXPONENTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0)

#: Tried too, for methods that are best at an end of :data:`EXPONENTS`, by this end: the foreground begins at 0.77, 0.82
#: and 0.88 of a map's range, or at 0.08, 0.05 and 0.03.
FURTHER_EXPONENTS: dict[float, tuple[float, ...]] = {
    EXPONENTS[0]: (0.18, 0.12, 0.06),
    EXPONENTS[-1]: (32.0, 64.0, 128.0),
}

_PAPER = 1.0


@dataclass(frozen=True)
class Measurement:
    """What was measured for one table.

    Attributes:
        table: the methods.
        protocol: what was told about the images.
        exponents: of each method that gives maps, by its name: the best on the images it was chosen on.
        chosen_on: what was counted there.
        result: what was counted on the others.
    """

    table: Table
    protocol: Protocol
    exponents: Mapping[str, float]
    chosen_on: SweepResult
    result: SweepResult

    def confusion(self, method: Method, *, refined: bool, own_background: bool) -> Confusion | None:
        """The counts of one method.

        Args:
            method: of the table.
            refined: after the CRF.
            own_background: with the exponent that was chosen for it, or with Eq. 7.

        Returns:
            None where there is no such reading: a method that gives labels itself has one alone, which counts as
            refined.
        """
        readings = self.result.confusions[method.name]
        if method.labels is not None:
            return next(iter(readings.values())) if refined else None
        exponent = self.exponents[method.name] if own_background else _PAPER
        return readings[Reading(exponent, refined)]

    def confusions_by_exponent(self, method: Method) -> dict[float, Confusion]:
        """What was counted where the background of a method was chosen, by its exponent; nothing if it has none."""
        readings = self.chosen_on.confusions.get(method.name, {})
        return {reading.exponent: readings[reading] for reading in sorted(readings)}


def measure_table(
    table: Table,
    classifier: Classifier,
    chosen_on: Collection,
    measured_on: Collection,
    protocol: Protocol,
    folder: Path,
    *,
    crf: DenseCRF = DenseCRF(),  # noqa: B008 - frozen
    progress: bool = True,
) -> Measurement:
    """Measure the methods of a table.

    Args:
        table: of the classifier.
        classifier: in any mode; it is left as it is.
        chosen_on: photographs on which the background is chosen, by mean IoU before the CRF; after it for methods that
            bring their own. Labels are compared on the canvas.
        measured_on: photographs on which the figures are taken, before and after the CRF, with Eq. 7's background and
            with the chosen one.
        protocol: what is told about an image.
        folder: for gradients and counts, which other tables of the classifier share.
        crf: the refinement.
        progress: whether to show bars.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if the folder belongs to another classifier or other images, or a collection is empty, has no
            masks or other classes, or none of its images can be read.
    """
    for collection in (chosen_on, measured_on):
        check_collection(collection, classifier.class_names)
    methods = list({row.method.name: row.method for row in table.rows}.values())
    store = GradientStore(folder / "gradients", classifier)

    def sweep(collection: Collection, name: str, on_canvas: bool) -> Sweep:
        counts = folder / "counts" / f"{name}-{protocol.value}"
        return Sweep(classifier, collection, protocol, store, counts, crf, on_canvas, progress)

    def with_backgrounds(search: Mapping[Method, Sequence[float]]) -> SweepResult:
        wanted = {
            method: [Reading(exponent, refined=method.crf is not None) for exponent in of_method]
            for method, of_method in search.items()
        }
        return sweep(chosen_on, "background", True)(wanted, f"background of {len(search)} methods")

    first = with_backgrounds({method: EXPONENTS for method in methods if method.maps})
    ends = {method: _best(first.confusions[method.name]) for method in methods if method.maps}
    first |= with_backgrounds({m: FURTHER_EXPONENTS[end] for m, end in ends.items() if end in FURTHER_EXPONENTS})
    exponents = {name: _best(readings) for name, readings in first.confusions.items()}
    readings: dict[Method, Sequence[Reading]] = {}
    for method in methods:
        own = {_PAPER, exponents[method.name]} if method.maps else {_PAPER}
        refinements = (False, True) if method.maps else (False,)
        readings[method] = [Reading(exponent, refined) for exponent in sorted(own) for refined in refinements]
    second = sweep(measured_on, "figures", False)(readings, f"figures of {len(readings)} methods")
    return Measurement(table, protocol, exponents, first, second)


def _best(readings: Mapping[Reading, Confusion]) -> float:
    # Of equal ones the smallest exponent, so that the choice does not depend on their order.
    return max(sorted(readings), key=lambda reading: (readings[reading].mean_iou, -reading.exponent)).exponent

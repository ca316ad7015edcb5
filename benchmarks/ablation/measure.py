"""Measure the methods of a table: choose each background on one set of images, and take the figures on another.

:func:`measure_table` runs two sweeps. A :class:`Sweep` evaluates many methods on the same images: each image is read
once, each CRF is built once per image, and every count is written to a file, from which an interrupted sweep resumes.
"""

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from dcsm_attr.evaluation.evaluate import (
    ROWS_FILE,
    SKIPPED_ERRORS,
    SkippedImage,
    append_rows,
    check_collection,
    read_rows,
)
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, ProtocolName, labels_digest
from dcsm_attr.io import open_run_folder
from dcsm_attr.models.checkpoint import Classifier

__all__ = [
    "EXPONENTS",
    "FURTHER_EXPONENTS",
    "LabelSettings",
    "Measurement",
    "Sweep",
    "SweepResult",
    "measure_table",
]

_logger = logging.getLogger(__name__)

#: Exponents of the background among which that of each method is chosen; the foreground begins at 0.72, 0.68, 0.62,
#: 0.56, 0.5, 0.44, 0.38, 0.28, 0.19 and 0.12 of a map's range.
EXPONENTS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0, 8.0, 16.0)

#: Further exponents for methods that are best at one end of :data:`EXPONENTS`, by this end: the foreground begins at
#: 0.77, 0.82 and 0.88 of a map's range, or at 0.08, 0.05 and 0.03.
FURTHER_EXPONENTS: dict[float, tuple[float, ...]] = {
    EXPONENTS[0]: (0.18, 0.12, 0.06),
    EXPONENTS[-1]: (32.0, 64.0, 128.0),
}

# Eq. 7 of the paper.
_PAPER_EXPONENT = 1.0

# Label variants of an image that the CRF refines together: bounds memory.
_CHUNK_SIZE = 16


@dataclass(frozen=True, order=True)
class LabelSettings:
    """How labels are derived from maps.

    Attributes:
        exponent: exponent of the background, see :func:`dcsm_attr.attribution.maps.background`.
        refined: whether the CRF refines them.
    """

    exponent: float
    refined: bool

    def __str__(self) -> str:
        """Format as in a file: ``"2.0"``, or ``"2.0 crf"``."""
        return f"{self.exponent} crf" if self.refined else f"{self.exponent}"

    @staticmethod
    def parse(text: str) -> "LabelSettings":
        """Invert ``str``."""
        exponent, *refined = text.split(" ")
        return LabelSettings(float(exponent), refined == ["crf"])


# A method that gives labels itself depends on no background.
_NO_BACKGROUND = LabelSettings(1.0, refined=False)


@dataclass(frozen=True)
class Measurement:
    """Counts of all methods of one table.

    Attributes:
        table: the methods.
        protocol: whether the image-level labels were known.
        exponents: chosen exponent by method name, for methods that give maps.
        tuning_result: counts on the images on which the exponents were chosen.
        result: counts on the images of the figures.
    """

    table: Table
    protocol: ProtocolName
    exponents: Mapping[str, float]
    tuning_result: "SweepResult"
    result: "SweepResult"

    def confusion(self, method: Method, *, refined: bool, own_background: bool) -> Confusion | None:
        """Return the counts of one method.

        Args:
            method: a method of the table.
            refined: after the CRF, or before it.
            own_background: with the exponent that was chosen for the method, or with Eq. 7.

        Returns:
            None where there are no such counts: a method that gives labels itself has only one confusion, which counts
            as refined.
        """
        confusions = self.result.confusions[method.name]
        if method.labels is not None:
            return next(iter(confusions.values())) if refined else None
        exponent = self.exponents[method.name] if own_background else _PAPER_EXPONENT
        return confusions[LabelSettings(exponent, refined)]

    def confusions_by_exponent(self, method: Method) -> dict[float, Confusion]:
        """Return the counts on the tuning images by exponent; empty for a method without a background."""
        confusions = self.tuning_result.confusions.get(method.name, {})
        return {settings.exponent: confusions[settings] for settings in sorted(confusions)}


def measure_table(
    table: Table,
    classifier: Classifier,
    tuning_collection: Collection,
    test_collection: Collection,
    protocol: ProtocolName,
    folder: Path,
    *,
    crf: DenseCRF = DenseCRF(),  # noqa: B008 - frozen
    progress: bool = True,
) -> Measurement:
    """Measure the methods of a table.

    Args:
        table: a table of the classifier.
        classifier: in any mode; it is left unchanged.
        tuning_collection: images on which the background of each method is chosen, by mean IoU before the CRF, or after
            it for methods with a CRF of their own. Labels are compared on the canvas.
        test_collection: images of the figures, before and after the CRF, with Eq. 7's background and the chosen one.
        protocol: whether the image-level labels are known.
        folder: for gradients and counts, which all tables of the classifier share.
        crf: the refinement.
        progress: whether to show bars.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if the folder belongs to another classifier or other images, or a collection is empty, has no
            masks or other classes, or none of its images can be read.
    """
    for collection in (tuning_collection, test_collection):
        check_collection(collection, classifier.class_names)
    methods = list({row.method.name: row.method for row in table.rows}.values())
    store = GradientStore(folder / "gradients", classifier)

    def sweep(collection: Collection, name: str, on_canvas: bool) -> Sweep:
        counts = folder / "counts" / f"{name}-{protocol}"
        return Sweep(classifier, collection, protocol, store, counts, crf, on_canvas, progress)

    def try_exponents(exponents: Mapping[Method, Sequence[float]]) -> SweepResult:
        settings = {
            method: [LabelSettings(exponent, refined=method.crf is not None) for exponent in of_method]
            for method, of_method in exponents.items()
        }
        return sweep(tuning_collection, "background", True).run(settings, f"background of {len(settings)} methods")

    tuned = try_exponents({method: EXPONENTS for method in methods if method.maps})
    ends = {method: _best_exponent(tuned.confusions[method.name]) for method in methods if method.maps}
    tuned |= try_exponents({m: FURTHER_EXPONENTS[end] for m, end in ends.items() if end in FURTHER_EXPONENTS})
    chosen = {name: _best_exponent(confusions) for name, confusions in tuned.confusions.items()}
    settings: dict[Method, Sequence[LabelSettings]] = {}
    for method in methods:
        exponents = {_PAPER_EXPONENT, chosen[method.name]} if method.maps else {_PAPER_EXPONENT}
        refinements = (False, True) if method.maps else (False,)
        settings[method] = [LabelSettings(e, refined) for e in sorted(exponents) for refined in refinements]
    result = sweep(test_collection, "figures", False).run(settings, f"figures of {len(settings)} methods")
    return Measurement(table, protocol, chosen, tuned, result)


def _best_exponent(confusions: Mapping[LabelSettings, Confusion]) -> float:
    # Of equally good ones the smallest, so that the choice does not depend on their order.
    return max(sorted(confusions), key=lambda settings: (confusions[settings].mean_iou, -settings.exponent)).exponent


@dataclass(frozen=True)
class SweepResult:
    """Counts of a sweep.

    Attributes:
        confusions: by the name of the method and the label settings.
        num_images: number of images that were counted.
        skipped: reason by the name of each image that was skipped.
    """

    confusions: Mapping[str, Mapping[LabelSettings, Confusion]]
    num_images: int
    skipped: Mapping[str, str]

    def __or__(self, other: "SweepResult") -> "SweepResult":
        """Add the counts of further label settings on the same images."""
        confusions = {name: dict(of_method) for name, of_method in self.confusions.items()}
        for name, of_method in other.confusions.items():
            confusions.setdefault(name, {}).update(of_method)
        return SweepResult(confusions, max(self.num_images, other.num_images), {**self.skipped, **other.skipped})


@dataclass(frozen=True)
class Sweep:
    """Evaluates methods on one collection under one protocol.

    Attributes:
        classifier: the network whose maps are compared.
        collection: images with masks, with the classes of the classifier.
        protocol: whether the image-level labels are known.
        store: stores gradients.
        folder: for the counts, one folder per method; an interrupted sweep resumes, and a sweep with further methods
            counts only these.
        crf: refines labels of methods without a CRF of their own.
        on_canvas: whether labels are compared with the mask on the canvas, which is several times faster and good
            enough to choose between settings, or at the size of the image, as :func:`evaluate` does.
        progress: whether to show a bar.
    """

    classifier: Classifier
    collection: Collection
    protocol: ProtocolName
    store: GradientStore
    folder: Path
    crf: DenseCRF
    on_canvas: bool = False
    progress: bool = True

    def run(self, settings: Mapping[Method, Sequence[LabelSettings]], description: str) -> SweepResult:
        """Count the pixels of all images that are not counted yet, and sum up.

        Args:
            settings: label settings of each method; methods have different names.
            description: for the bar.

        Returns:
            The sums over all images that could be read.

        Raises:
            OSError: if the folder cannot be written to.
            ValueError: if names are not unique, the folder belongs to another network or collection, or none of the
                images can be read.
        """
        names = [method.name for method in settings]
        if len(set(names)) < len(names):
            raise ValueError(f"methods must have different names, got {', '.join(names)}.")
        files = {method: self._open_file(method, of_method) for method, of_method in settings.items()}
        image_names = [item.name for item in self.collection]
        rows: dict[Method, list[CountedCase | SkippedImage]] = {
            method: read_rows(files[method], CountedCase, image_names, 1) for method in settings
        }
        done = min(map(len, rows.values()), default=len(image_names))
        with tqdm(
            total=len(image_names), initial=done, unit="image", desc=description, disable=not self.progress
        ) as bar:
            for number in range(done, len(image_names)):
                missing = {method: settings[method] for method in settings if len(rows[method]) == number}
                for method, row in self._count(number, missing).items():
                    append_rows(files[method], [row])
                    rows[method].append(row)
                bar.update()
        return self._sum_up(rows)

    def _open_file(self, method: Method, settings: Sequence[LabelSettings]) -> Path:
        short = re.sub(r"[^a-z0-9.]+", "-", method.name.lower()).strip("-")[:80]
        description = self._describe(method, settings)
        digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:8]
        folder = self.folder / f"{short}-{digest}"
        return open_run_folder(folder, description, "counts", results=[ROWS_FILE]) / ROWS_FILE

    def _describe(self, method: Method, settings: Sequence[LabelSettings]) -> dict[str, Any]:
        return {
            "dcsm_attr": dcsm_attr.__version__,
            "method": method.name,
            "label_settings": [str(one) for one in sorted(settings)],
            "protocol": self.protocol,
            "parameters": self.store.parameters,
            "pooling": self.classifier.pooling,
            "preprocess": asdict(self.classifier.preprocess),
            "crf": asdict(method.crf or self.crf),
            "on_canvas": self.on_canvas,
            "images": labels_digest(self.collection),
        }

    def _count(
        self, number: int, settings: Mapping[Method, Sequence[LabelSettings]]
    ) -> "dict[Method, CountedCase | SkippedImage]":
        """Label one image by all methods and count pixels."""
        item = self.collection.images[number]
        try:
            case = load_case(item, self.classifier, self.store, self.protocol)
        except SKIPPED_ERRORS as error:
            _logger.warning("%s is skipped: %s", item.name, error)
            return {method: SkippedImage(item.name, str(error)) for method in settings}
        labels = {method: {_NO_BACKGROUND: method.labels(case)} for method in settings if method.labels is not None}
        probabilities = {
            method: _label_probabilities(method, case, of_method)
            for method, of_method in settings.items()
            if method.maps is not None
        }
        for method, of_method in self._refine(probabilities, case).items():
            labels[method] = {one: self._to_labels(values, case) for one, values in of_method.items()}
        size = 1 + len(self.collection.class_names)
        mask = resize_labels(case.mask, case.prepared.pixels.shape[1:]) if self.on_canvas else case.mask
        return {
            method: CountedCase(
                case.name,
                {
                    str(one): to_sparse_counts(confusion_matrix(_to_class_labels(slots, case, mask), mask, size, VOID))
                    for one, slots in of_method.items()
                },
            )
            for method, of_method in labels.items()
        }

    def _refine(
        self, probabilities: Mapping[Method, Mapping[LabelSettings, Tensor]], case: Case
    ) -> dict[Method, dict[LabelSettings, Tensor]]:
        """Run each CRF on everything that it refines, with one lattice."""
        result = {method: dict(of_method) for method, of_method in probabilities.items()}
        keys_by_crf: dict[DenseCRF, list[tuple[Method, LabelSettings]]] = defaultdict(list)
        for method, of_method in result.items():
            keys_by_crf[method.crf or self.crf] += [(method, one) for one in of_method if one.refined]
        for crf, keys in keys_by_crf.items():
            for start in range(0, len(keys), _CHUNK_SIZE):
                chunk = keys[start : start + _CHUNK_SIZE]
                stacked = torch.stack([result[method][one] for method, one in chunk])
                refined_chunk = crf.refine_alternatives(stacked, case.prepared.pixels)
                for (method, one), refined in zip(chunk, refined_chunk, strict=True):
                    result[method][one] = refined
        return result

    def _to_labels(self, probabilities: Tensor, case: Case) -> Tensor:
        sized = probabilities if self.on_canvas else case.prepared.restore(probabilities)
        # The same as argmax, which is several times slower along the first dimension.
        return sized.max(dim=0).indices

    def _sum_up(self, rows: "Mapping[Method, Sequence[CountedCase | SkippedImage]]") -> SweepResult:
        size = 1 + len(self.collection.class_names)
        confusions = {}
        counted = set[str]()
        skipped = {}
        for method, of_method in rows.items():
            totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros(size, size, dtype=torch.int64))
            for row in of_method:
                if isinstance(row, SkippedImage):
                    skipped[row.name] = row.reason
                    continue
                counted.add(row.name)
                for settings, entries in row.counts.items():
                    totals[settings] += from_sparse_counts(entries, size)
            if not totals:
                raise ValueError(
                    f"none of the {len(of_method)} images could be measured, such as {of_method[0].name}: "
                    f"{skipped[of_method[0].name]}"
                )
            confusions[method.name] = {LabelSettings.parse(text): Confusion(total) for text, total in totals.items()}
        return SweepResult(confusions, len(counted), skipped)


def _label_probabilities(method: Method, case: Case, settings: Sequence[LabelSettings]) -> dict[LabelSettings, Tensor]:
    """Label probabilities ``(1 + K, h, w)`` on the canvas, before the CRF."""
    assert method.maps is not None
    cropped = case.prepared.crop(method.maps(case))[None]
    present = torch.ones(1, cropped.shape[1], dtype=torch.bool)
    exponents = sorted({one.exponent for one in settings})
    scores = torch.cat([label_scores(cropped, present, exponent) for exponent in exponents])
    if method.walk is not None:
        scores = method.walk(case, scores)
    by_exponent = dict(zip(exponents, scores / scores.sum(dim=1, keepdim=True), strict=True))
    return {one: by_exponent[one.exponent] for one in settings}


def _to_class_labels(slots: Tensor, case: Case, mask: Tensor) -> Tensor:
    """Map slots (0 background, ``1 + k``) to labels (``1 + c``) at the size of the mask."""
    return resize_labels(torch.tensor([0, *(1 + c for c in case.classes)])[slots], mask.shape)


@dataclass(frozen=True)
class CountedCase:
    """The counts of one image, one line of a file.

    Attributes:
        name: id of the image.
        counts: by label settings as text, the entries of the confusion matrix that are not zero: truth, prediction,
            pixels.
    """

    name: str
    counts: Mapping[str, list[list[int]]]


def to_sparse_counts(confusion: Tensor) -> list[list[int]]:
    """Return the entries ``[truth, prediction, pixels]`` of a matrix ``(L, L)`` that are not zero."""
    where = confusion.nonzero()
    return torch.cat([where, confusion[where[:, 0], where[:, 1]][:, None]], dim=1).tolist()


def from_sparse_counts(entries: list[list[int]], size: int) -> Tensor:
    """Return the matrix ``(L, L)`` int64 of :func:`to_sparse_counts`."""
    confusion = torch.zeros(size, size, dtype=torch.int64)
    for truth, prediction, pixels in entries:
        confusion[truth, prediction] = pixels
    return confusion

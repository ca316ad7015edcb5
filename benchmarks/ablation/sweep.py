"""Many methods on the same images: each image is read once, each CRF built once, each count kept."""

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
from benchmarks.ablation.case import Case, load_case
from benchmarks.ablation.counts import CountedCase, CountsRow, Reading, dense, parse_counts_row, sparse
from benchmarks.ablation.gradient_store import GradientStore
from benchmarks.ablation.method import Method
from dcsm_attr.attribution.maps import label_scores
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.datasets.masks import VOID, resize_labels
from dcsm_attr.evaluation.evaluate import SkippedImage, append_lines, format_row, load_rows
from dcsm_attr.evaluation.label_maps import SKIPPED_ERRORS
from dcsm_attr.evaluation.metrics import confusion_matrix
from dcsm_attr.evaluation.result import Confusion, Protocol, labels_digest
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["Sweep", "SweepResult"]


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

"""One table measured: the background of each method chosen on one set of images, its figures taken on another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablation.counts import Reading
from benchmarks.ablation.gradient_store import GradientStore
from benchmarks.ablation.method import Method
from benchmarks.ablation.sweep import Sweep, SweepResult
from benchmarks.ablation.tables import Table
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection
from dcsm_attr.evaluation.label_maps import check_collection
from dcsm_attr.evaluation.result import Confusion, Protocol
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["EXPONENTS", "FURTHER_EXPONENTS", "Measurement", "measure_table"]


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

"""The paper's tables, each as the methods whose rows it compares."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from torch import Tensor

from benchmarks.ablation.case import Case
from benchmarks.ablation.grabcut import grabcut_labels
from benchmarks.ablation.gradient_store import OUTER_SCALES, PassName
from benchmarks.ablation.method import Method, combine_gradients
from benchmarks.peers import REFERENCE_METHODS, reference_maps
from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.fusion import fused, heat_maps
from dcsm_attr.attribution.layers import default_layers, layer_blocks
from dcsm_attr.attribution.maps import VARIANTS
from dcsm_attr.crf import DenseCRF
from dcsm_attr.models.checkpoint import Classifier
from dcsm_attr.segmentation.presets import TUNED_CRF

__all__ = ["TABLES", "Row", "Table", "dcsm", "simonyan"]


_PAPER_SCALES = VARIANTS["paper"].scales


@dataclass(frozen=True)
class Row:
    """One row of a table, one point of its figure.

    Attributes:
        series: the curve to which it belongs.
        label: its place on the axis.
        method: what is measured.
    """

    series: str
    label: str
    method: Method


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        title: what it shows, and which table of the paper it is.
        axis: what varies.
        rows: in order.
        rows_per_class: whether the report shows the IoU of each class.
        per_exponent: whether it shows the mean IoU over the exponents among which each background was chosen.
    """

    title: str
    axis: str
    rows: tuple[Row, ...]
    rows_per_class: bool = False
    per_exponent: bool = False


def dcsm(
    classifier: Classifier, name: str = "DCSM", passes: tuple[PassName, ...] = ("guided",), **settings: Any
) -> Method:
    """DCSM with the paper's settings, but for those that are named.

    Args:
        classifier: the network.
        name: of the method; must tell the settings.
        passes: that kept its gradients.
        **settings: of :class:`DistinctClassSaliency`.
    """
    saliency = DistinctClassSaliency(
        classifier.network, **{"layer": default_layers(classifier.network), "pooling": classifier.pooling, **settings}
    )
    return Method(name, maps=lambda case: combine_gradients(saliency, case, *passes))


def simonyan(classifier: Classifier, alpha: float) -> Method:
    """Simonyan's saliency."""
    saliency = Simonyan(classifier.network, alpha=alpha, pooling=classifier.pooling)
    return Method(f"Simonyan, alpha {alpha:g}", maps=lambda case: combine_gradients(saliency, case, "images"))


def _raw(classifier: Classifier) -> Method:
    return dcsm(classifier, "DCSM, no subtraction", subtract=False, min_candidates=1)


def _alpha(classifier: Classifier) -> Table:
    def with_alpha(alpha: float) -> Method:
        return dcsm(classifier) if alpha == 3 else dcsm(classifier, f"DCSM, alpha {alpha:g}", alpha=alpha)

    rows = [Row("DCSM", f"{alpha:g}", with_alpha(alpha)) for alpha in (1, 2, 3, 5, 8)]
    rows += [Row("Simonyan", f"{alpha:g}", simonyan(classifier, alpha)) for alpha in (1, 3, 5, 8, 9, 12)]
    return Table("The steepness of tanh (Table 1 of the paper)", "alpha", tuple(rows))


def _layers(classifier: Classifier) -> Table:
    blocks = layer_blocks(classifier.network)
    default = default_layers(classifier.network)

    def of(chosen: tuple[int, ...]) -> Row:
        layers = [name for i in chosen for name in blocks[i]]
        label = "+".join(str(1 + i) for i in chosen)
        method = dcsm(classifier) if layers == default else dcsm(classifier, f"DCSM, blocks {label}", layer=layers)
        return Row("single block" if len(chosen) == 1 else "combination", label, method)

    runs = [tuple(range(a, b)) for a, b in combinations(range(len(blocks) + 1), 2)]
    rows = [of(run) for run in sorted(runs, key=lambda run: (len(run), run))]
    return Table("The blocks of layers and their combinations (Table 2 of the paper)", "blocks", tuple(rows))


def _size(classifier: Classifier) -> Table:
    side = classifier.preprocess.side
    every = tuple(sorted((*_PAPER_SCALES, *OUTER_SCALES)))

    def of(chosen: tuple[float, ...]) -> Row:
        label = "+".join(f"{round(side * scale)}" for scale in chosen)
        passes = tuple(
            name for name, scales in (("guided", _PAPER_SCALES), ("outer", OUTER_SCALES)) if set(chosen) & set(scales)
        )
        method = (
            dcsm(classifier)
            if chosen == _PAPER_SCALES
            else dcsm(classifier, f"DCSM, sizes {label}", passes, scales=chosen)
        )
        return Row("single size" if len(chosen) == 1 else "combination", label, method)

    chosen = [(scale,) for scale in every] + [
        every[:2],
        every[1:3],
        every[2:4],
        every[:3],
        every[1:4],
        every[2:],
        every,
    ]
    return Table("The sizes of the image (Table 3 of the paper)", "longest side in pixels", tuple(map(of, chosen)))


def _candidates(classifier: Classifier) -> Table:
    def of(minimum: int) -> Method:
        if minimum == 3:
            return dcsm(classifier)
        return dcsm(classifier, f"DCSM, N = {minimum}", min_candidates=minimum)

    rows = [Row("DCSM", "0", _raw(classifier))]
    rows += [Row("DCSM", str(minimum), of(minimum)) for minimum in (1, 2, 3, 4, 5, 10, 15)]
    return Table("The number of candidates N; 0 subtracts nothing (Table 4 of the paper)", "N", tuple(rows))


def _rule(classifier: Classifier) -> Table:
    plain = dcsm(classifier, "DCSM, plain gradient", ("plain",), guided=False)
    plain_raw = dcsm(
        classifier,
        "DCSM, plain gradient, no subtraction",
        ("plain",),
        guided=False,
        subtract=False,
        min_candidates=1,
    )
    rows = (
        Row("N = 3", "plain", plain),
        Row("N = 3", "guided", dcsm(classifier)),
        Row("no subtraction", "plain", plain_raw),
        Row("no subtraction", "guided", _raw(classifier)),
    )
    return Table("The gradient of rectifiers (Table 5 of the paper)", "rule", rows)


def _crf(classifier: Classifier) -> Table:
    rows = (
        Row("DCSM", "N = 3", dcsm(classifier)),
        Row("DCSM", "no subtraction", _raw(classifier)),
        Row("Simonyan", "alpha 8", simonyan(classifier, 8)),
    )
    return Table("Without and with CRF, and each class (Table 6 of the paper)", "method", rows, rows_per_class=True)


def _variant(classifier: Classifier) -> Table:
    rows = (
        Row("variant", "paper", dcsm(classifier)),
        Row("variant", "matconvnet", dcsm(classifier, "DCSM, matconvnet", ("matconvnet",), variant="matconvnet")),
        Row("variant", "caffe", dcsm(classifier, "DCSM, caffe", ("caffe",), variant="caffe")),
    )
    return Table("The paper's equations and the two released codes", "variant", rows)


def _fusion(classifier: Classifier) -> Table:
    raw, distinct = _raw(classifier), dcsm(classifier)
    simonyans = simonyan(classifier, 8)
    rows = (
        Row("heat map", "alone", Method("heat map", maps=_heat)),
        Row("heat map", "x raw guided maps", Method("heat map x raw guided maps", maps=_fuse_with(raw))),
        Row("heat map", "x DCSM", Method("heat map x DCSM", maps=_fuse_with(distinct))),
        Row("maps alone", "raw guided maps", raw),
        Row("maps alone", "DCSM", distinct),
        Row("Simonyan", "with the CRF", simonyans),
        Row("Simonyan", "with GrabCut", Method("Simonyan, GrabCut", labels=_grabcut_method(simonyans))),
    )
    title = "Class score maps, their fusion with saliency (the slides' FCN with GBP), and Simonyan with GrabCut"
    return Table(title, "maps", rows)


def _heat(case: Case) -> Tensor:
    side = case.classifier.preprocess.side
    return heat_maps(case.logits[:, case.classes], (side, side))[0]


def _fuse_with(method: Method) -> Callable[[Case], Tensor]:
    of_saliency = method.maps
    assert of_saliency is not None
    return lambda case: fused(_heat(case)[None], of_saliency(case)[None])[0]


def _grabcut_method(method: Method) -> Callable[[Case], Tensor]:
    of_saliency = method.maps
    assert of_saliency is not None

    def labels(case: Case) -> Tensor:
        pixels = case.prepared.pixels.permute(1, 2, 0).numpy()
        return grabcut_labels(pixels, case.prepared.crop(of_saliency(case)))

    return labels


def _peers(classifier: Classifier) -> Table:
    def of(name: str) -> Row:
        peer = REFERENCE_METHODS[name]
        return Row(
            "peers", peer.title, Method(f"{peer.title} ({peer.distribution})", maps=partial(_reference_maps, name))
        )

    ours = (
        Row("ours", "DCSM", dcsm(classifier)),
        Row("ours", "no subtraction", _raw(classifier)),
        Row("ours", "Simonyan, alpha 8", simonyan(classifier, 8)),
    )
    return Table("Class activation methods of other libraries", "method", (*map(of, REFERENCE_METHODS), *ours))


def _preset(classifier: Classifier) -> Table:
    layers = default_layers(classifier.network)

    def among(count: int) -> Row:
        method = dcsm(classifier, f"DCSM, among the present, {count} deepest", layer=layers[-count:], min_candidates=1)
        return Row("among the present", f"{count} deepest layers" if count > 1 else "deepest layer", method)

    deepest = len(layers)
    rows = [
        Row("the paper's", "DCSM (N = 3)", dcsm(classifier)),
        Row("the paper's", "no subtraction", _raw(classifier)),
        Row("the paper's", "Simonyan, alpha 8", simonyan(classifier, 8)),
        Row("among the present", "all layers", dcsm(classifier, "DCSM, N = 1", min_candidates=1)),
        *(among(count) for count in (4, 2, 1) if count < deepest),
        Row("heat map", "alone", Method("heat map", maps=_heat)),
        *(row for row in _peers(classifier).rows if row.series == "peers"),
    ]
    tuned = tuple(replace(row, method=_with_crf(row.method, "tuned CRF", TUNED_CRF)) for row in rows)
    title = "Beyond the paper: all methods with the CRF of the preset 'tuned', each with its best background after it"
    return Table(title, "method", tuned)


def _with_crf(method: Method, name: str, crf: DenseCRF) -> Method:
    return replace(method, name=f"{method.name}, {name}", crf=crf)


def _reference_maps(name: str, case: Case) -> Tensor:
    classifier = case.classifier
    device = next(classifier.network.parameters()).device
    return reference_maps(
        name, classifier.network, classifier.pooling, case.prepared.tensor[None].to(device), case.classes
    )


TABLES: dict[str, Callable[[Classifier], Table]] = {
    "alpha": _alpha,
    "layers": _layers,
    "size": _size,
    "candidates": _candidates,
    "rule": _rule,
    "crf": _crf,
    "variant": _variant,
    "fusion": _fusion,
    "peers": _peers,
    "preset": _preset,
}

"""The paper's tables, each as the methods whose rows it compares.

What the walk is worth on which maps, and how far it should go, as tables of an ablation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Generic, TypeVar

from torch import Tensor

from benchmarks.ablation.grabcut import grabcut_labels
from benchmarks.ablation.gradients import OUTER_SCALES, PassName
from benchmarks.ablation.methods import Case, Method, combine_gradients
from benchmarks.peers import REFERENCE_METHODS, reference_maps
from dcsm_attr.attribution import ClassActivationMaps, DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.class_maps import Saliency
from dcsm_attr.attribution.fusion import fused, heat_maps
from dcsm_attr.attribution.layers import default_layers, layer_blocks
from dcsm_attr.attribution.maps import VARIANTS
from dcsm_attr.crf import DenseCRF
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.models.checkpoint import Classifier, TrainedAffinityNet
from dcsm_attr.segmentation.presets import PRESETS, TUNED_CRF
from dcsm_attr.wsss.random_walk import SemanticWalk

__all__ = ["AFFINITY_TABLES", "TABLES", "Row", "Table", "dcsm", "simonyan"]


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


_BETAS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_STEPS = (4, 8, 16, 32, 64, 128, 256)
# Of the paper and its release.
_PUBLISHED: dict[str, Any] = {"beta": 8.0, "steps": 256}

_Value = TypeVar("_Value")


class _CachedPerCase(Generic[_Value]):
    """Keeps what was computed for the last image, which several methods ask for one after the other."""

    def __init__(self, compute: Callable[[Case], _Value]) -> None:
        self._compute = compute
        self._last: tuple[Case, _Value] | None = None

    def __call__(self, case: Case) -> _Value:
        if self._last is None or self._last[0] is not case:
            self._last = case, self._compute(case)
        return self._last[1]


def _saliency_maps(saliency: Saliency, case: Case) -> Tensor:
    parameter = next(case.classifier.network.parameters())
    found = saliency.class_maps(case.prepared.tensor[None].to(parameter.device), [case.classes])
    return found.select_classes(case.classes).cpu()


def _seeds(classifier: Classifier) -> dict[str, Method]:
    """The maps that are compared, by their names."""
    network, pooling = classifier.network, classifier.pooling
    tuned = PRESETS["tuned"]
    distinct = DistinctClassSaliency(
        network, pooling=pooling, min_candidates=tuned.min_candidates, deepest=tuned.deepest
    )
    activation = ClassActivationMaps(network, pooling=pooling)
    of_cam = _CachedPerCase(lambda case: _saliency_maps(activation, case))
    of_dcsm = _CachedPerCase(lambda case: _saliency_maps(distinct, case))
    return {
        "CAM": Method("CAM", maps=of_cam),
        "DCSM": Method("DCSM, tuned", maps=of_dcsm),
        "CAM x DCSM": Method("CAM x DCSM, tuned", maps=lambda case: fused(of_cam(case)[None], of_dcsm(case)[None])[0]),
    }


def _walk_method(method: Method, walk: SemanticWalk, seen: _CachedPerCase[Tensor]) -> Method:
    digest = parameters_digest(walk.net.network)[:12]
    told = f"radius {walk.radius}, beta {walk.beta:g}, {walk.steps} steps, border {walk.border}"
    return replace(
        method,
        name=f"{method.name}, AffinityNet of {walk.net.seed} ({digest}, {walk.net.norm}), {told}",
        walk=lambda case, scores: walk.refine_all(scores, seen(case)),
    )


def _affinities_of(net: TrainedAffinityNet) -> _CachedPerCase[Tensor]:
    walk = SemanticWalk(net)
    return _CachedPerCase(lambda case: walk.affinities(case.prepared.crop(case.prepared.tensor)).cpu())


def _affinity(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    seen = {net.seed: _affinities_of(net) for net in nets}
    walks = {f"AffinityNet of {net.seed}": SemanticWalk(net) for net in nets}
    walks["beta and t as published"] = SemanticWalk(nets[0], **_PUBLISHED)
    rows = []
    for title, method in _seeds(classifier).items():
        rows.append(Row(title, "no walk", method))
        rows += [Row(title, label, _walk_method(method, walk, seen[walk.net.seed])) for label, walk in walks.items()]
    title = "AffinityNet's random walk: maps of three methods, and networks trained from their labels"
    return Table(title, "walk", tuple(rows), rows_per_class=True, per_exponent=True)


def _beta(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    walks = {f"{beta:g}": SemanticWalk(nets[0], beta=beta) for beta in _BETAS}
    return _varied(classifier, walks, "beta", f"The power beta of affinities, {SemanticWalk.steps} steps")


def _steps(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    walks = {str(steps): SemanticWalk(nets[0], steps=steps) for steps in _STEPS}
    return _varied(classifier, walks, "t", f"The steps t of the walk, beta = {SemanticWalk.beta:g}")


def _varied(classifier: Classifier, walks: Mapping[str, SemanticWalk], axis: str, title: str) -> Table:
    seen = _affinities_of(next(iter(walks.values())).net)
    rows = [
        Row(seed, label, _walk_method(method, walk, seen))
        for seed, method in _seeds(classifier).items()
        for label, walk in walks.items()
    ]
    return Table(title, axis, tuple(rows))


#: By name, a function of a classifier and of networks trained with it, at least one, to a table.
AFFINITY_TABLES: Mapping[str, Callable[[Classifier, Sequence[TrainedAffinityNet]], Table]] = {
    "affinity": _affinity,
    "walk-beta": _beta,
    "walk-steps": _steps,
}

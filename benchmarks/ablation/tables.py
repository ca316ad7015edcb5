"""The tables: each is a title, an axis, and rows with the methods that it compares.

Tables 1 to 6 of the paper, the two released codes, fusion and GrabCut, other libraries, the preset ``tuned``, and the
random walk of AffinityNet (which needs trained networks, see :data:`AFFINITY_TABLES`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Generic, TypeVar

from torch import Tensor

from benchmarks.ablation.grabcut import grabcut_labels
from benchmarks.ablation.gradients import OUTER_SCALES, PassName
from benchmarks.ablation.methods import Case, Method, dcsm, simonyan
from benchmarks.peers import REFERENCE_METHODS, reference_maps
from dcsm_attr.attribution import ClassActivationMaps, DistinctClassSaliency
from dcsm_attr.attribution.class_maps import Saliency
from dcsm_attr.attribution.fusion import fuse_maps, heat_maps
from dcsm_attr.attribution.layers import default_layers, layer_blocks
from dcsm_attr.attribution.maps import VARIANTS
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.models.checkpoint import Classifier, TrainedAffinityNet
from dcsm_attr.segmentation.presets import PRESETS, TUNED_CRF
from dcsm_attr.wsss.random_walk import SemanticWalk

__all__ = ["AFFINITY_TABLES", "TABLES", "Row", "Table"]

_PAPER_SCALES = VARIANTS["paper"].scales


@dataclass(frozen=True)
class Row:
    """One row of a table, one point of its figure.

    Attributes:
        series: the curve to which it belongs.
        label: its place on the axis.
        method: the method that is measured.
    """

    series: str
    label: str
    method: Method


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        title: what it shows, and the number of the paper's table.
        axis: what varies.
        rows: in order.
        rows_per_class: whether the report shows the IoU per class.
        per_exponent: whether it shows the mean IoU over the exponents among which each background is chosen.
    """

    title: str
    axis: str
    rows: tuple[Row, ...]
    rows_per_class: bool = False
    per_exponent: bool = False


def _without_contrast(classifier: Classifier) -> Method:
    return dcsm(classifier, "DCSM, no subtraction", subtract=False, min_candidates=1)


def _alpha_table(classifier: Classifier) -> Table:
    def with_alpha(alpha: float) -> Method:
        return dcsm(classifier) if alpha == 3 else dcsm(classifier, f"DCSM, alpha {alpha:g}", alpha=alpha)

    rows = [Row("DCSM", f"{alpha:g}", with_alpha(alpha)) for alpha in (1, 2, 3, 5, 8)]
    rows += [Row("Simonyan", f"{alpha:g}", simonyan(classifier, alpha)) for alpha in (1, 3, 5, 8, 9, 12)]
    return Table("The steepness of tanh (Table 1 of the paper)", "alpha", tuple(rows))


def _layers_table(classifier: Classifier) -> Table:
    blocks = layer_blocks(classifier.network)
    default = default_layers(classifier.network)

    def row(chosen: Sequence[int]) -> Row:
        layers = [name for i in chosen for name in blocks[i]]
        label = "+".join(str(1 + i) for i in chosen)
        method = dcsm(classifier) if layers == default else dcsm(classifier, f"DCSM, blocks {label}", layer=layers)
        return Row("single block" if len(chosen) == 1 else "combination", label, method)

    consecutive = [range(start, stop) for start, stop in combinations(range(len(blocks) + 1), 2)]
    rows = [row(run) for run in sorted(consecutive, key=lambda run: (len(run), run.start))]
    return Table("The blocks of layers and their combinations (Table 2 of the paper)", "blocks", tuple(rows))


def _size_table(classifier: Classifier) -> Table:
    side = classifier.preprocess.side
    every = tuple(sorted((*_PAPER_SCALES, *OUTER_SCALES)))
    pass_scales: dict[PassName, tuple[float, ...]] = {"guided": _PAPER_SCALES, "outer": OUTER_SCALES}

    def row(chosen: tuple[float, ...]) -> Row:
        label = "+".join(f"{round(side * scale)}" for scale in chosen)
        passes = tuple(name for name, scales in pass_scales.items() if set(chosen) & set(scales))
        method = (
            dcsm(classifier)
            if chosen == _PAPER_SCALES
            else dcsm(classifier, f"DCSM, sizes {label}", passes, scales=chosen)
        )
        return Row("single size" if len(chosen) == 1 else "combination", label, method)

    single = [(scale,) for scale in every]
    pairs = [every[:2], every[1:3], every[2:4]]
    larger = [every[:3], every[1:4], every[2:], every]
    rows = tuple(row(chosen) for chosen in (*single, *pairs, *larger))
    return Table("The sizes of the image (Table 3 of the paper)", "longest side in pixels", rows)


def _candidates_table(classifier: Classifier) -> Table:
    def with_minimum(minimum: int) -> Method:
        if minimum == 3:
            return dcsm(classifier)
        return dcsm(classifier, f"DCSM, N = {minimum}", min_candidates=minimum)

    rows = [Row("DCSM", "0", _without_contrast(classifier))]
    rows += [Row("DCSM", str(minimum), with_minimum(minimum)) for minimum in (1, 2, 3, 4, 5, 10, 15)]
    return Table("The number of candidates N; 0 subtracts nothing (Table 4 of the paper)", "N", tuple(rows))


def _rule_table(classifier: Classifier) -> Table:
    plain = dcsm(classifier, "DCSM, plain gradient", ("plain",), guided=False)
    plain_without_contrast = dcsm(
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
        Row("no subtraction", "plain", plain_without_contrast),
        Row("no subtraction", "guided", _without_contrast(classifier)),
    )
    return Table("The gradient of rectifiers (Table 5 of the paper)", "rule", rows)


def _crf_table(classifier: Classifier) -> Table:
    rows = (
        Row("DCSM", "N = 3", dcsm(classifier)),
        Row("DCSM", "no subtraction", _without_contrast(classifier)),
        Row("Simonyan", "alpha 8", simonyan(classifier, 8)),
    )
    return Table("Without and with CRF, and each class (Table 6 of the paper)", "method", rows, rows_per_class=True)


def _variant_table(classifier: Classifier) -> Table:
    rows = (
        Row("variant", "paper", dcsm(classifier)),
        Row("variant", "matconvnet", dcsm(classifier, "DCSM, matconvnet", ("matconvnet",), variant="matconvnet")),
        Row("variant", "caffe", dcsm(classifier, "DCSM, caffe", ("caffe",), variant="caffe")),
    )
    return Table("The paper's equations and the two released codes", "variant", rows)


def _fusion_table(classifier: Classifier) -> Table:
    raw, distinct = _without_contrast(classifier), dcsm(classifier)
    saliency = simonyan(classifier, 8)
    rows = (
        Row("heat map", "alone", Method("heat map", maps=_heat_maps)),
        Row("heat map", "x raw guided maps", Method("heat map x raw guided maps", maps=_fuse_with_heat_maps(raw))),
        Row("heat map", "x DCSM", Method("heat map x DCSM", maps=_fuse_with_heat_maps(distinct))),
        Row("maps alone", "raw guided maps", raw),
        Row("maps alone", "DCSM", distinct),
        Row("Simonyan", "with the CRF", saliency),
        Row("Simonyan", "with GrabCut", Method("Simonyan, GrabCut", labels=_label_by_grabcut(saliency))),
    )
    title = "Class score maps, their fusion with saliency (the slides' FCN with GBP), and Simonyan with GrabCut"
    return Table(title, "maps", rows)


def _heat_maps(case: Case) -> Tensor:
    side = case.classifier.preprocess.side
    return heat_maps(case.logits[:, case.classes], (side, side))[0]


def _fuse_with_heat_maps(method: Method) -> Callable[[Case], Tensor]:
    maps = method.maps
    assert maps is not None
    return lambda case: fuse_maps(_heat_maps(case)[None], maps(case)[None])[0]


def _label_by_grabcut(method: Method) -> Callable[[Case], Tensor]:
    maps = method.maps
    assert maps is not None

    def labels(case: Case) -> Tensor:
        pixels = case.prepared.pixels.permute(1, 2, 0).numpy()
        return grabcut_labels(pixels, case.prepared.crop(maps(case)))

    return labels


def _peers_table(classifier: Classifier) -> Table:
    rows = (
        *_reference_rows(),
        Row("ours", "DCSM", dcsm(classifier)),
        Row("ours", "no subtraction", _without_contrast(classifier)),
        Row("ours", "Simonyan, alpha 8", simonyan(classifier, 8)),
    )
    return Table("Class activation methods of other libraries", "method", rows)


def _reference_rows() -> list[Row]:
    return [
        Row("peers", method.title, Method(f"{method.title} ({method.distribution})", maps=partial(_reference, name)))
        for name, method in REFERENCE_METHODS.items()
    ]


def _reference(name: str, case: Case) -> Tensor:
    network, pooling = case.classifier.network, case.classifier.pooling
    device = next(network.parameters()).device
    return reference_maps(name, network, pooling, case.prepared.tensor[None].to(device), case.classes)


def _preset_table(classifier: Classifier) -> Table:
    layers = default_layers(classifier.network)

    def deepest_layers(count: int) -> Row:
        method = dcsm(classifier, f"DCSM, among the present, {count} deepest", layer=layers[-count:], min_candidates=1)
        return Row("among the present", f"{count} deepest layers" if count > 1 else "deepest layer", method)

    rows = [
        Row("the paper's", "DCSM (N = 3)", dcsm(classifier)),
        Row("the paper's", "no subtraction", _without_contrast(classifier)),
        Row("the paper's", "Simonyan, alpha 8", simonyan(classifier, 8)),
        Row("among the present", "all layers", dcsm(classifier, "DCSM, N = 1", min_candidates=1)),
        *(deepest_layers(count) for count in (4, 2, 1) if count < len(layers)),
        Row("heat map", "alone", Method("heat map", maps=_heat_maps)),
        *_reference_rows(),
    ]
    tuned = [
        replace(row, method=replace(row.method, name=f"{row.method.name}, tuned CRF", crf=TUNED_CRF)) for row in rows
    ]
    title = "Beyond the paper: all methods with the CRF of the preset 'tuned', each with its best background after it"
    return Table(title, "method", tuple(tuned))


#: Table of a classifier by name.
TABLES: dict[str, Callable[[Classifier], Table]] = {
    "alpha": _alpha_table,
    "layers": _layers_table,
    "size": _size_table,
    "candidates": _candidates_table,
    "rule": _rule_table,
    "crf": _crf_table,
    "variant": _variant_table,
    "fusion": _fusion_table,
    "peers": _peers_table,
    "preset": _preset_table,
}


# The random walk of AffinityNet

_BETAS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_STEPS = (4, 8, 16, 32, 64, 128, 256)
# Of the paper and its release.
_PUBLISHED: dict[str, Any] = {"beta": 8.0, "steps": 256}

_Value = TypeVar("_Value")


class _CachedPerCase(Generic[_Value]):
    """Keeps the value of the last case, which several methods request one after the other."""

    def __init__(self, compute: Callable[[Case], _Value]) -> None:
        self._compute = compute
        self._last: tuple[Case, _Value] | None = None

    def __call__(self, case: Case) -> _Value:
        if self._last is None or self._last[0] is not case:
            self._last = case, self._compute(case)
        return self._last[1]


def _affinity_table(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    affinities = {net.seed: _cached_affinities(net) for net in nets}
    walks = {f"AffinityNet of {net.seed}": SemanticWalk(net) for net in nets}
    walks["beta and t as published"] = SemanticWalk(nets[0], **_PUBLISHED)
    rows = []
    for title, method in _seed_methods(classifier).items():
        rows.append(Row(title, "no walk", method))
        rows += [Row(title, label, _add_walk(method, walk, affinities[walk.net.seed])) for label, walk in walks.items()]
    title = "AffinityNet's random walk: maps of three methods, and networks trained from their labels"
    return Table(title, "walk", tuple(rows), rows_per_class=True, per_exponent=True)


def _beta_table(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    walks = {f"{beta:g}": SemanticWalk(nets[0], beta=beta) for beta in _BETAS}
    return _walk_table(classifier, walks, "beta", f"The power beta of affinities, {SemanticWalk.steps} steps")


def _steps_table(classifier: Classifier, nets: Sequence[TrainedAffinityNet]) -> Table:
    walks = {str(steps): SemanticWalk(nets[0], steps=steps) for steps in _STEPS}
    return _walk_table(classifier, walks, "t", f"The steps t of the walk, beta = {SemanticWalk.beta:g}")


def _walk_table(classifier: Classifier, walks: Mapping[str, SemanticWalk], axis: str, title: str) -> Table:
    affinities = _cached_affinities(next(iter(walks.values())).net)
    rows = [
        Row(seed, label, _add_walk(method, walk, affinities))
        for seed, method in _seed_methods(classifier).items()
        for label, walk in walks.items()
    ]
    return Table(title, axis, tuple(rows))


def _cached_affinities(net: TrainedAffinityNet) -> _CachedPerCase[Tensor]:
    walk = SemanticWalk(net)
    return _CachedPerCase(lambda case: walk.affinities(case.prepared.crop(case.prepared.tensor)).cpu())


def _seed_methods(classifier: Classifier) -> dict[str, Method]:
    """Methods whose maps the walk propagates, by series."""
    network, pooling = classifier.network, classifier.pooling
    tuned = PRESETS["tuned"]
    dcs = DistinctClassSaliency(
        network, pooling=pooling, min_candidates=tuned.min_candidates, deepest=tuned.num_deepest_layers
    )
    cam = ClassActivationMaps(network, pooling=pooling)
    cam_maps = _CachedPerCase(partial(_class_maps, cam))
    dcs_maps = _CachedPerCase(partial(_class_maps, dcs))
    return {
        "CAM": Method("CAM", maps=cam_maps),
        "DCSM": Method("DCSM, tuned", maps=dcs_maps),
        "CAM x DCSM": Method(
            "CAM x DCSM, tuned", maps=lambda case: fuse_maps(cam_maps(case)[None], dcs_maps(case)[None])[0]
        ),
    }


def _class_maps(saliency: Saliency, case: Case) -> Tensor:
    parameter = next(case.classifier.network.parameters())
    found = saliency.class_maps(case.prepared.tensor[None].to(parameter.device), [case.classes])
    return found.select_classes(case.classes).cpu()


def _add_walk(method: Method, walk: SemanticWalk, affinities: _CachedPerCase[Tensor]) -> Method:
    digest = parameters_digest(walk.net.network)[:12]
    settings = f"radius {walk.radius}, beta {walk.beta:g}, {walk.steps} steps, border {walk.border}"
    return replace(
        method,
        name=f"{method.name}, AffinityNet of {walk.net.seed} ({digest}, {walk.net.norm}), {settings}",
        walk=lambda case, scores: walk.refine_all(scores, affinities(case)),
    )


#: Table of a classifier and of at least one AffinityNet that was trained with it, by name.
AFFINITY_TABLES: Mapping[str, Callable[[Classifier, Sequence[TrainedAffinityNet]], Table]] = {
    "affinity": _affinity_table,
    "walk-beta": _beta_table,
    "walk-steps": _steps_table,
}

"""What the walk is worth on which maps, and how far it should go, as tables of an ablation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from benchmarks.ablation.case import Case
from benchmarks.ablation.method import Method
from benchmarks.ablation.tables import Row, Table
from dcsm_attr.attribution import ClassActivationMaps, DistinctClassSaliency
from dcsm_attr.attribution.class_maps import Saliency
from dcsm_attr.attribution.fusion import fused
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.models.affinity_net import TrainedAffinityNet
from dcsm_attr.models.checkpoint import Classifier
from dcsm_attr.segmentation.presets import PRESETS
from dcsm_attr.wsss.random_walk import SemanticWalk

__all__ = ["AFFINITY_TABLES"]


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
    return found.of_classes(case.classes).cpu()


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
        walk=lambda case, scores: walk.walked(scores, seen(case)),
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

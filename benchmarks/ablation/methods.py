"""The methods that ablations compare, and the prepared image that each of them receives.

A :class:`Method` is a name and a function from a :class:`Case` (one image with its classes) to maps or labels.
:func:`dcsm` and :func:`simonyan` build the two that combine stored gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from benchmarks.ablation.gradients import GradientStore, PassName
from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.cached_gradients import CachedGradients, class_maps_from_gradients
from dcsm_attr.attribution.candidates import class_scores
from dcsm_attr.attribution.layers import default_layers
from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.evaluation.evaluate import read_with_mask
from dcsm_attr.evaluation.result import ProtocolName
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["Case", "Method", "dcsm", "load_case", "simonyan"]

_DETECTION_THRESHOLD = 0.5


@dataclass
class Case:
    """One image under one protocol.

    Attributes:
        name: id of the image.
        classifier: the network whose maps are compared.
        prepared: the image on the canvas of the classifier.
        mask: ``(H, W)`` int64, ground truth.
        logits: ``(1, C, h, w)``, score maps of the canvas.
        classes: the K classes that are labeled, the best first: the image-level labels, or the detected classes. A
            pixel at which maps are equal gets the first of them.
        required: classes of both protocols, so that both share their gradients.
        by_score: all classes, the best first.
    """

    name: str
    classifier: Classifier
    prepared: CanvasImage
    mask: Tensor
    logits: Tensor
    classes: list[int]
    required: list[int] = field(repr=False)
    by_score: list[int] = field(repr=False)
    _store: GradientStore = field(repr=False)
    _gradients: dict[PassName, CachedGradients] = field(default_factory=dict, repr=False)

    def candidates(self, minimum: int) -> list[int]:
        """Return the classes, followed by the best other ones up to ``minimum``."""
        return list(dict.fromkeys([*self.classes, *self.by_score]))[: max(minimum, len(self.classes))]

    def gradients(self, name: PassName) -> CachedGradients:
        """Return the gradients of a pass, which are computed if they are not stored yet."""
        if name not in self._gradients:
            self._gradients[name] = self._store.load_or_compute(
                name, self.name, self.prepared, self.required, self.by_score
            )
        return self._gradients[name]


def load_case(item: LabeledImage, classifier: Classifier, store: GradientStore, protocol: ProtocolName) -> Case:
    """Read an image and its mask, and let the classifier score its classes.

    Args:
        item: an image with a mask.
        classifier: on any device.
        store: stores the gradients of the classifier.
        protocol: whether the image-level labels are known. Where no class is detected, the best one counts as detected.

    Raises:
        ImageReadError, MaskError, ValueError: as :func:`~dcsm_attr.evaluation.evaluate.read_with_mask`.
    """
    image, mask = read_with_mask(item, protocol, len(classifier.class_names))
    prepared = classifier.preprocess(image)
    parameter = next(classifier.network.parameters())
    with prepared_model(classifier.network, parameter.device):
        logits = classifier.network(prepared.tensor[None].to(parameter.device)).float().cpu()
    scores = class_scores(logits, "auto", classifier.pooling)[0]
    by_score = scores.argsort(descending=True, stable=True).tolist()
    detected = [c for c in by_score if scores[c] > _DETECTION_THRESHOLD] or by_score[:1]
    known = [c for c in by_score if c in item.classes]
    return Case(
        item.name,
        classifier,
        prepared,
        mask,
        logits,
        known if protocol == "known" else detected,
        list(dict.fromkeys([*known, *detected])),
        by_score,
        store,
    )


@dataclass(frozen=True)
class Method:
    """One way to label an image, which a row of a table measures.

    Attributes:
        name: unique; names everything that the result depends on except network, images and background.
        maps: from a case to maps ``(K, S, S)`` in [0, 1] of its classes, on the canvas. None if ``labels`` is given.
        labels: from a case to labels ``(h, w)`` int64 of the image on its canvas: 0 background, ``1 + k`` for the k-th
            class. None: labels follow from the maps, a background and the CRF.
        crf: a CRF for this method, after which its background is chosen. None: the CRF of the table; the background is
            chosen before it.
        walk: from a case and label scores ``(S, 1 + K, h, w)`` of several backgrounds to propagated ones, before the
            CRF. None: scores are used as they are.

    Raises:
        ValueError: if there are neither maps nor labels, or both; or a walk without maps.
    """

    name: str
    maps: Callable[[Case], Tensor] | None = None
    labels: Callable[[Case], Tensor] | None = None
    crf: DenseCRF | None = None
    walk: Callable[[Case, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that exactly one of maps and labels is given."""
        if (self.maps is None) == (self.labels is None):
            raise ValueError(f"the method {self.name!r} must give either maps or labels.")
        if self.walk is not None and self.maps is None:
            raise ValueError(f"the method {self.name!r} gives labels: it has no scores that a walk could propagate.")


def dcsm(
    classifier: Classifier, name: str = "DCSM", passes: tuple[PassName, ...] = ("guided",), **settings: Any
) -> Method:
    """Build DCSM with the paper's settings, except for the given ones.

    Args:
        classifier: the network.
        name: name of the method; must identify the settings.
        passes: passes that provide the gradients; scales of several passes are joined.
        **settings: arguments of :class:`DistinctClassSaliency`.
    """
    saliency = DistinctClassSaliency(
        classifier.network, **{"layer": default_layers(classifier.network), "pooling": classifier.pooling, **settings}
    )

    def maps(case: Case) -> Tensor:
        gradients = case.gradients(passes[0])
        for further in passes[1:]:
            gradients = gradients + case.gradients(further)
        # Candidates are given: a released code may choose others, at other scales, whose gradients are not stored.
        candidates = case.candidates(saliency.min_candidates)
        found = class_maps_from_gradients(saliency, gradients, case.classes, candidates)
        return found.select_classes(case.classes)

    return Method(name, maps=maps)


def simonyan(classifier: Classifier, alpha: float) -> Method:
    """Build the saliency of Simonyan et al. with a steepness ``alpha`` of tanh."""
    saliency = Simonyan(classifier.network, alpha=alpha, pooling=classifier.pooling)

    def maps(case: Case) -> Tensor:
        found = class_maps_from_gradients(saliency, case.gradients("images"), case.classes)
        return found.select_classes(case.classes)

    return Method(f"Simonyan, alpha {alpha:g}", maps=maps)

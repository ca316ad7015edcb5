"""One image, prepared once, with everything that the methods need of it at hand.

What is compared: ways to come from an image and its classes to maps, or straight to labels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from benchmarks.ablation.gradients import GradientStore, PassName
from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution.cached_gradients import CachedGradients, class_maps_from_gradients
from dcsm_attr.attribution.candidates import class_scores
from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.evaluation.label_maps import read_with_mask
from dcsm_attr.evaluation.result import Protocol
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["Case", "Method", "combine_gradients", "load_case"]


_THRESHOLD = 0.5


@dataclass
class Case:
    """An image under one protocol.

    Attributes:
        name: its id.
        classifier: the network that is asked.
        prepared: on the canvas of the classifier.
        mask: ``(H, W)`` int64, the truth.
        logits: ``(1, C, h, w)``, the score maps of the canvas.
        classes: the K classes that are to be labeled, the best first: the image-level labels, or those that are
            detected. A pixel where maps are equal goes to the first.
        required: the classes of both protocols, so that they share their gradients.
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
    _kept: dict[PassName, CachedGradients] = field(default_factory=dict, repr=False)

    def candidates(self, minimum: int) -> list[int]:
        """Its classes, filled up with the best of the others."""
        return list(dict.fromkeys([*self.classes, *self.by_score]))[: max(minimum, len(self.classes))]

    def kept(self, name: PassName) -> CachedGradients:
        """The gradients of a pass; see :func:`benchmarks.ablation.gradients.gradient_passes`."""
        if name not in self._kept:
            self._kept[name] = self._store.gradients(name, self.name, self.prepared, self.required, self.by_score)
        return self._kept[name]


def load_case(photograph: LabeledImage, classifier: Classifier, store: GradientStore, protocol: Protocol) -> Case:
    """Read an image and its mask, and ask the classifier what is in it.

    Args:
        photograph: with a mask.
        classifier: on any device.
        store: of its gradients.
        protocol: what is told about the image. Where nothing is detected, the best class counts as detected.

    Raises:
        ImageReadError, MaskError, ValueError: as :func:`~dcsm_attr.evaluation.label_maps.read_with_mask`.
    """
    image, mask = read_with_mask(photograph, protocol, len(classifier.class_names))
    prepared = classifier.preprocess(image)
    parameter = next(classifier.network.parameters())
    with prepared_model(classifier.network, parameter.device):
        logits = classifier.network(prepared.tensor[None].to(parameter.device)).float().cpu()
    scores = class_scores(logits, "auto", classifier.pooling)[0]
    by_score = scores.argsort(descending=True, stable=True).tolist()
    detected = [c for c in by_score if scores[c] > _THRESHOLD] or by_score[:1]
    known = [c for c in by_score if c in photograph.classes]
    return Case(
        photograph.name,
        classifier,
        prepared,
        mask,
        logits,
        known if protocol is Protocol.KNOWN else detected,
        list(dict.fromkeys([*known, *detected])),
        by_score,
        store,
    )


@dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
        name: unique; says everything that the row depends on beside network, photographs and background.
        maps: a case to maps ``(K, S, S)`` in [0, 1] of its classes, on the canvas. None: it gives labels itself.
        labels: a case to labels ``(h, w)`` int64 of the image on its canvas: 0 background, ``1 + k`` for the k-th
            class. None: the labels follow from the maps, a background and the CRF.
        crf: the CRF of this method, which its background is then chosen after. None: that of the table, and the
            background is chosen before it.
        walk: what the scores of labels go through before the CRF: a case and scores ``(S, 1 + K, h, w)`` of several
            backgrounds to better ones. None: nothing.

    Raises:
        ValueError: if there are neither maps nor labels, or both; or a walk without maps.
    """

    name: str
    maps: Callable[[Case], Tensor] | None = None
    labels: Callable[[Case], Tensor] | None = None
    crf: DenseCRF | None = None
    walk: Callable[[Case, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check that there is one way."""
        if (self.maps is None) == (self.labels is None):
            raise ValueError(f"the method {self.name!r} must give either maps or labels.")
        if self.walk is not None and self.maps is None:
            raise ValueError(f"the method {self.name!r} gives labels: there are no scores that could walk.")


def combine_gradients(method: DistinctClassSaliency | Simonyan, case: Case, *passes: PassName) -> Tensor:
    """Combine kept gradients as a method does.

    Args:
        method: whose layers, scales and candidates were kept.
        case: the image.
        *passes: their names; scales of several passes are put together.

    Returns:
        ``(K, S, S)``, in the order of the classes of the case.
    """
    kept = case.kept(passes[0])
    for name in passes[1:]:
        kept = kept + case.kept(name)
    if isinstance(method, Simonyan):
        found = class_maps_from_gradients(method, kept, classes=case.classes)
    else:
        # Named, since a released code may choose others, at other scales, whose gradients were not kept.
        found = class_maps_from_gradients(method, kept, case.classes, case.candidates(method.min_candidates))
    return found.select_classes(case.classes)

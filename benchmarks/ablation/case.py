"""One image, prepared once, with everything that the methods need of it at hand."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.ablation.gradient_store import GradientStore, PassName
from dcsm_attr.attribution.cached_gradients import CachedGradients
from dcsm_attr.attribution.candidates import class_scores
from dcsm_attr.attribution.model import evaluation_mode
from dcsm_attr.datasets.collection import LabeledImage
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.evaluation.label_maps import read_with_mask
from dcsm_attr.evaluation.result import Protocol
from dcsm_attr.models.checkpoint import Classifier

__all__ = ["Case", "load_case"]


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
        """The gradients of a pass; see :func:`benchmarks.ablation.gradient_store.gradient_passes`."""
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
    with torch.no_grad(), evaluation_mode(classifier.network):
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

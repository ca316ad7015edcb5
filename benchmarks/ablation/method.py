"""What is compared: ways to come from an image and its classes to maps, or straight to labels."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.ablation.case import Case
from benchmarks.ablation.gradient_store import PassName
from dcsm_attr.attribution import DistinctClassSaliency, Simonyan
from dcsm_attr.crf import DenseCRF

__all__ = ["Method", "combine_gradients"]


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
        found = method.class_maps_from_gradients(kept, classes=case.classes)
    else:
        # Named, since a released code may choose others, at other scales, whose gradients were not kept.
        found = method.class_maps_from_gradients(kept, case.classes, case.candidates(method.min_candidates))
    return found.of_classes(case.classes)

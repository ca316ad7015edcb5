"""Where the classes of a photograph are seen well enough to be seeds: from the maps of any method."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from dcsm_attr.backbones.preprocess import Prepared
from dcsm_attr.seeded.seeds import above_share_of_maximum
from dcsm_attr.segmentation.segmenter import Saliency

__all__ = ["Localiser", "MapLocaliser"]


class Localiser(Protocol):
    """A way from a photograph and its classes to foreground seeds."""

    def __call__(self, canvas: Tensor, prepared: Prepared, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localise.

        Args:
            canvas: ``(1, 3, S, S)``, normalised, on the device of the network.
            prepared: where on it the photograph lies.
            classes: K classes of the photograph.

        Returns:
            Seeds ``(K, h, w)`` bool where the photograph lies, and maps ``(K, h, w)`` that decide where seeds of
            several classes meet.
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on beside network and photograph, ready for JSON."""
        ...


@dataclass(frozen=True)
class MapLocaliser:
    """SEC's foreground: where a map is above a share of its maximum.

    Attributes:
        saliency: gives the maps.
        share: of the maximum; SEC has 0.2.
    """

    saliency: Saliency
    share: float = 0.2

    def __call__(self, canvas: Tensor, prepared: Prepared, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localise; see :class:`Localiser`."""
        found = self.saliency.class_maps(canvas, [list(classes)])
        maps = prepared.crop(found.of_classes(classes))
        return above_share_of_maximum(maps[None], self.share)[0], maps

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on beside network and photograph, ready for JSON."""
        return {"saliency": self.saliency.settings, "share": self.share}

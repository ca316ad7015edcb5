"""From many maps of each class to one label map: what any of them shows, and where they contradict, their mean.

Lee et al., "FickleNet", CVPR 2019. The maps may be those of any method that gives other ones each time, as DCSM's
do with dropout switched on (:func:`~dcsm_attr.ficklenet.stochastic_saliency.stochastic_class_maps`).
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcsm_attr.maps import divide_by_maximum
from dcsm_attr.palette import VOID

__all__ = ["Aggregate", "aggregated", "aggregates", "check_threshold"]


@dataclass(frozen=True)
class Aggregate:
    """What is kept of any number of maps.

    Attributes:
        highest: ``(K, H, W)``, the maximum over the maps, each divided by its own maximum.
        total: ``(K, H, W)``, their sum.
        count: how many they were.
    """

    highest: Tensor
    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """``(K, H, W)`` in [0, 1]."""
        return self.total / self.count

    def labels(self, classes: Sequence[int], threshold: float = 0.35) -> Tensor:
        """Label each pixel that any map is sure of.

        Args:
            classes: of the K slots.
            threshold: above which one of the maps must be; the paper's is 0.35.

        Returns:
            ``(H, W)`` int64: ``c + 1`` where a map of class c is above the threshold, where those of several classes
            are, the one of them with the highest mean; 255 where none is.

        Raises:
            ValueError: if there is not one class a slot, or the threshold is outside [0, 1].
        """
        if len(classes) != len(self.highest):
            raise ValueError(f"classes must name each of the {len(self.highest)} slots; got {len(classes)}.")
        check_threshold(threshold)
        sure = self.highest > threshold
        slot = self.total.masked_fill(~sure, -torch.inf).argmax(dim=0)
        labels = torch.tensor(classes, device=slot.device)[slot] + 1
        return torch.where(sure.any(dim=0), labels, VOID)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that maps, each divided by its maximum, cannot have.

    Raises:
        ValueError: if it is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of each map's maximum and must lie in [0, 1], got {threshold}.")


def aggregated(maps: Iterable[Tensor]) -> Aggregate:
    """Aggregate maps as they come; none of them is kept.

    That each map is divided by its maximum before it is compared with a threshold is our choice.

    Args:
        maps: each ``(K, H, W)``, not negative, of one picture.

    Raises:
        ValueError: if there is none, or they differ in shape.
    """
    last = deque(aggregates(maps), maxlen=1)
    if not last:
        raise ValueError("there are no maps to aggregate: at least one is needed.")
    return last[0]


def aggregates(maps: Iterable[Tensor]) -> Iterator[Aggregate]:
    """The aggregate of the first map, of the first two, and so on; each shares its memory with the next one.

    Args:
        maps: as in :func:`aggregated`.

    Raises:
        ValueError: if they differ in shape.
    """
    aggregate: Aggregate | None = None
    for one in maps:
        normalised = divide_by_maximum(one.detach().to(torch.promote_types(one.dtype, torch.float32)))
        if aggregate is None:
            aggregate = Aggregate(normalised, normalised.clone(), 1)
        else:
            if normalised.shape != aggregate.highest.shape:
                raise ValueError(
                    f"maps must all be of one shape (K, H, W); got {tuple(normalised.shape)} after "
                    f"{tuple(aggregate.highest.shape)}."
                )
            aggregate.total.add_(normalised)
            torch.maximum(aggregate.highest, normalised, out=aggregate.highest)
            aggregate = replace(aggregate, count=aggregate.count + 1)
        yield aggregate

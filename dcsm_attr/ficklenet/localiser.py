"""FickleNet's foreground seeds: what any of many stochastic maps is sure of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dcsm_attr.backbones.convolutional import ScoreMapNetwork
from dcsm_attr.backbones.preprocess import Prepared
from dcsm_attr.ficklenet.aggregation import aggregated, check_threshold
from dcsm_attr.ficklenet.localisation import GradCamForm, fickle_maps
from dcsm_attr.stochastic.selection import StochasticSelection

__all__ = ["FickleLocaliser", "selections_of"]


def selections_of(network: ScoreMapNetwork) -> list[StochasticSelection]:
    """The stochastic selections of a network.

    Raises:
        ValueError: if there is none.
    """
    found = [module for module in network.modules() if isinstance(module, StochasticSelection)]
    if not found:
        raise ValueError(
            "this network selects no hidden units at random, so that all of its maps are alike: train one with "
            "dcsm-attr train --head fickle."
        )
    return found


@dataclass(frozen=True)
class FickleLocaliser:
    """Stochastic inference, aggregated; a :class:`~dcsm_attr.seeded.localisers.Localiser`.

    Attributes:
        network: whose head holds a stochastic selection.
        draws: N; 200 in the paper.
        threshold: above which one of the maps must be, each divided by its maximum; 0.35 in the paper.
        form: see :func:`~dcsm_attr.ficklenet.localisation.grad_cam`.
        seed: of the draws, the same for each photograph.

    Raises:
        ValueError: if the network selects no units at random, or the threshold is outside [0, 1].
    """

    network: ScoreMapNetwork
    draws: int = 200
    threshold: float = 0.35
    form: GradCamForm = "elementwise"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the network and the threshold."""
        selections_of(self.network)
        check_threshold(self.threshold)

    def __call__(self, canvas: Tensor, prepared: Prepared, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localise.

        Args:
            canvas: ``(1, 3, S, S)``, normalised, on the device of the network.
            prepared: where on it the photograph lies.
            classes: K classes of the photograph.

        Returns:
            Seeds ``(K, h, w)`` bool where the photograph lies, and the mean maps ``(K, h, w)``.
        """
        size = (canvas.shape[2], canvas.shape[3])
        maps = fickle_maps(self.network, canvas, classes, self.draws, form=self.form, size=size, seed=self.seed)
        aggregate = aggregated(prepared.crop(one) for one in maps)
        return aggregate.highest > self.threshold, aggregate.mean

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on beside the parameters and the photograph, ready for JSON."""
        (selection, *_) = selections_of(self.network)
        return {
            "method": "FickleNet",
            "draws": self.draws,
            "threshold": self.threshold,
            "form": self.form,
            "seed": self.seed,
            "window": selection.kernel_size[0],
            "rate": selection.rate,
            "centre_kept": selection.centre_kept,
        }

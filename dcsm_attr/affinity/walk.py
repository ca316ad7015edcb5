"""The random walk as a step of a segmentation: from class maps on a photograph to class maps along its objects."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.affinity.affinities import affinities
from dcsm_attr.affinity.neighbours import Border, neighbour_offsets
from dcsm_attr.affinity.network import GRID_STRIDE, TrainedAffinityNet
from dcsm_attr.affinity.random_walk import random_walk
from dcsm_attr.evaluation.provenance import parameters_digest
from dcsm_attr.guest import evaluation_mode

__all__ = ["SemanticWalk"]


@dataclass(frozen=True)
class SemanticWalk:
    r"""Let scores walk along the affinities that AffinityNet sees in the photograph.

    They are multiplied by :math:`T^t` with :math:`T = D^{-1} W^{\circ\beta}` (Ahn and Kwak, Eq. 9 and 10). Give it to
    :class:`dcsm_attr.Segmenter` as ``walk``.

    Attributes:
        net: a trained AffinityNet; its network is left as it is found, on the device where it is.
        radius: of the neighbourhood, in positions of 8 pixels.
        beta: power of each affinity; larger makes unlikely steps unlikelier. 8 as published.
        steps: t, of the walk. 256 as published, which with networks that see borders less surely than VGG-16 trained on
            10,582 photographs carries everything everywhere; beta and t were chosen on 96 photographs of VOC's training
            set.
        border: ``"released"``: the release's, in which scores never leave the corners; see
            :func:`dcsm_attr.affinity.neighbours.pair_mask`.

    Raises:
        ValueError: if radius, beta or steps are out of their range.
    """

    net: TrainedAffinityNet
    radius: int = 5
    beta: float = 16.0
    steps: int = 32
    border: Border = "full"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.radius < 2:
            raise ValueError(f"radius must be at least 2, the smallest with neighbours, got {self.radius}.")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be positive, got {self.beta}.")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the walk depends on beside the photograph, ready for JSON."""
        return {
            "parameters": self._digest,
            "norm": self.net.norm,
            "radius": self.radius,
            "beta": self.beta,
            "steps": self.steps,
            "border": self.border,
        }

    @cached_property
    def _digest(self) -> str:
        # Once: a segmenter tells its settings with every batch, and this reads all parameters.
        return parameters_digest(self.net.network)

    def affinities(self, image: Tensor) -> Tensor:
        """The affinities that the network sees.

        Args:
            image: ``(3, H, W)``, normalised as the network was trained.

        Returns:
            ``(1, P, ceil(H / 8), ceil(W / 8))`` in [0, 1], see :func:`dcsm_attr.affinity.affinities.affinities`.
        """
        network = self.net.network
        parameter = next(network.parameters())
        height, width = image.shape[1:]
        # The release's padding to whole positions, so that they lie where those of the maps do.
        padded = F.pad(image[None], (0, -width % GRID_STRIDE, 0, -height % GRID_STRIDE))
        with torch.no_grad(), evaluation_mode(network):
            features = network(padded.to(parameter.device, parameter.dtype))
            return affinities(features, neighbour_offsets(self.radius), self.net.norm)

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """Let the scores of one photograph walk.

        Args:
            scores: ``(L, H, W)``, of the background and of classes, in [0, 1].
            image: ``(3, H, W)``, as in :meth:`affinities`.

        Returns:
            ``(L, H, W)`` in [0, 1], on the device of the scores.
        """
        return self.walked(scores[None], self.affinities(image))[0]

    def walked(self, scores: Tensor, seen: Tensor) -> Tensor:
        """The same for several scores of one photograph, with affinities that were asked for already.

        Args:
            scores: ``(S, L, H, W)`` in [0, 1].
            seen: ``(1, P, h, w)`` of :meth:`affinities`.

        Returns:
            ``(S, L, H, W)`` in [0, 1]: averaged over positions of 8 x 8 pixels, walked, and enlarged bilinearly.
        """
        count, labels, height, width = scores.shape
        # Windows that reach over the edge are averaged over what is inside.
        grid = F.avg_pool2d(scores, GRID_STRIDE, ceil_mode=True, count_include_pad=False)
        walked = random_walk(
            grid.view(1, count * labels, *grid.shape[2:]),
            seen.to(scores.device),
            neighbour_offsets(self.radius),
            beta=self.beta,
            steps=self.steps,
            border=self.border,
        )
        enlarged = F.interpolate(walked, scale_factor=float(GRID_STRIDE), mode="bilinear")
        return enlarged[..., :height, :width].reshape(scores.shape)

"""AffinityNet: features whose distance says whether two positions show the same."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcsm_attr.affinity.affinities import Norm
from dcsm_attr.backbones.classifier import Architecture
from dcsm_attr.backbones.described_file import building_from, read_description, save_described
from dcsm_attr.backbones.loading import load_weights, read_weights
from dcsm_attr.backbones.preprocess import Preprocess
from dcsm_attr.backbones.stages import staged_trunk, stages_of
from dcsm_attr.backbones.trunk_copy import copied_trunk

__all__ = ["GRID_STRIDE", "AffinityHead", "AffinityNet", "TrainedAffinityNet", "load_affinity_net", "save_affinity_net"]

#: Pixels of the image to one position of the features.
GRID_STRIDE = 8

_KEY = "dcsm_attr.affinity_net"
# Channels that the maps of the last three stages are reduced to, and the groups of their norms, as released.
_WIDTHS = (64, 128, 256)
_GROUPS = (8, 16, 32)
# Of the last layer's initial weights, as released.
_GAIN = 4.0


class AffinityHead(nn.Module):
    """Maps of several stages to one map of features."""

    def __init__(self, channels: Sequence[int], norm: Norm) -> None:
        """Draw the layers from PyTorch's global generator.

        Args:
            channels: of the maps, at most three.
            norm: of the distance that the features are made for. With ``"sum"`` they begin smaller by their number, so
                that affinities begin as they do with ``"mean"``: neither all 0 nor all 1.
        """
        super().__init__()
        widths = _WIDTHS[-len(channels) :]
        self.reductions = nn.ModuleList(
            nn.Sequential(nn.Conv2d(given, width, 1, bias=False), nn.GroupNorm(groups, width), nn.ELU())
            for given, width, groups in zip(channels, widths, _GROUPS[-len(channels) :], strict=True)
        )
        total = sum(widths)
        self.mixing = nn.Conv2d(total, total, 1, bias=False)
        for layer in self.reductions.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.xavier_uniform_(self.mixing.weight, gain=_GAIN if norm == "mean" else _GAIN / total)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Reduce, resize, concatenate, mix.

        Args:
            maps: ``(N, C_i, h_i, w_i)``.
            size: ``(h, w)`` of the result.

        Returns:
            ``(N, D, h, w)``, above -1.
        """
        reduced = [_resized(reduction(one), size) for reduction, one in zip(self.reductions, maps, strict=True)]
        return F.elu(self.mixing(torch.cat(reduced, dim=1)))


class AffinityNet(nn.Module):
    r"""Features :math:`f` of positions, with affinities :math:`\exp(-|f_i - f_j|_1)` between them.

    Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision", CVPR 2018. The released network
    takes conv4, conv5 and the fully connected layer of a dilated VGG, all at stride 8. Here the trunk stays as it is:
    the maps of its last three resolutions are reduced by 1 x 1 convolutions and then resized to stride 8; averaged
    where they are finer, bilinearly where they are coarser. Each reduction has a group norm, which the release has for
    VGG alone: the maps of other networks differ in size by orders of magnitude.

    Attributes:
        trunk: images to the maps of the stages.
        head: these to features.
    """

    def __init__(self, trunk: nn.Module, norm: Norm = "mean") -> None:
        """Build the network on a trunk.

        Args:
            trunk: of a :class:`~dcsm_attr.backbones.convolutional.ScoreMapNetwork`, or any that ``torch.fx`` can trace;
                copied with its weights. The head is drawn from PyTorch's global generator.
            norm: see :class:`AffinityHead`.

        Raises:
            ValueError: if the trunk has no convolutions.
        """
        super().__init__()
        stages = stages_of(trunk)[-len(_WIDTHS) :]
        self.trunk = staged_trunk(copied_trunk(trunk), stages)
        self.head = AffinityHead([stage.channels for stage in stages], norm)

    def forward(self, images: Tensor) -> Tensor:
        """Features of positions at stride 8.

        Args:
            images: ``(N, 3, H, W)``.

        Returns:
            ``(N, D, ceil(H / 8), ceil(W / 8))``, D = 448 for a trunk of three stages or more.
        """
        size = (-(-images.shape[2] // GRID_STRIDE), -(-images.shape[3] // GRID_STRIDE))
        features: Tensor = self.head(list(self.trunk(images).values()), size)
        return features


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[2] > size[0] or maps.shape[3] > size[1]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size, mode="bilinear")


@dataclass(frozen=True)
class TrainedAffinityNet:
    """An AffinityNet with what it was built from.

    Attributes:
        network: gives features.
        architecture: the classifier whose trunk it has.
        preprocess: the canvas that it was, or is to be, trained on.
        norm: of its distances.
        seed: the method whose maps gave the labels that it is trained from, in a word.
    """

    network: AffinityNet
    architecture: Architecture
    preprocess: Preprocess
    norm: Norm = "mean"
    seed: str = ""


def save_affinity_net(trained: TrainedAffinityNet, path: str | Path) -> None:
    """Write the network to a ``.safetensors`` file, which appears when it is complete.

    Args:
        trained: all of it is kept.
        path: of the file.
    """
    description = {
        "architecture": trained.architecture.plain(),
        "preprocess": asdict(trained.preprocess),
        "norm": trained.norm,
        "seed": trained.seed,
    }
    save_described(trained.network, path, _KEY, description)


def load_affinity_net(path: str | Path) -> TrainedAffinityNet:
    """Load what :func:`save_affinity_net` wrote.

    Args:
        path: the file.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        WeightsError: if the file is missing, incomplete, or no AffinityNet of this package.
    """
    description = read_description(path, _KEY, "AffinityNet that `dcsm-attr affinity` wrote", "Train one.")
    with building_from(path, "train again."):
        architecture = Architecture(**description["architecture"])
        preprocess = Preprocess.from_plain(description["preprocess"])
        norm, seed = description["norm"], description["seed"]
        network = AffinityNet(architecture.new_network().trunk, norm)
    load_weights(network, read_weights(path), str(path))
    return TrainedAffinityNet(network.eval(), architecture, preprocess, norm, seed)

"""Segmentation networks: a head that gives logits of labels, on the backbone of any classifier."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from dcsm_attr.models.backbone import copy_backbone, replace_stride_with_dilation
from dcsm_attr.models.fully_convolutional import output_channels

__all__ = ["FieldOfViewHead", "SegmentationHead", "SegmentationNet", "segmentation_head"]


SegmentationHead = Literal["deeplab", "fcn", "largefov", "aspp"]


class SegmentationNet(nn.Module):
    """A network from images to logits of the background and of each class, at the resolution of the backbone.

    Attributes:
        backbone: images to a map of features.
        head: the map to logits.
    """

    def __init__(
        self, backbone: nn.Module, num_classes: int, head: SegmentationHead = "deeplab", output_stride: int | None = 8
    ) -> None:
        """Build the network on a copy of a backbone.

        Args:
            backbone: of a :class:`~dcsm_attr.models.fully_convolutional.ScoreMapNetwork`; copied with its weights. The
                head is initialized from PyTorch's global generator.
            num_classes: C, without the background.
            head: see :func:`segmentation_head`.
            output_stride: pixels of the image per position, see
                :func:`~dcsm_attr.models.backbone.replace_stride_with_dilation`. None: the backbone's own.

        Raises:
            ValueError: if there is no such head, or the backbone cannot have the stride.
        """
        super().__init__()
        self.backbone = copy_backbone(backbone)
        if output_stride is not None:
            replace_stride_with_dilation(self.backbone, output_stride)
        self.head = segmentation_head(head, output_channels(self.backbone), 1 + num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: ``(N, 3, H, W)``, normalized.

        Returns:
            ``(N, 1 + C, h, w)``: the background, then each class.
        """
        logits: Tensor = self.head(self.backbone(images)["map"])
        return logits


def segmentation_head(name: SegmentationHead, channels: int, labels: int) -> nn.Module:
    """Build a head, initialized from PyTorch's global generator.

    Args:
        name: ``"deeplab"``: torchvision's ``DeepLabHead``, of DeepLab v3; ``"fcn"``: its ``FCNHead``; ``"largefov"``:
            :class:`FieldOfViewHead` with one branch; ``"aspp"``: that with DSRG's four.
        channels: of the backbone's map.
        labels: L.

    Raises:
        ValueError: if there is no such head.
    """
    head: nn.Module
    if name == "deeplab":
        head = DeepLabHead(channels, labels, _RATES)
    elif name == "fcn":
        head = FCNHead(channels, labels)
    elif name in ("largefov", "aspp"):
        head = FieldOfViewHead(channels, labels, _LARGE_FIELD if name == "largefov" else _PYRAMID)
    else:
        raise ValueError(f"head must be one of {', '.join(map(repr, get_args(SegmentationHead)))}; got {name!r}.")
    return head


# DeepLab-LargeFOV has one branch; DeepLab v2 and DSRG sum four.
_LARGE_FIELD = (12,)
_PYRAMID = (6, 12, 18, 24)
# Of torchvision's DeepLab v3, for maps at stride 8.
_RATES = (12, 24, 36)
_WIDTH = 1024


class FieldOfViewHead(nn.Module):
    """VGG's fc6, fc7 and fc8 as convolutions with a dilated fc6, in one or several branches that are summed.

    Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", ICLR 2015
    (DeepLab-LargeFOV: one branch of dilation 12); Huang et al., CVPR 2018 (DSRG: four branches, of dilations 6, 12, 18
    and 24). Differs from both: fc6 and fc7 are randomly initialized, not subsampled from VGG's.
    """

    def __init__(
        self,
        channels: int,
        labels: int,
        dilations: Sequence[int] = _LARGE_FIELD,
        width: int = _WIDTH,
        dropout: float = 0.5,
    ) -> None:
        """Initialize the layers from PyTorch's global generator.

        Args:
            channels: of the backbone's map.
            labels: L.
            dilations: of fc6, one per branch.
            width: channels of the hidden layers.
            dropout: probability, behind each hidden layer.
        """
        super().__init__()
        self.branches = nn.ModuleList(_branch(channels, labels, dilation, width, dropout) for dilation in dilations)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the sum of the branches.

        Args:
            maps: ``(N, D, h, w)``.

        Returns:
            ``(N, L, h, w)`` logits.
        """
        first, *others = (branch(maps) for branch in self.branches)
        summed: Tensor = sum(others, start=first)
        return summed


def _branch(channels: int, labels: int, dilation: int, width: int, dropout: float) -> nn.Sequential:
    hidden = [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.Conv2d(width, width, 1)]
    last = nn.Conv2d(width, labels, 1)
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight)
    # As released: all labels are equally probable at first.
    nn.init.normal_(last.weight, std=0.01)
    for layer in (*hidden, last):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    rectified = [part for layer in hidden for part in (layer, nn.ReLU(inplace=True), nn.Dropout(dropout))]
    return nn.Sequential(*rectified, last)

"""Segmentation by a trained segmentation network: probabilities over scales and mirror images, and the dense CRF."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.inputs import check_scales, resize_images
from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.models.checkpoint import TrainedSegmentationNet
from dcsm_attr.segmentation.segmenter import Precision, Segmenter
from dcsm_attr.wsss.region_growing import crf_for_canvas

__all__ = ["SCALES", "NetworkSegmenter", "SegmentationNetSaliency", "label_probabilities"]


#: Scales of DSRG.
SCALES = (0.75, 1.0, 1.25)

# Smaller than any probability that a class has in float32 next to another class.
_MIN_PROBABILITY = 1e-12


class NetworkSegmenter(Segmenter):
    """A segmenter whose label probabilities are those of a segmentation network.

    With known classes, the other classes are excluded. Without, all classes compete at each pixel, and those that win
    nowhere are excluded from the CRF.

    Examples::

        >>> segmenter = NetworkSegmenter(load_segmentation_net("segmentation_net.safetensors"))
        >>> segmenter.segment("photo.jpg").probabilities
    """

    def __init__(
        self,
        trained: TrainedSegmentationNet,
        *,
        scales: Sequence[float] = SCALES,
        mirrored: bool = True,
        crf: DenseCRF | Literal["auto"] | None = "auto",
        max_pixels: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        """Build the segmenter.

        Args:
            trained: the network, on the device where it runs.
            scales: see :func:`label_probabilities`.
            mirrored: see there.
            crf: refines the probabilities on the canvas of the network. ``"auto"``: SEC's, with deviations scaled from
                500 pixels to the canvas. None: no refinement.
            max_pixels: see :class:`~dcsm_attr.segmentation.segmenter.Segmenter`.
            precision: see there.

        Raises:
            ValueError: if there is no scale, one is out of range, or there is no such precision.
        """
        super().__init__(
            trained.network,
            saliency=SegmentationNetSaliency(trained.network, scales, mirrored=mirrored),
            crf=crf_for_canvas(trained.preprocess.side) if crf == "auto" else crf,
            class_names=trained.class_names,
            preprocess=trained.preprocess,
            max_pixels=max_pixels,
            architecture={
                "model": trained.architecture.model,
                "head": trained.head,
                "output_stride": trained.output_stride,
                "learned_from": trained.learned_from,
            },
            precision=precision,
        )

    def _label_probabilities(self, class_maps: ClassMaps, image: int, prepared: CanvasImage) -> Tensor:
        maps = prepared.crop(class_maps.maps[image])
        background = (1 - maps.sum(dim=0, keepdim=True)).clamp(min=_MIN_PROBABILITY)
        chosen = torch.cat([background, maps[class_maps.foreground[image]]])
        return chosen / chosen.sum(dim=0, keepdim=True)


class SegmentationNetSaliency:
    """The probabilities of a segmentation network as class maps, to be used in place of a saliency method.

    Attributes:
        network: images to logits of the background and each class.
        scales: see :func:`label_probabilities`.
        mirrored: see there.
    """

    def __init__(self, network: nn.Module, scales: Sequence[float] = SCALES, *, mirrored: bool = True) -> None:
        """Set the network, the scales and the mirroring.

        Args:
            network: images to logits of the background and each class.
            scales: see :func:`label_probabilities`.
            mirrored: see there.

        Raises:
            ValueError: if there is no scale, or one is out of range.
        """
        self.network = network
        self.scales = check_scales(scales)
        self.mirrored = mirrored

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on besides network and images, JSON-serializable."""
        return {"method": "segmentation network", "scales": list(self.scales), "mirrored": self.mirrored}

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Compute the map of every class.

        Args:
            inputs: ``(N, 3, H, W)``, normalized.
            classes: for each image, the classes known to be in it. None: a class is detected if it is the most probable
                label of any pixel.
            raw: whether to return the same maps as raw maps too.

        Returns:
            The probability of each class at each pixel, of all C classes in order; the score of a class is its highest
            probability in the image. There is no contrast with other classes.

        Raises:
            ValueError: if there is not one entry of classes per image, or a class is not the network's.
        """
        probabilities = label_probabilities(self.network, inputs, self.scales, mirrored=self.mirrored)
        maps = probabilities[:, 1:]
        count, slots = maps.shape[:2]
        numbers = torch.arange(slots, device=maps.device)
        if classes is None:
            winners = probabilities.argmax(dim=1).flatten(1)
            detected = torch.zeros(count, 1 + slots, dtype=torch.bool, device=maps.device).scatter_(1, winners, True)
            detected = detected[:, 1:]
        else:
            detected = _known_classes(classes, count, slots).to(maps.device)
        return ClassMaps(
            maps,
            numbers.expand(count, -1),
            detected,
            maps.amax(dim=(2, 3)),
            torch.zeros(count, dtype=torch.bool, device=maps.device),
            maps if raw else None,
        )


def label_probabilities(
    network: nn.Module, images: Tensor, scales: Sequence[float] = SCALES, *, mirrored: bool = True
) -> Tensor:
    """Compute the probabilities of labels, averaged over scales and mirror images.

    The released code of DSRG sums logits instead. The network is left unchanged, and no gradient is computed.

    Args:
        network: images to logits ``(N, L, h, w)``.
        images: ``(N, 3, H, W)``, normalized.
        scales: relative to the size of the images.
        mirrored: whether the mirror image is included at each scale.

    Returns:
        ``(N, L, H, W)`` float32, summing to one over the labels.

    Raises:
        ValueError: if there is no scale, or one is out of range.
    """
    scales = check_scales(scales)
    total: Tensor | None = None
    with prepared_model(network, images.device):
        for scale in scales:
            (resized,) = resize_images((images,), scale, "bilinear")
            views = [network(resized).float()]
            if mirrored:
                views.append(network(resized.flip(-1)).float().flip(-1))
            for logits in views:
                probabilities = F.interpolate(logits, images.shape[2:], mode="bilinear").softmax(dim=1)
                total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total / (len(scales) * (2 if mirrored else 1))


def _known_classes(classes: Sequence[Sequence[int]], count: int, slots: int) -> Tensor:
    """Convert the classes of each image to a mask ``(N, C)``."""
    if len(classes) != count:
        raise ValueError(f"classes must have one entry for each image: got {len(classes)} for {count} images.")
    known = torch.zeros(count, slots, dtype=torch.bool)
    for row, image_classes in zip(known, classes, strict=True):
        unknown = [c for c in image_classes if not 0 <= c < slots]
        if unknown:
            raise ValueError(f"classes must be in 0 to {slots - 1}, got {unknown[0]}.")
        row[list(image_classes)] = True
    return known

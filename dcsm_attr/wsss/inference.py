"""Label maps of images from a segmentation network: several scales, mirror images, and the dense CRF."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.inputs import check_scales, rescaled
from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.models.checkpoint import TrainedSegmentationNet
from dcsm_attr.segmentation.segmenter import Precision, Segmenter
from dcsm_attr.wsss.region_growing import crf_for_canvas

__all__ = ["SCALES", "NetworkSegmenter", "SegmentationNetSaliency", "label_probabilities"]


#: DSRG's.
SCALES = (0.75, 1.0, 1.25)

# Below any probability of single precision that a class could have next to another one.
_MIN_PROBABILITY = 1e-12


def label_probabilities(
    network: nn.Module, images: Tensor, scales: Sequence[float] = SCALES, *, mirrored: bool = True
) -> Tensor:
    """Probabilities of labels, the mean over scales and mirror images.

    The released code of DSRG sums logits instead. The network is left as it is found, and no gradient is taken.

    Args:
        network: images to logits ``(N, L, h, w)``.
        images: ``(N, 3, H, W)``, normalized.
        scales: ratios to the size of the images.
        mirrored: whether each scale is looked at mirrored too.

    Returns:
        ``(N, L, H, W)`` float32, summing to one over the labels.

    Raises:
        ValueError: if there is no scale, or one is out of its range.
    """
    scales = check_scales(scales)
    total: Tensor | None = None
    with prepared_model(network, images.device):
        for scale in scales:
            (resized,) = rescaled((images,), scale, "bilinear")
            for flipped in (False, True) if mirrored else (False,):
                logits = network(resized.flip(-1) if flipped else resized).float()
                found = F.interpolate(logits.flip(-1) if flipped else logits, images.shape[2:], mode="bilinear")
                probabilities = found.softmax(dim=1)
                total = probabilities if total is None else total.add_(probabilities)
    assert total is not None
    return total / (len(scales) * (2 if mirrored else 1))


class SegmentationNetSaliency:
    """The probabilities of a segmentation network as class maps, so that it can stand where a saliency method does.

    Attributes:
        network, scales, mirrored: as given.
    """

    def __init__(self, network: nn.Module, scales: Sequence[float] = SCALES, *, mirrored: bool = True) -> None:
        """Describe the maps.

        Args:
            network: images to logits of the background and each class.
            scales: see :func:`label_probabilities`.
            mirrored: see there.

        Raises:
            ValueError: if there is no scale, or one is out of its range.
        """
        self.network = network
        self.scales = check_scales(scales)
        self.mirrored = mirrored

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on beside network and images, JSON-serializable."""
        return {"method": "segmentation network", "scales": list(self.scales), "mirrored": self.mirrored}

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Map every class.

        Args:
            inputs: ``(N, 3, H, W)``, normalized.
            classes: for each image those known to be in it. None: a class counts as detected where it is the most
                probable label of any pixel.
            raw: whether to give the same maps as the raw ones too.

        Returns:
            The probability of each class at each pixel, all C in the order of their numbers; a score is the highest
            probability of a class in an image. Nothing is subtracted.

        Raises:
            ValueError: if the classes are not those of so many images, or one of them is not the network's.
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
            detected = _known(classes, count, slots).to(maps.device)
        return ClassMaps(
            maps,
            numbers.expand(count, -1),
            detected,
            maps.amax(dim=(2, 3)),
            torch.zeros(count, dtype=torch.bool, device=maps.device),
            maps if raw else None,
        )


class NetworkSegmenter(Segmenter):
    """A segmenter whose label probabilities are those of a segmentation network.

    Everything that takes a :class:`~dcsm_attr.segmentation.segmenter.Segmenter` takes it: evaluation under both
    protocols, folders of label maps, streams. With known classes, the other ones take no part. Without, all classes
    compete at each pixel; those that win nowhere take no part in the CRF.

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
        """Put the parts together.

        Args:
            trained: the network, on the device where it is to run.
            scales: see :func:`label_probabilities`.
            mirrored: see there.
            crf: refines the probabilities on the canvas of the network. ``"auto"``: SEC's, as wide as on images of
                500 pixels. None: they are the result.
            max_pixels: as in :class:`~dcsm_attr.segmentation.segmenter.Segmenter`.
            precision: as there.

        Raises:
            ValueError: if there is no scale, one is out of its range, or the precision is not known.
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


def _known(classes: Sequence[Sequence[int]], count: int, slots: int) -> Tensor:
    if len(classes) != count:
        raise ValueError(f"classes must have one entry for each image: got {len(classes)} for {count} images.")
    known = torch.zeros(count, slots, dtype=torch.bool)
    for row, of_image in zip(known, classes, strict=True):
        unknown = [c for c in of_image if not 0 <= c < slots]
        if unknown:
            raise ValueError(f"classes must be in 0 to {slots - 1}, got {unknown[0]}.")
        row[list(of_image)] = True
    return known

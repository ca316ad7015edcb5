"""From photographs with image-level labels to the label maps that AffinityNet learns from, and to pseudo-labels."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dcsm_attr.affinity.exponents import RELEASED
from dcsm_attr.affinity.labels import RELEASED_CRF, confident_labels
from dcsm_attr.backbones.preprocess import Prepared
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.evaluation.provenance import parameters_digest
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.segmentation.label_files import LabelStream, Shard, write_label_maps
from dcsm_attr.segmentation.pipeline import pipelined

__all__ = ["Confidence", "write_confident_labels", "write_pseudo_labels"]

_Read = tuple[Photograph, Prepared]


@dataclass(frozen=True)
class Confidence:
    """Where labels are confident; see :func:`dcsm_attr.affinity.labels.confident_labels`.

    Attributes:
        low, high: exponents of the background.
        crf: refines both labellings.
    """

    low: float = RELEASED.low
    high: float = RELEASED.high
    crf: DenseCRF = RELEASED_CRF


def write_confident_labels(
    segmenter: Segmenter,
    collection: Collection,
    folder: str | Path,
    confidence: Confidence = Confidence(),
    *,
    batch_size: int = 4,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    progress: bool = True,
) -> dict[str, str]:
    """Write a label map for each photograph of a collection: labels on its canvas where two backgrounds agree.

    A folder that was begun is gone on with, see :func:`dcsm_attr.segmentation.label_files.write_label_maps`.

    Args:
        segmenter: its model, saliency and preprocessing are used; its own background, walk and CRF are not.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        confidence: where labels are confident.
        batch_size: photographs that go through the model together.
        shard: the part of the collection that is this process's.
        progress: whether to show a bar.

    Returns:
        Why photographs could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def read(photograph: Photograph) -> _Read:
        return photograph, segmenter.preprocess(read_image(photograph.path, max_pixels=segmenter.max_pixels))

    def stream(photographs: Sequence[Photograph]) -> LabelStream:
        return pipelined(
            photographs,
            read,
            partial(_confident, segmenter, confidence),
            lambda labels: labels.cpu().numpy(),
            batch_size=batch_size,
            workers=segmenter.readers,
            excused=ImageReadError,
        )

    depends_on = {
        "model": parameters_digest(segmenter.model),
        "saliency": segmenter.saliency.settings,
        "preprocess": asdict(segmenter.preprocess),
        "confidence": asdict(confidence),
    }
    return write_label_maps(
        collection,
        folder,
        depends_on,
        stream,
        batch_size=batch_size,
        shard=shard,
        max_pixels=segmenter.max_pixels,
        description="confident labels",
        progress=progress,
    )


def _confident(segmenter: Segmenter, confidence: Confidence, batch: Sequence[_Read]) -> list[Tensor]:
    """The labels of photographs that go through the model together."""
    canvases = torch.stack([prepared.tensor for _, prepared in batch]).to(segmenter.device)
    found = segmenter.saliency.class_maps(canvases, [photograph.classes for photograph, _ in batch])
    return [
        confident_labels(
            prepared.crop(found.maps[image, present]),
            found.classes[image, present],
            prepared.pixels,
            low=confidence.low,
            high=confidence.high,
            crf=confidence.crf,
        )
        for image, ((_, prepared), present) in enumerate(zip(batch, found.detected, strict=True))
    ]


def write_pseudo_labels(
    segmenter: Segmenter,
    collection: Collection,
    folder: str | Path,
    *,
    batch_size: int = 4,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    progress: bool = True,
) -> dict[str, str]:
    """Write the label map that a segmenter gives each photograph, told which classes are in it.

    A folder that was begun is gone on with, see :func:`dcsm_attr.segmentation.label_files.write_label_maps`.

    Args:
        segmenter: any, with AffinityNet's walk or without.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        batch_size: photographs that go through the model together.
        shard: the part of the collection that is this process's.
        progress: whether to show a bar.

    Returns:
        Why photographs could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def stream(photographs: Sequence[Photograph]) -> LabelStream:
        found = segmenter.segment_stream(
            (photograph.path for photograph in photographs),
            (photograph.classes for photograph in photographs),
            batch_size=batch_size,
            excused=ImageReadError,
        )
        for result in found:
            yield result if isinstance(result, ImageReadError) else result.display_labels()

    return write_label_maps(
        collection,
        folder,
        {"parameters": parameters_digest(segmenter.model), **segmenter.settings},
        stream,
        batch_size=batch_size,
        shard=shard,
        max_pixels=segmenter.max_pixels,
        description="pseudo-labels",
        progress=progress,
    )

"""Label maps of a whole collection as a folder of pictures, which a later run resumes.

From photographs with image-level labels to the label maps that AffinityNet learns from, and to pseudo-labels.

From photographs with image-level labels to a folder of seeds, which a segmentation network learns from.
"""

import logging
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dcsm_attr.attribution.layers import layer_blocks
from dcsm_attr.attribution.maps import upsample
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.collection import Collection, LabeledImage
from dcsm_attr.datasets.images import ImageReadError, read_image
from dcsm_attr.datasets.masks import label_image, resize_labels
from dcsm_attr.datasets.preprocess import CanvasImage, Preprocess
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.io import atomic_buffer, open_run_folder
from dcsm_attr.models.stochastic import use_generator
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.segmentation.stream import default_num_readers, run_pipeline
from dcsm_attr.wsss.affinity import RELEASED_CRF, RELEASED_EXPONENTS, confident_labels
from dcsm_attr.wsss.seeds import Localizer, bottom_fraction, median_filter_3x3, middle_layer_saliency, seed_labels

__all__ = [
    "BackgroundSeedSettings",
    "Confidence",
    "LabelStream",
    "Shard",
    "image_seeds",
    "middle_layer",
    "write_confident_labels",
    "write_label_maps",
    "write_pseudo_labels",
    "write_seeds",
]


_logger = logging.getLogger(__name__)

#: For each image, in order, its label map ``(H, W)``, 0 to 255, or why it could not be read.
LabelStream = Generator[npt.NDArray[np.integer] | ImageReadError, None, None]


@dataclass(frozen=True)
class Shard:
    """The part of a collection that one of several processes takes, each of which writes into the same folder.

    Attributes:
        index: of this process, from 0.
        count: how many there are.

    Raises:
        ValueError: if the index is not one of so many.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.index < self.count:
            raise ValueError(f"a shard's index must be in 0 to count - 1 = {self.count - 1}, got {self.index}.")

    @classmethod
    def from_environment(cls) -> "Shard":
        """The part of one of the processes that ``torchrun`` started; without it, everything."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def write_label_maps(
    collection: Collection,
    folder: str | Path,
    depends_on: Mapping[str, Any],
    labeled: Callable[[Sequence[LabeledImage]], LabelStream],
    *,
    batch_size: int,
    shard: Shard = Shard(),
    max_pixels: int | None = None,
    description: str = "labels",
    progress: bool = True,
) -> dict[str, str]:
    """Write ``NAME.png``, a palette image, for each image of a collection.

    Batches whose label maps are all there are left out; the others are computed as a whole, so that each image
    gets the same, to the last bit, as in a run that was not cut off. An image that is known to show no class is
    background all over.

    Args:
        collection: photographs with image-level labels.
        folder: where to write, beside ``settings.json``.
        depends_on: everything that the label maps depend on, JSON-serializable.
        labeled: computes them, lazily, in batches of ``batch_size`` photographs, of which each shows a class.
        batch_size: photographs that are computed together.
        shard: every ``count``-th batch is this process's.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        description: for the bar.
        progress: whether to show it.

    Returns:
        Why images could not be read, by their names; each is logged too.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps that depend on something else.
    """
    folder = open_run_folder(folder, {**depends_on, "batch_size": batch_size}, "label maps", results=["*.png"])
    showing = [photograph for photograph in collection if photograph.classes]
    batches = [showing[i : i + batch_size] for i in range(0, len(showing), batch_size)][shard.index :: shard.count]
    unfinished = [batch for batch in batches if not all(_path(folder, one).exists() for one in batch)]
    due = [photograph for batch in unfinished for photograph in batch]
    without = [photograph for photograph in collection if not photograph.classes][shard.index :: shard.count]
    empty = [photograph for photograph in without if not _path(folder, photograph).exists()]
    skipped: dict[str, str] = {}
    total = sum(map(len, batches)) + len(without)
    done = total - len(due) - len(empty)
    with tqdm(total=total, initial=done, unit="photo", desc=description, disable=not progress) as bar:
        for photographs, stream in ((due, labeled(due)), (empty, _backgrounds(empty, max_pixels))):
            with closing(stream) as found:
                for photograph, labels in zip(photographs, found, strict=True):
                    if isinstance(labels, ImageReadError):
                        _logger.warning("%s is skipped: %s", photograph.name, labels)
                        skipped[photograph.name] = str(labels)
                    else:
                        with atomic_buffer(_path(folder, photograph)) as file:
                            label_image(labels).save(file, "PNG")
                    bar.update()
    return skipped


def _path(folder: Path, photograph: LabeledImage) -> Path:
    return folder / f"{photograph.name}.png"


def _backgrounds(photographs: Sequence[LabeledImage], max_pixels: int | None) -> LabelStream:
    for photograph in photographs:
        try:
            width, height = read_image(photograph.path, max_pixels=max_pixels).size
            yield np.zeros((height, width), dtype=np.uint8)
        except ImageReadError as error:
            yield error


_Read = tuple[LabeledImage, CanvasImage]


@dataclass(frozen=True)
class Confidence:
    """Where labels are confident; see :func:`dcsm_attr.wsss.affinity.confident_labels`.

    Attributes:
        low, high: exponents of the background.
        crf: refines both labelings.
    """

    low: float = RELEASED_EXPONENTS.low
    high: float = RELEASED_EXPONENTS.high
    crf: DenseCRF = RELEASED_CRF


def write_confident_labels(
    segmenter: Segmenter,
    collection: Collection,
    folder: str | Path,
    confidence: Confidence = Confidence(),
    *,
    batch_size: int = 4,
    shard: Shard = Shard(),
    progress: bool = True,
) -> dict[str, str]:
    """Write a label map for each image of a collection: labels on its canvas where two backgrounds agree.

    An existing folder is resumed; see :func:`dcsm_attr.pipelines.label_files.write_label_maps`.

    Args:
        segmenter: its model, saliency and preprocessing are used; its own background, walk and CRF are not.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        confidence: where labels are confident.
        batch_size: photographs that go through the model together.
        shard: the part of the collection that is this process's.
        progress: whether to show a bar.

    Returns:
        Why images could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def read(photograph: LabeledImage) -> _Read:
        return photograph, segmenter.preprocess(read_image(photograph.path, max_pixels=segmenter.max_pixels))

    def stream(photographs: Sequence[LabeledImage]) -> LabelStream:
        return run_pipeline(
            photographs,
            read,
            partial(_confident_labels_of_batch, segmenter, confidence),
            lambda labels: labels.cpu().numpy(),
            batch_size=batch_size,
            workers=segmenter.num_readers,
            allowed_errors=ImageReadError,
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


def _confident_labels_of_batch(segmenter: Segmenter, confidence: Confidence, batch: Sequence[_Read]) -> list[Tensor]:
    """The labels of images that go through the model together."""
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
    shard: Shard = Shard(),
    progress: bool = True,
) -> dict[str, str]:
    """Write the label map that a segmenter gives each image, told which classes are in it.

    An existing folder is resumed; see :func:`dcsm_attr.pipelines.label_files.write_label_maps`.

    Args:
        segmenter: any, with AffinityNet's walk or without.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        batch_size: photographs that go through the model together.
        shard: the part of the collection that is this process's.
        progress: whether to show a bar.

    Returns:
        Why images could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def stream(photographs: Sequence[LabeledImage]) -> LabelStream:
        found = segmenter.segment_stream(
            (photograph.path for photograph in photographs),
            (photograph.classes for photograph in photographs),
            batch_size=batch_size,
            allowed_errors=ImageReadError,
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


@dataclass(frozen=True)
class BackgroundSeedSettings:
    """SEC's background: the pixels where a middle layer tells the least of any class.

    Attributes:
        layer: its name, see :func:`middle_layer`.
        share: of the image; SEC has 0.1.
    """

    layer: str
    share: float = 0.1


def middle_layer(network: nn.Module) -> str:
    """Select the convolution in the middle of the layer blocks; of VGG-16 conv4_1, as in SEC.

    Blocks are those of :func:`~dcsm_attr.attribution.layers.layer_blocks`.

    Args:
        network: any CNN; it is left as it is.

    Raises:
        TypeError, ValueError, RuntimeError: as ``layer_blocks``.
    """
    names = [name for block in layer_blocks(network) for name in block]
    return names[-(len(names) // 2)]


def image_seeds(
    network: nn.Module,
    localizer: Localizer,
    prepared: CanvasImage,
    classes: Sequence[int],
    background: BackgroundSeedSettings,
) -> Tensor:
    """Find the seeds of one image.

    Args:
        network: the classifier, for the background; its device is where everything is computed.
        localizer: for the foreground.
        prepared: the image.
        classes: in it, at least one.
        background: where it is looked for.

    Returns:
        ``(H, W)`` int64 of the image's own size: 0 background, ``c + 1`` for class c, 255 where there is no seed.

    Raises:
        ValueError: if the layer is not in the network, or a share is out of its range.
    """
    canvas = prepared.tensor[None].to(next(network.parameters()).device)
    foreground, maps = localizer(canvas, prepared, classes)
    # Where the network selects units at random, the same ones each time.
    with use_generator(torch.Generator().manual_seed(0)):
        saliency = middle_layer_saliency(network, canvas, background.layer)
    seen = prepared.crop(upsample(median_filter_3x3(saliency), (canvas.shape[2], canvas.shape[3])))
    numbers = torch.tensor([list(classes)], device=canvas.device)
    labels = seed_labels(foreground[None], bottom_fraction(seen, background.share), maps[None], numbers)
    return resize_labels(labels[0], prepared.size)


def write_seeds(
    network: nn.Module,
    localizer: Localizer,
    collection: Collection,
    folder: str | Path,
    preprocess: Preprocess,
    background: BackgroundSeedSettings,
    *,
    shard: Shard = Shard(),
    max_pixels: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Write the seeds of each image of a collection as a label map ``NAME.png``, 255 where there is none.

    An existing folder is resumed; see :func:`dcsm_attr.pipelines.label_files.write_label_maps`.

    Args:
        network: the classifier, on the device where it is to run; it is left as it is.
        localizer: for the foreground.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        preprocess: the canvas.
        background: where it is looked for.
        shard: the part of the collection that is this process's.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        progress: whether to show a bar.

    Returns:
        Why images could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps of other settings, or a setting is out of its range.
    """

    def read(photograph: LabeledImage) -> tuple[LabeledImage, CanvasImage]:
        return photograph, preprocess(read_image(photograph.path, max_pixels=max_pixels))

    def seeded(batch: Sequence[tuple[LabeledImage, CanvasImage]]) -> list[Tensor]:
        return [
            image_seeds(network, localizer, prepared, photograph.classes, background) for photograph, prepared in batch
        ]

    def stream(photographs: Sequence[LabeledImage]) -> LabelStream:
        return run_pipeline(
            photographs,
            read,
            seeded,
            lambda labels: labels.cpu().numpy(),
            batch_size=1,
            workers=default_num_readers(next(network.parameters()).device),
            allowed_errors=ImageReadError,
        )

    depends_on = {
        "parameters": parameters_digest(network),
        "foreground": localizer.settings,
        "background": asdict(background),
        "preprocess": asdict(preprocess),
    }
    return write_label_maps(
        collection,
        folder,
        depends_on,
        stream,
        batch_size=1,
        shard=shard,
        max_pixels=max_pixels,
        description="seeds",
        progress=progress,
    )

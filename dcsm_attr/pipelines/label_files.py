"""Folders of label maps: confident labels and pseudo-labels of AffinityNet, and seeds of a segmentation network.

All of them are written by :func:`write_label_maps`: ``NAME.png``, a palette image, for each image of a collection with
image-level labels, and ``settings.json``. An interrupted command resumes. For large collections, with scores and
failures on record, see :mod:`dcsm_attr.pipelines.run`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

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
from dcsm_attr.io import FolderStorage, open_run_storage
from dcsm_attr.models.stochastic import use_generator
from dcsm_attr.pipelines.batches import WHOLE, Shard, check_overwrite, encode_image, plan_batches, process_batches
from dcsm_attr.segmentation import Segmenter
from dcsm_attr.segmentation.segmenter import AttributedImage, PreparedImage, restore_segmentation
from dcsm_attr.segmentation.stream import default_num_readers
from dcsm_attr.wsss.affinity import RELEASED_CRF, RELEASED_EXPONENTS, confident_labels
from dcsm_attr.wsss.seeds import Localizer, bottom_fraction, median_filter_3x3, middle_layer_saliency, seed_labels

__all__ = [
    "BackgroundSeedSettings",
    "Confidence",
    "image_seeds",
    "middle_layer",
    "write_confident_labels",
    "write_label_maps",
    "write_pseudo_labels",
    "write_seeds",
]

_logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")
_Labeled = TypeVar("_Labeled")


def write_label_maps(
    collection: Collection,
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    read: Callable[[LabeledImage], _Read],
    label: Callable[[Sequence[_Read]], Sequence[_Labeled]],
    finish: Callable[[_Labeled], npt.NDArray[np.integer]],
    batch_size: int,
    num_readers: int,
    shard: Shard = WHOLE,
    max_pixels: int | None = None,
    overwrite: bool = False,
    description: str = "labels",
    progress: bool = True,
) -> dict[str, str]:
    """Write ``NAME.png``, a palette image, for each image of a collection.

    Batches whose label maps all exist are skipped; the others are processed as a whole, so that each image gets exactly
    the same labels as in an uninterrupted run. An image that is known to show no class is all background; it is only
    read for its size. An image that cannot be read is logged and skipped.

    Args:
        collection: images with image-level labels.
        folder: where to write.
        settings: everything that the label maps depend on, JSON-serializable.
        read: reads one image that shows a class; may raise ``ImageReadError``. Called in threads.
        label: computes a result for each image of a batch.
        finish: converts the result of one image to a label map ``(H, W)`` with values in 0 to 255. Called in a thread.
        batch_size: images that are labeled together.
        num_readers: number of threads that read. 0: everything runs in the caller's thread.
        shard: the part of the batches to process.
        max_pixels: images with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        overwrite: whether to remove the label maps of an earlier run, of any settings, and start over; not for one of
            several shards.
        description: label of the progress bar.
        progress: whether to show a progress bar.

    Returns:
        Why images could not be read, by name.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps of other settings, and ``overwrite`` is not set.
    """
    check_overwrite(overwrite, shard)
    storage = FolderStorage(folder)
    settings = {**settings, "batch_size": batch_size}
    open_run_storage(storage, settings, "label maps", results=["*.png"], overwrite=overwrite)
    batches = plan_batches(collection, batch_size, shard)
    existing = storage.names("")
    unfinished = [batch for batch in batches if not existing.issuperset(f"{item.name}.png" for item in batch.items)]

    def read_item(position: int, item: LabeledImage) -> tuple[LabeledImage, _Read | npt.NDArray[np.integer]]:
        if item.classes:
            return item, read(item)
        width, height = read_image(item.path, max_pixels=max_pixels).size
        return item, np.zeros((height, width), dtype=np.uint8)

    def label_batch(images: Sequence[tuple[LabeledImage, Any]]) -> list[tuple[LabeledImage, Any]]:
        showing = [image for item, image in images if item.classes]
        results = iter(label(showing) if showing else ())
        return [(item, next(results) if item.classes else background) for item, background in images]

    def write(result: tuple[LabeledImage, Any]) -> None:
        item, labels = result
        labels = finish(labels) if item.classes else labels
        storage.write(f"{item.name}.png", encode_image(label_image(labels), "PNG"))

    failures: dict[str, str] = {}
    total = sum(map(len, batches))
    done = total - sum(map(len, unfinished))
    with (
        tqdm(total=total, initial=done, unit="image", desc=description, disable=not progress) as bar,
        closing(process_batches(unfinished, read_item, label_batch, write, num_readers=num_readers)) as finished,
    ):
        for batch, results in finished:
            for item, error in zip(batch.items, results, strict=True):
                if isinstance(error, ImageReadError):
                    _logger.warning("%s is skipped: %s", item.name, error)
                    failures[item.name] = str(error)
            bar.update(len(batch))
    return failures


def write_pseudo_labels(
    segmenter: Segmenter,
    collection: Collection,
    folder: str | Path,
    *,
    batch_size: int = 4,
    shard: Shard = WHOLE,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Write the label map that a segmenter computes for each image from its known classes.

    An existing folder is resumed; see :func:`write_label_maps`.

    Args:
        segmenter: any, with the random walk of AffinityNet or without.
        collection: images with image-level labels; masks are not read.
        folder: where to write.
        batch_size: images that go through the model together.
        shard: the part of the collection to process.
        overwrite: whether to start over instead of resuming.
        progress: whether to show a progress bar.

    Returns:
        Why images could not be read, by name.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def read(item: LabeledImage) -> PreparedImage:
        return segmenter.prepare_image(item.path, item.classes)

    def finish(image: AttributedImage) -> npt.NDArray[np.integer]:
        return restore_segmentation(image).display_labels()

    return write_label_maps(
        collection,
        folder,
        {"parameters": parameters_digest(segmenter.model), **segmenter.settings},
        read=read,
        label=segmenter.attribute_batch,
        finish=finish,
        batch_size=batch_size,
        num_readers=segmenter.num_readers,
        shard=shard,
        max_pixels=segmenter.max_pixels,
        overwrite=overwrite,
        description="pseudo-labels",
        progress=progress,
    )


@dataclass(frozen=True)
class Confidence:
    """When a label is confident; see :func:`dcsm_attr.wsss.affinity.confident_labels`.

    Attributes:
        low, high: exponents of the background score.
        crf: refines the labels of both backgrounds.
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
    shard: Shard = WHOLE,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Write the labels that AffinityNet is trained on, at the size of the image on its canvas.

    An existing folder is resumed; see :func:`write_label_maps`.

    Args:
        segmenter: provides model, saliency and preprocessing; its background, random walk and CRF are not used.
        collection: images with image-level labels; masks are not read.
        folder: where to write.
        confidence: when a label is confident; other pixels are 255.
        batch_size: images that go through the model together.
        shard: the part of the collection to process.
        overwrite: whether to start over instead of resuming.
        progress: whether to show a progress bar.

    Returns:
        Why images could not be read, by name.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds labels of other settings.
    """

    def read(item: LabeledImage) -> tuple[LabeledImage, CanvasImage]:
        return item, segmenter.preprocess(read_image(item.path, max_pixels=segmenter.max_pixels))

    def label(batch: Sequence[tuple[LabeledImage, CanvasImage]]) -> list[Tensor]:
        canvases = torch.stack([canvas.tensor for _, canvas in batch]).to(segmenter.device)
        maps = segmenter.saliency.class_maps(canvases, [item.classes for item, _ in batch])
        return [
            confident_labels(
                canvas.crop(maps.maps[i, present]),
                maps.classes[i, present],
                canvas.pixels,
                low=confidence.low,
                high=confidence.high,
                crf=confidence.crf,
            )
            for i, ((_, canvas), present) in enumerate(zip(batch, maps.detected, strict=True))
        ]

    return write_label_maps(
        collection,
        folder,
        {
            "model": parameters_digest(segmenter.model),
            "saliency": segmenter.saliency.settings,
            "preprocess": asdict(segmenter.preprocess),
            "confidence": asdict(confidence),
        },
        read=read,
        label=label,
        finish=_to_numpy,
        batch_size=batch_size,
        num_readers=segmenter.num_readers,
        shard=shard,
        max_pixels=segmenter.max_pixels,
        overwrite=overwrite,
        description="confident labels",
        progress=progress,
    )


def _to_numpy(labels: Tensor) -> npt.NDArray[np.integer]:
    array: npt.NDArray[np.integer] = labels.cpu().numpy()
    return array


@dataclass(frozen=True)
class BackgroundSeedSettings:
    """Background seeds of SEC: the pixels with the lowest saliency of a middle layer.

    Attributes:
        layer: its name, see :func:`middle_layer`.
        share: of the pixels of the image; 0.1 in SEC.
    """

    layer: str
    share: float = 0.1


def middle_layer(network: nn.Module) -> str:
    """Select the convolution in the middle of the layer blocks; conv4_1 for VGG-16, as in SEC.

    Blocks are those of :func:`~dcsm_attr.attribution.layers.layer_blocks`.

    Args:
        network: any CNN.

    Raises:
        TypeError, ValueError, RuntimeError: as ``layer_blocks``.
    """
    names = [name for block in layer_blocks(network) for name in block]
    return names[-(len(names) // 2)]


def image_seeds(
    network: nn.Module,
    localizer: Localizer,
    canvas: CanvasImage,
    classes: Sequence[int],
    background: BackgroundSeedSettings,
) -> Tensor:
    """Compute the seeds of one image.

    Args:
        network: the classifier, for the background; everything runs on its device.
        localizer: finds the foreground.
        canvas: the image.
        classes: in the image, at least one.
        background: how to find the background.

    Returns:
        ``(H, W)`` int64 of the size of the image: 0 background, ``c + 1`` for class c, 255 where there is no seed.

    Raises:
        ValueError: if the layer is not in the network, or a share is out of its range.
    """
    inputs = canvas.tensor[None].to(next(network.parameters()).device)
    foreground, maps = localizer(inputs, canvas, classes)
    # A network that selects units at random selects the same ones each time.
    with use_generator(torch.Generator().manual_seed(0)):
        saliency = middle_layer_saliency(network, inputs, background.layer)
    saliency = canvas.crop(upsample(median_filter_3x3(saliency), (inputs.shape[2], inputs.shape[3])))
    numbers = torch.tensor([list(classes)], device=inputs.device)
    labels = seed_labels(foreground[None], bottom_fraction(saliency, background.share), maps[None], numbers)
    return resize_labels(labels[0], canvas.size)


def write_seeds(
    network: nn.Module,
    localizer: Localizer,
    collection: Collection,
    folder: str | Path,
    preprocess: Preprocess,
    background: BackgroundSeedSettings,
    *,
    shard: Shard = WHOLE,
    max_pixels: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, str]:
    """Write the seeds of each image of a collection, from which a segmentation network learns; 255 is no seed.

    An existing folder is resumed; see :func:`write_label_maps`.

    Args:
        network: the classifier, on the device where it runs; it is left unchanged.
        localizer: finds the foreground.
        collection: images with image-level labels; masks are not read.
        folder: where to write.
        preprocess: puts images on the canvas of the network.
        background: how to find the background.
        shard: the part of the collection to process.
        max_pixels: images with more pixels are not read, see :func:`dcsm_attr.datasets.images.read_image`.
        overwrite: whether to start over instead of resuming.
        progress: whether to show a progress bar.

    Returns:
        Why images could not be read, by name.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps of other settings, or a setting is out of its range.
    """

    def read(item: LabeledImage) -> tuple[LabeledImage, CanvasImage]:
        return item, preprocess(read_image(item.path, max_pixels=max_pixels))

    def label(batch: Sequence[tuple[LabeledImage, CanvasImage]]) -> list[Tensor]:
        return [image_seeds(network, localizer, canvas, item.classes, background) for item, canvas in batch]

    return write_label_maps(
        collection,
        folder,
        {
            "parameters": parameters_digest(network),
            "foreground": localizer.settings,
            "background": asdict(background),
            "preprocess": asdict(preprocess),
        },
        read=read,
        label=label,
        finish=_to_numpy,
        batch_size=1,
        num_readers=default_num_readers(next(network.parameters()).device),
        shard=shard,
        max_pixels=max_pixels,
        overwrite=overwrite,
        description="seeds",
        progress=progress,
    )

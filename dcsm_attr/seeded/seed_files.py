"""From photographs with image-level labels to a folder of seeds, which a segmentation network learns from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dcsm_attr.backbones.layers import layer_blocks
from dcsm_attr.backbones.preprocess import Prepared, Preprocess
from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.masks import resized_labels
from dcsm_attr.evaluation.provenance import parameters_digest
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.maps import upsample
from dcsm_attr.seeded.localisers import Localiser
from dcsm_attr.seeded.saliency import middle_layer_saliency
from dcsm_attr.seeded.seeds import lowest_share, median_filtered, seed_labels
from dcsm_attr.segmentation.label_files import LabelStream, Shard, write_label_maps
from dcsm_attr.segmentation.pipeline import pipelined, readers_beside
from dcsm_attr.stochastic.masks import drawing_from

__all__ = ["BackgroundSeeds", "middle_layer", "photograph_seeds", "write_seeds"]


@dataclass(frozen=True)
class BackgroundSeeds:
    """SEC's background: the pixels where a middle layer tells the least of any class.

    Attributes:
        layer: its name, see :func:`middle_layer`.
        share: of the photograph; SEC has 0.1.
    """

    layer: str
    share: float = 0.1


def middle_layer(network: nn.Module) -> str:
    """The convolution in the middle of :func:`~dcsm_attr.backbones.layers.layer_blocks`; of VGG-16 conv4_1, as in SEC.

    Args:
        network: any CNN; it is left as it is.

    Raises:
        TypeError, ValueError, RuntimeError: as ``layer_blocks``.
    """
    names = [name for block in layer_blocks(network) for name in block]
    return names[-(len(names) // 2)]


def photograph_seeds(
    network: nn.Module, localiser: Localiser, prepared: Prepared, classes: Sequence[int], background: BackgroundSeeds
) -> Tensor:
    """Find the seeds of one photograph.

    Args:
        network: the classifier, for the background; its device is where everything is computed.
        localiser: for the foreground.
        prepared: the photograph.
        classes: in it, at least one.
        background: where it is looked for.

    Returns:
        ``(H, W)`` int64 of the photograph's own size: 0 background, ``c + 1`` for class c, 255 where there is no seed.

    Raises:
        ValueError: if the layer is not in the network, or a share is out of its range.
    """
    canvas = prepared.tensor[None].to(next(network.parameters()).device)
    foreground, maps = localiser(canvas, prepared, classes)
    # Where the network selects units at random, the same ones each time.
    with drawing_from(torch.Generator().manual_seed(0)):
        saliency = middle_layer_saliency(network, canvas, background.layer)
    seen = prepared.crop(upsample(median_filtered(saliency), (canvas.shape[2], canvas.shape[3])))
    numbers = torch.tensor([list(classes)], device=canvas.device)
    labels = seed_labels(foreground[None], lowest_share(seen, background.share), maps[None], numbers)
    return resized_labels(labels[0], prepared.size)


def write_seeds(
    network: nn.Module,
    localiser: Localiser,
    collection: Collection,
    folder: str | Path,
    preprocess: Preprocess,
    background: BackgroundSeeds,
    *,
    shard: Shard = Shard(),  # noqa: B008 - frozen
    max_pixels: int | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Write the seeds of each photograph of a collection as a label map ``NAME.png``, 255 where there is none.

    A folder that was begun is gone on with, see :func:`dcsm_attr.segmentation.label_files.write_label_maps`.

    Args:
        network: the classifier, on the device where it is to run; it is left as it is.
        localiser: for the foreground.
        collection: photographs with image-level labels; true masks are never read.
        folder: where to write.
        preprocess: the canvas.
        background: where it is looked for.
        shard: the part of the collection that is this process's.
        max_pixels: photographs with more pixels are not read, see :func:`dcsm_attr.images.read_image`.
        progress: whether to show a bar.

    Returns:
        Why photographs could not be read, by their names.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if it holds label maps of other settings, or a setting is out of its range.
    """

    def read(photograph: Photograph) -> tuple[Photograph, Prepared]:
        return photograph, preprocess(read_image(photograph.path, max_pixels=max_pixels))

    def seeded(batch: Sequence[tuple[Photograph, Prepared]]) -> list[Tensor]:
        return [
            photograph_seeds(network, localiser, prepared, photograph.classes, background)
            for photograph, prepared in batch
        ]

    def stream(photographs: Sequence[Photograph]) -> LabelStream:
        return pipelined(
            photographs,
            read,
            seeded,
            lambda labels: labels.cpu().numpy(),
            batch_size=1,
            workers=readers_beside(next(network.parameters()).device),
            excused=ImageReadError,
        )

    depends_on = {
        "parameters": parameters_digest(network),
        "foreground": localiser.settings,
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

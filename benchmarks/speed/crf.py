"""Time the dense CRF: this package, pydensecrf, and the transfer of the bytes that its lattices must read and write."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.speed.comparison import OURS, Comparison
from dcsm_attr.crf import DenseCRF
from dcsm_attr.crf.permutohedral import GaussianKernels
from dcsm_attr.datasets.images import read_image

__all__ = ["CrfWork", "bytes_moved", "crf_comparisons", "crf_implementations"]

_SIZE = (500, 375)
_BATCH_SIZE = 8
_BLOCK_SIZE = 2**26


@dataclass(frozen=True)
class CrfWork:
    """Images of one size with random label probabilities.

    Attributes:
        paths: image files; they are resized to 500 x 375.
        labels: number of labels.
    """

    paths: tuple[str, ...]
    labels: int


def crf_comparisons(paths: Sequence[str]) -> list[Comparison]:
    """Build three comparisons: one image with 4 and with 21 labels, and a batch of eight with 4.

    Raises:
        ValueError: if there are fewer than eight images.
    """
    if len(paths) < _BATCH_SIZE:
        raise ValueError(f"the CRF is timed on a batch of {_BATCH_SIZE} images, got {len(paths)}.")
    batch = tuple(paths[:_BATCH_SIZE])
    works = {
        "500 x 375, 4 labels": CrfWork(batch[:1], 4),
        "500 x 375, 21 labels": CrfWork(batch[:1], 21),
        f"a batch of {_BATCH_SIZE}, 4 labels": CrfWork(batch, 4),
    }
    return [Comparison(f"dense CRF, {name}", crf_implementations, work) for name, work in works.items()]


def crf_implementations(work: CrfWork) -> dict[str, Callable[[], Any]]:
    """Build this package on the batch, pydensecrf image by image (if installed), and the transfer of the bytes alone.

    Ten iterations with the paper's kernels. The unaries are smooth random fields, which put borders everywhere. A GPU
    is used if there is one.
    """
    images, probabilities = _inputs(work)
    implementations: dict[str, Callable[[], Any]] = {OURS: lambda: DenseCRF()(probabilities, images)}
    if importlib.util.find_spec("pydensecrf") is not None:
        implementations["pydensecrf"] = lambda: DenseCRF(backend="pydensecrf")(probabilities, images)
    if images.is_cuda:
        implementations["dcsm_attr, Triton"] = lambda: DenseCRF(backend="triton")(probabilities, images)
    implementations["floor, the bytes of ten iterations"] = _copy_bytes(images, work.labels)
    return implementations


def _inputs(work: CrfWork) -> tuple[Tensor, Tensor]:
    images = torch.stack(
        [pil_to_tensor(read_image(path).resize(_SIZE, Image.Resampling.BILINEAR)) for path in work.paths]
    )
    generator = torch.Generator().manual_seed(work.labels)
    coarse = torch.randn(len(images), work.labels, 12, 12, generator=generator) * 3
    probabilities = F.interpolate(coarse, (_SIZE[1], _SIZE[0]), mode="bilinear").softmax(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return images.to(device), probabilities.to(device)


def _copy_bytes(images: Tensor, labels: int) -> Callable[[], None]:
    # A copy both reads and writes.
    copied = sum(bytes_moved(image[None], labels) for image in images) // 2
    source = torch.zeros(_BLOCK_SIZE, dtype=torch.uint8, device=images.device)
    target = torch.ones_like(source)

    def copy() -> None:
        for start in range(0, copied, _BLOCK_SIZE):
            part = slice(0, min(_BLOCK_SIZE, copied - start))
            target[part].copy_(source[part])

    return copy


def bytes_moved(image: Tensor, labels: int) -> int:
    """Return the bytes that all iterations must at least read and write: each table and value once per step.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        labels: number of labels L.
    """
    crf = DenseCRF()
    height, width = image.shape[2:]
    kernels = crf.kernels(image, crf.position_lattice(1, height, width, image.device))
    assert kernels is not None
    return crf.iterations * _bytes_per_iteration(kernels, height * width, labels)


def _bytes_per_iteration(kernels: GaussianKernels, points: int, labels: int) -> int:
    tables = [kernels.splat, kernels.slices, *(blur for _, blurs in kernels.blurs for blur in blurs)]
    table_bytes = sum(table.rows.nbytes + table.weights.nbytes for table in tables)
    # Splatting reads points and writes vertices, slicing the reverse; each blur reads and writes vertices.
    rows = sum(2 * vertices * (1 + len(blurs)) for vertices, blurs in kernels.blurs) + 2 * points
    return table_bytes + rows * labels * kernels.splat.weights.element_size()

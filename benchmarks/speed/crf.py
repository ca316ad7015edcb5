"""The dense CRF beside pydensecrf, and beside the mere movement of the bytes that its lattices must read and write."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.speed.comparison import OURS
from dcsm_attr.crf import DenseCRF
from dcsm_attr.crf.permutohedral import GaussianKernels
from dcsm_attr.datasets.images import read_image

__all__ = ["CrfWork", "bytes_moved", "crf_implementations"]


_SIZE = (500, 375)
_BLOCK = 2**26


@dataclass(frozen=True)
class CrfWork:
    """Several photographs of one size.

    Attributes:
        photographs: their paths; they are resized to 500 x 375.
        labels: of each pixel.
    """

    photographs: tuple[str, ...]
    labels: int


def crf_implementations(work: CrfWork) -> dict[str, Callable[[], Any]]:
    """Ours on the batch; pydensecrf image by image, where it is installed; and the bytes alone.

    Ten iterations with the paper's kernels. The unaries are smooth random fields, which put borders everywhere.

    Args:
        work: what is to be done.
    """
    images, probabilities = _inputs(work)
    implementations: dict[str, Callable[[], Any]] = {OURS: lambda: DenseCRF()(probabilities, images)}
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        pass
    else:
        implementations["pydensecrf"] = lambda: DenseCRF(backend="pydensecrf")(probabilities, images)
    if images.is_cuda:
        implementations["dcsm_attr, Triton"] = lambda: DenseCRF(backend="triton")(probabilities, images)
    # Copying reads and writes.
    copied = sum(bytes_moved(image[None], work.labels) for image in images) // 2
    source = torch.zeros(_BLOCK, dtype=torch.uint8, device=images.device)
    target = torch.ones_like(source)

    def copy() -> None:
        for start in range(0, copied, _BLOCK):
            part = slice(0, min(_BLOCK, copied - start))
            target[part].copy_(source[part])

    implementations["floor, the bytes of ten iterations"] = copy
    return implementations


def bytes_moved(image: Tensor, labels: int) -> int:
    """What the iterations must at least read and write: each table once, each value once a step.

    Args:
        image: ``(1, 3, H, W)`` uint8.
        labels: L.
    """
    crf = DenseCRF()
    height, width = image.shape[2:]
    kernels = crf.kernels(image, crf.position_lattice(1, height, width, image.device))
    assert kernels is not None
    return crf.iterations * _of_one_iteration(kernels, height * width, labels)


def _of_one_iteration(kernels: GaussianKernels, points: int, labels: int) -> int:
    tables = [kernels.splat, kernels.slices, *(blur for _, blurs in kernels.blurs for blur in blurs)]
    of_tables = sum(table.rows.nbytes + table.weights.nbytes for table in tables)
    # Splatting reads points and writes vertices, slicing the other way round, each blur reads and writes vertices.
    rows = sum(2 * vertices * (1 + len(blurs)) for vertices, blurs in kernels.blurs) + 2 * points
    return of_tables + rows * labels * kernels.splat.weights.element_size()


def _inputs(work: CrfWork) -> tuple[Tensor, Tensor]:
    images = torch.stack(
        [pil_to_tensor(read_image(path).resize(_SIZE, Image.Resampling.BILINEAR)) for path in work.photographs]
    )
    generator = torch.Generator().manual_seed(work.labels)
    coarse = torch.randn(len(images), work.labels, 12, 12, generator=generator) * 3
    probabilities = F.interpolate(coarse, (_SIZE[1], _SIZE[0]), mode="bilinear").softmax(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return images.to(device), probabilities.to(device)

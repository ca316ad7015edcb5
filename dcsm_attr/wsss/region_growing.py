"""Connected components of many masks, in plain tensor operations.

Deep seeded region growing: seeds spread to the pixels around them that the network is sure of.

Huang et al., "Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing", CVPR 2018 (*DSRG*), and
its released code.

What the CRF makes of a network's scores while it learns: the target of the boundary loss, and where regions grow.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.crf import DenseCRF

__all__ = [
    "TEST_CRF",
    "TRAINING_CRF",
    "confident_labels",
    "connected_components",
    "crf_for_canvas",
    "grow_seeds",
    "refined",
]


def connected_components(masks: Tensor) -> Tensor:
    """Number the components of each mask; pixels that touch at sides or corners are connected.

    Every pixel begins as a component of its own. In each round every component joins the highest numbered one that it
    touches, and chains of joins are followed to their end, so that a few rounds are enough for any shape.

    SciPy labels twenty to thirty times as fast on a CPU (benchmarks/region_growing.py, two CPU cores: 2 ms for SEC's
    batch on 41 x 41, and 39 ms here); this needs no further package, and leaves the masks on their device.

    Args:
        masks: ``(B, h, w)`` bool.

    Returns:
        ``(B, h, w)`` int64: 0 outside the masks; two pixels have the same number if they are of one component of one
        mask. The numbers are not consecutive.
    """
    count, height, width = masks.shape
    # One after the other on the CPU, as its caches like it better.
    chunk_size = 1 if masks.device.type == "cpu" else max(1, count)
    result = torch.zeros(masks.shape, dtype=torch.int64, device=masks.device)
    for start in range(0, count, chunk_size):
        part = slice(start, start + chunk_size)
        result[part] = (_numbered(masks[part]) + start * height * width).mul_(masks[part])
    return result


def _numbered(masks: Tensor) -> Tensor:
    pixels = masks.numel()
    numbers = torch.arange(1, pixels + 1, device=masks.device).view(masks.shape) * masks
    # The number that each number has joined; 0 is what is outside.
    joined = torch.arange(pixels + 1, device=masks.device)
    while True:
        touched = _max_neighbor(numbers) * masks
        if torch.equal(touched, numbers):
            return numbers
        joined.scatter_reduce_(0, numbers.flatten(), touched.flatten(), "amax")
        joined = _followed(joined)
        numbers = joined[numbers]


def _followed(joined: Tensor) -> Tensor:
    while True:
        further = joined[joined]
        if torch.equal(further, joined):
            return joined
        joined = further


def _max_neighbor(numbers: Tensor) -> Tensor:
    """Of the 3 x 3 pixels around each."""
    padded = F.pad(numbers, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(padded[:, :-2], padded[:, 1:-1]), padded[:, 2:])
    return torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])


def confident_labels(
    probabilities: Tensor, present: Tensor, foreground_threshold: float = 0.85, background_threshold: float = 0.99
) -> Tensor:
    """Label the pixels that the network is sure of, with the labels that are in the picture.

    Args:
        probabilities: ``(N, L, h, w)``; label 0 is the background, which is in every picture.
        present: ``(N, L - 1)`` bool: the classes in the picture.
        foreground_threshold: above which the best label must be, if it is a class.
        background_threshold: the same for the background.

    Returns:
        ``(N, h, w)`` int64; -1 where the network is not sure.
    """
    absent = torch.cat([torch.zeros_like(present[:, :1]), ~present], dim=1)
    highest, labels = probabilities.masked_fill(absent[:, :, None, None], -torch.inf).max(dim=1)
    needed = torch.where(labels == 0, background_threshold, foreground_threshold)
    return labels.masked_fill(highest <= needed, -1)


def grow_seeds(
    seeds: Tensor,
    probabilities: Tensor,
    present: Tensor,
    foreground_threshold: float = 0.85,
    background_threshold: float = 0.99,
) -> Tensor:
    """Let the seeds of each picture grow.

    The region of a label is its seeds and the pixels that the network is sure of (:func:`confident_labels`); where the
    network is sure of another label than the seed's, the pixel is of the network's region. Each 8-connected component
    of a region that holds a seed of its label becomes seeds, except pixels that carry exactly one seed, of another
    label. That is the fixed point of adding neighbors one by one.

    Seeds are never lost, also those that the network contradicts. A pixel with seeds of several labels of which none is
    certain belongs to the regions of all of them, which is our choice. The released code grows the cues of the data set
    anew in every step of the training, not what grew in the step before.

    Args:
        seeds: ``(N, L, h, w)`` bool, label 0 is the background.
        probabilities: ``(N, L, h, w)``, in DSRG refined by a CRF.
        present: ``(N, L - 1)`` bool: the classes in the picture; others do not grow.
        foreground_threshold: above which the network is sure of a class.
        background_threshold: above which it is sure of the background.

    Returns:
        ``(N, L, h, w)`` bool.

    Raises:
        TypeError: if seeds or ``present`` are not bool.
        ValueError: if shapes do not agree.
    """
    _check(seeds, probabilities, present)
    labels = confident_labels(probabilities, present, foreground_threshold, background_threshold)
    of_label = torch.arange(seeds.shape[1], device=seeds.device)[:, None, None]
    regions = torch.where(labels[:, None] >= 0, labels[:, None] == of_label, seeds)
    grows = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
    regions, own = regions[grows], seeds[grows]
    components = connected_components(regions)
    seeded = torch.zeros(components.numel() + 1, dtype=torch.bool, device=seeds.device)
    seeded[components[own]] = True
    seeded[0] = False
    # Where the seed is the label's own, it is there already.
    elsewhere = (seeds.sum(dim=1, keepdim=True) == 1).expand_as(seeds)[grows]
    grown = seeds.clone()
    grown[grows] |= seeded[components] & ~elsewhere
    return grown


def _check(seeds: Tensor, probabilities: Tensor, present: Tensor) -> None:
    if seeds.ndim != 4 or seeds.shape != probabilities.shape:
        raise ValueError(
            "seeds and probabilities must have the same shape (N, L, h, w); got "
            f"{tuple(seeds.shape)} and {tuple(probabilities.shape)}."
        )
    if present.shape != (seeds.shape[0], seeds.shape[1] - 1):
        raise ValueError(
            f"present must have shape (N, L - 1) = {(seeds.shape[0], seeds.shape[1] - 1)}, one for each label but the "
            f"background; got {tuple(present.shape)}."
        )
    for name, value in (("seeds", seeds), ("present", present)):
        if value.dtype != torch.bool:
            raise TypeError(f"{name} must be bool, got {value.dtype}.")


#: The CRF of SEC on images.
TEST_CRF = DenseCRF(
    bilateral_weight=10.0,
    bilateral_xy=80.0,
    bilateral_rgb=13.0,
    gaussian_weight=3.0,
    gaussian_xy=3.0,
    iterations=10,
)

#: The same on score maps of 41 x 41, whose pixels are twelve times as far apart as the constants say.
TRAINING_CRF = replace(TEST_CRF, bilateral_xy=80 / 12, gaussian_xy=3 / 12)

# The longest side of VOC's photographs, whose pixels the published deviations are in.
_PUBLISHED_SIDE = 500

_FLOOR = 1e-4


def crf_for_canvas(side: int) -> DenseCRF:
    """The CRF of SEC where photographs have another size than VOC's: as wide on what they show.

    Args:
        side: of the canvas, the longest side of each image on it, in pixels.

    Raises:
        ValueError: if it is not positive.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}.")
    ratio = side / _PUBLISHED_SIDE
    return replace(TEST_CRF, bilateral_xy=ratio * TEST_CRF.bilateral_xy, gaussian_xy=ratio * TEST_CRF.gaussian_xy)


def refined(scores: Tensor, images: Tensor, crf: DenseCRF = TRAINING_CRF) -> Tensor:
    """Refine a network's scores by a CRF on the images, without a gradient.

    Differs from SEC in that the CRF clamps unaries at 1e-5, as :class:`~dcsm_attr.crf.DenseCRF` does everywhere.

    Args:
        scores: ``(N, L, h, w)``, of which the negatives are the energies up to a constant: logits, as in SEC. The
            released code of DSRG passes probabilities, and has thereby weaker unaries.
        images: ``(N, 3, H, W)`` uint8, not normalized; they are resized to the scores, bilinearly with their corners on
            each other, as in SEC.
        crf: its deviations are in pixels of the scores.

    Returns:
        ``(N, L, h, w)`` float32, at least 1e-4 before the division that makes labels sum to one, so that the logarithm
        exists.
    """
    with torch.no_grad():
        small = F.interpolate(images.float(), scores.shape[2:], mode="bilinear", align_corners=True)
        probabilities = crf(scores.float().softmax(dim=1), small.round_().to(torch.uint8))
        clamped = probabilities.clamp_(min=_FLOOR)
        return clamped / clamped.sum(dim=1, keepdim=True)

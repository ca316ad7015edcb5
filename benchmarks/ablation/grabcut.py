"""GrabCut with seeds from a saliency map, as Simonyan et al. segment an object."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["grabcut", "grabcut_labels"]


_SEED = 0


def grabcut(
    image: npt.NDArray[np.uint8],
    saliency: Tensor,
    *,
    foreground_quantile: float = 0.95,
    background_quantile: float = 0.30,
    iterations: int = 5,
) -> Tensor:
    """Segment the object that a saliency map shows.

    Simonyan et al., "Deep Inside Convolutional Networks", ICLR 2014 workshop, in their section on localization: the
    most salient pixels are seeds of the foreground, the least salient ones of the background; color models are
    estimated from the seeds alone, a graph cut labels the others, and the largest connected component is kept. Seeds
    keep their label. The same input gives the same output, and OpenCV's random state is left as it was.

    Differs from the paper: the cut is repeated with color models estimated from the previous cut (Rother et al.,
    "GrabCut", SIGGRAPH 2004); ``iterations=1`` omits this. Pixels whose saliency *equals* a quantile are seeds too,
    because a map that is zero over large parts has no pixel below its lower quantile; where both quantiles are equal,
    only pixels above them are foreground.

    Args:
        image: ``(H, W, 3)`` uint8.
        saliency: ``(H, W)`` real and finite, on any scale.
        foreground_quantile: quantile of the saliency from which a pixel is a seed of the foreground.
        background_quantile: quantile up to which a pixel is a seed of the background.
        iterations: number of cuts; before each cut but the first, the color models are estimated from all pixels.

    Returns:
        ``(H, W)`` bool on the device of the saliency. Empty where nothing lies above the lower quantile, as in a
        constant map.

    Raises:
        ImportError: if OpenCV is not installed.
        TypeError: if the image is not uint8.
        ValueError: if shapes do not agree, the saliency is not finite, or a number is out of its range.
    """
    cv2 = _import_opencv()
    _check_image(image)
    if saliency.shape != image.shape[:2]:
        raise ValueError(
            f"saliency must have the size of its image, {tuple(image.shape[:2])}; got {tuple(saliency.shape)}."
        )
    if not saliency.isfinite().all():
        raise ValueError("saliency must be finite, got NaN or infinite values.")
    if not 0 <= background_quantile < foreground_quantile <= 1:
        raise ValueError(
            "quantiles must lie between 0 and 1, that of the background below that of the foreground; got "
            f"background_quantile={background_quantile}, foreground_quantile={foreground_quantile}."
        )
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    seeds = _seeds(cv2, saliency, foreground_quantile, background_quantile)
    if not (seeds == cv2.GC_FGD).any():
        return torch.zeros_like(saliency, dtype=torch.bool)
    # OpenCV's random state is per thread and cannot be read, so not restored: the cut runs in a thread of its own.
    with ThreadPoolExecutor(max_workers=1) as thread:
        region = thread.submit(_cut, cv2, np.ascontiguousarray(image), seeds, iterations).result()
    return torch.from_numpy(_largest_component(cv2, region)).to(saliency.device)


def grabcut_labels(image: npt.NDArray[np.uint8], maps: Tensor) -> Tensor:
    """Segment the objects of several classes, each from its own map; see :func:`grabcut`.

    Args:
        image: ``(H, W, 3)`` uint8.
        maps: ``(K, H, W)``, one per class, comparable with each other.

    Returns:
        ``(H, W)`` int64 on the device of the maps: 0 background, ``k + 1`` for slot ``k``. A pixel in the regions of
        several classes goes to the one with the largest map value there, among equals to the first.

    Raises:
        ImportError: if OpenCV is not installed.
        TypeError: if the image is not uint8.
        ValueError: if shapes do not agree, or a map is not finite.
    """
    _check_image(image)
    if maps.ndim != 3 or maps.shape[1:] != image.shape[:2]:
        raise ValueError(
            f"maps must have shape (K, H, W) with the size of the image, {tuple(image.shape[:2])}; got "
            f"{tuple(maps.shape)}."
        )
    if not len(maps):
        return torch.zeros(maps.shape[1:], dtype=torch.int64, device=maps.device)
    regions = torch.stack([grabcut(image, saliency) for saliency in maps])
    best = maps.double().masked_fill(~regions, -torch.inf).argmax(dim=0)
    return torch.where(regions.any(dim=0), best + 1, 0)


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    if image.dtype != np.uint8:
        raise TypeError(f"image must be uint8, got {image.dtype}.")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"image must have shape (H, W, 3) with at least one pixel, got {image.shape}.")


def _seeds(cv2: Any, saliency: Tensor, foreground_quantile: float, background_quantile: float) -> npt.NDArray[np.uint8]:
    """Mark certain and unknown pixels, ``(H, W)``."""
    values = saliency.detach().cpu().double().numpy()
    lower, upper = np.quantile(values, (background_quantile, foreground_quantile))
    seeds = np.full(values.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    seeds[(values >= upper) & (values > lower)] = cv2.GC_FGD
    seeds[values <= lower] = cv2.GC_BGD
    return seeds


def _cut(
    cv2: Any, image: npt.NDArray[np.uint8], seeds: npt.NDArray[np.uint8], iterations: int
) -> npt.NDArray[np.bool_]:
    """Run GrabCut; returns the foreground, ``(H, W)``."""
    cv2.setRNGSeed(_SEED)
    colors = [np.zeros((1, 65)) for _ in range(2)]
    # OpenCV has no unknown pixels, only probable ones, which its color models would use at once: the models are
    # estimated from an image of the seeds only, and frozen for the first cut.
    certain = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_BGD)
    cv2.grabCut(image[certain][None], seeds[certain][None], None, *colors, 1, cv2.GC_INIT_WITH_MASK)
    labels = seeds.copy()
    cv2.grabCut(image, labels, None, *colors, 1, cv2.GC_EVAL_FREEZE_MODEL)
    if iterations > 1:
        cv2.grabCut(image, labels, None, *colors, iterations - 1, cv2.GC_EVAL)
    region: npt.NDArray[np.bool_] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return region


def _largest_component(cv2: Any, region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the connected component (sides or corners touch) with the most pixels."""
    _, components, statistics, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8))
    largest: npt.NDArray[np.bool_] = components == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
    return largest


def _import_opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError('GrabCut needs OpenCV: pip install "dcsm_attr[grabcut]".') from error
    return cv2

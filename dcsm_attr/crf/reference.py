"""The reference implementation of the dense CRF: pydensecrf, one image at a time, on the CPU."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["infer_with_pydensecrf"]


def infer_with_pydensecrf(
    unary: Tensor,
    image: Tensor,
    *,
    bilateral: tuple[float, float, float],
    gaussian: tuple[float, float],
    iterations: int,
) -> Tensor:
    """Run pydensecrf on one image.

    Args:
        unary: ``(L, H, W)`` energies.
        image: ``(3, H, W)`` uint8.
        bilateral: weight, standard deviation in pixels, and in colour levels (0 to 255).
        gaussian: weight, and standard deviation in pixels.
        iterations: of mean field.

    Returns:
        ``(L, H, W)`` float32 on the CPU, summing to one over the labels.

    Raises:
        ImportError: if pydensecrf is not installed.
    """
    densecrf = _pydensecrf()
    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1).cpu().float().numpy()))
    weight, deviation = gaussian
    if weight:
        crf.addPairwiseGaussian(sxy=deviation, compat=weight)
    weight, deviation, colour_deviation = bilateral
    if weight:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        crf.addPairwiseBilateral(sxy=deviation, srgb=colour_deviation, rgbim=pixels, compat=weight)
    marginals = np.array(crf.inference(iterations), dtype=np.float32)
    return torch.from_numpy(marginals).view(labels, height, width)


def _pydensecrf() -> Any:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError(
            "backend='pydensecrf' needs the reference library, which needs a C++ compiler to install: pip install "
            "'dcsm_attr[pydensecrf]'. backend='torch' gives the same result without it."
        ) from error
    return pydensecrf.densecrf

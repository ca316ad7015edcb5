"""What the CRF makes of a network's scores while it learns: the target of the boundary loss, and where regions grow."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.crf import DenseCRF

__all__ = ["TEST_CRF", "TRAINING_CRF", "crf_on_canvas", "refined"]

#: The CRF of SEC on photographs.
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


def crf_on_canvas(side: int) -> DenseCRF:
    """The CRF of SEC where photographs have another size than VOC's: as wide on what they show.

    Args:
        side: of the canvas, the longest side of each photograph on it, in pixels.

    Raises:
        ValueError: if it is not positive.
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side}.")
    ratio = side / _PUBLISHED_SIDE
    return replace(TEST_CRF, bilateral_xy=ratio * TEST_CRF.bilateral_xy, gaussian_xy=ratio * TEST_CRF.gaussian_xy)


def refined(scores: Tensor, images: Tensor, crf: DenseCRF = TRAINING_CRF) -> Tensor:
    """Refine a network's scores by a CRF on the photographs, without a gradient.

    Differs from SEC in that the CRF clamps unaries at 1e-5, as :class:`~dcsm_attr.crf.DenseCRF` does everywhere.

    Args:
        scores: ``(N, L, h, w)``, of which the negatives are the energies up to a constant: logits, as in SEC. The
            released code of DSRG passes probabilities, and has thereby weaker unaries.
        images: ``(N, 3, H, W)`` uint8, not normalised; they are resized to the scores, bilinearly with their corners on
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

"""The loss of learning from image-level labels."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["multi_label_loss"]


def multi_label_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Binary cross entropy of each class, summed over classes and averaged over images: Eq. 1 of DCSM.

    Args:
        logits: ``(N, C)``, score maps after global pooling.
        present: ``(N, C)``, 1 for classes in the image, else 0.

    Returns:
        Scalar, float32.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), present.float(), reduction="none").sum(dim=1).mean()

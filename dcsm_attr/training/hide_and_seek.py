"""Hiding parts of the training images, so that a network learns to recognise more than the most telling part."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["hide_patches"]


def hide_patches(images: Tensor, most: float, cells: int = 8) -> Tensor:
    """Cover random cells of a grid with the mean colour of their image.

    A network trained with image-level labels needs one telling part of an object, and its gradients point there;
    where any part may be hidden it has to know all of them. Kumar Singh and Lee, "Hide-and-Seek", ICCV 2017.

    Differs from the paper: the share of hidden cells is drawn anew for each image, and the grid for each batch.

    Args:
        images: ``(N, C, H, W)``.
        most: upper limit of the share of cells that are hidden, in [0, 1].
        cells: of the grid along each side.

    Returns:
        ``(N, C, H, W)``; drawn from PyTorch's global generator.
    """
    count, _, height, width = images.shape
    share = torch.rand(count, 1, 1, 1, device=images.device) * most
    # One cell more than fits, so that the grid can be shifted.
    hidden = (torch.rand(count, 1, cells + 1, cells + 1, device=images.device) < share).to(images.dtype)
    cell = (-(-height // cells), -(-width // cells))
    grid = F.interpolate(hidden, size=((cells + 1) * cell[0], (cells + 1) * cell[1]), mode="nearest")
    top, left = (int(torch.randint(extent, ())) for extent in cell)
    mask = grid[:, :, top : top + height, left : left + width]
    return torch.lerp(images, images.mean(dim=(2, 3), keepdim=True).expand_as(images), mask)

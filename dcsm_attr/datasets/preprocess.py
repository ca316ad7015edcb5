"""From an image to the tensor that a network takes, and its maps back to the image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Canvas", "CanvasImage", "Preprocess"]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Canvas = Literal["paper", "matconvnet", "caffe"]
_SIZES = {"paper": 500, "matconvnet": 500, "caffe": 512}


@dataclass(frozen=True)
class CanvasImage:
    """An image on its canvas.

    Attributes:
        tensor: ``(3, S, S)`` float32, normalized; the input of the network.
        pixels: ``(3, h, w)`` uint8, the image as it lies on the canvas, for the CRF.
        top, left: where on the canvas it lies.
        size: ``(H, W)`` of the image itself.
    """

    tensor: Tensor
    pixels: Tensor
    top: int
    left: int
    size: tuple[int, int]

    def crop(self, maps: Tensor) -> Tensor:
        """Cut the image out of maps of the canvas, ``(..., S, S)`` to ``(..., h, w)``."""
        height, width = self.pixels.shape[1:]
        return maps[..., self.top : self.top + height, self.left : self.left + width]

    def restore(self, maps: Tensor) -> Tensor:
        """Resize cropped maps bilinearly to the image's own size, ``(K, h, w)`` to ``(K, H, W)``."""
        return F.interpolate(maps[None], self.size, mode="bilinear", antialias=True)[0]


@dataclass(frozen=True)
class Preprocess:
    """Put an image on a square canvas and normalize it.

    ImageLabelDataset, where the paper and its two released codes differ:

    - ``"paper"``: the longest side becomes ``size``, bilinearly; the rest, to the right and below, is zero after
      normalization. (The paper names the size and the zeros, not the corner.)
    - ``"matconvnet"``: not resized, centered on a canvas that is zero before normalization.
    - ``"caffe"``: warped to the square.

    Attributes:
        canvas: see above.
        size: S in pixels. None: 500, for caffe 512.
        mean, std: of each channel, for pixel values in [0, 1].
    """

    canvas: Canvas = "paper"
    size: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.canvas not in _SIZES:
            raise ValueError(f"canvas must be one of {', '.join(map(repr, _SIZES))}; got {self.canvas!r}.")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}.")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """The inverse of :func:`dataclasses.asdict`, where JSON may have made lists of tuples.

        Raises:
            TypeError, ValueError: if the values are those of no preprocessing.
        """
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**given)

    @property
    def side(self) -> int:
        """S, the side of the canvas in pixels."""
        return _SIZES[self.canvas] if self.size is None else self.size

    def __call__(self, image: Image.Image) -> CanvasImage:
        """Prepare one image.

        Args:
            image: in mode ``"RGB"``.

        Raises:
            ValueError: if the canvas does not resize and the image is larger.
        """
        side = self.side
        width, height = self._size_on_canvas(image)
        resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
        top, left = 0, 0
        if self.canvas == "matconvnet":
            # The release's start, where an odd length leaves one pixel more before than after.
            top, left = ((side - length + length % 2) // 2 for length in (height, width))
        empty = torch.zeros(3, 1, 1, dtype=torch.float32, device="cpu")
        tensor = (self._normalize(empty) if self.canvas == "matconvnet" else empty).repeat(1, side, side)
        tensor[:, top : top + height, left : left + width] = self._normalize(pixels.float() / 255)
        return CanvasImage(tensor, pixels, top, left, (image.height, image.width))

    def pixels(self, canvases: Tensor) -> Tensor:
        """Undo the normalization.

        Args:
            canvases: ``(..., 3, H, W)``, normalized.

        Returns:
            ``(..., 3, H, W)`` uint8. Where the canvas ``"paper"`` is empty, that is the mean color.
        """
        values = canvases.float() * canvases.new_tensor(self.std)[:, None, None]
        values = values + canvases.new_tensor(self.mean)[:, None, None]
        return (255 * values).round_().clamp_(0, 255).to(torch.uint8)

    def _size_on_canvas(self, image: Image.Image) -> tuple[int, int]:
        side = self.side
        if self.canvas == "caffe":
            return side, side
        longest = max(image.size)
        if self.canvas == "paper":
            width, height = (max(1, round(length * side / longest)) for length in image.size)
            return width, height
        if longest > side:
            raise ValueError(f"canvas 'matconvnet' does not resize: the image {image.size} exceeds its {side} pixels.")
        return image.size

    def _normalize(self, values: Tensor) -> Tensor:
        return (values - values.new_tensor(self.mean)[:, None, None]) / values.new_tensor(self.std)[:, None, None]

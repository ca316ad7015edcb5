"""Converts an image to the input tensor of a network, and maps of that tensor back to the image.

The tensor is a square *canvas* with the resized image on it; :class:`CanvasImage` records where the image lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "CanvasImage", "CanvasName", "Preprocess"]


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CanvasName = Literal["paper", "matconvnet", "caffe"]
_SIZES = {"paper": 500, "matconvnet": 500, "caffe": 512}


@dataclass(frozen=True)
class Preprocess:
    """Puts an image on a square canvas and normalizes it.

    The paper and its two released codes differ in the canvas:

    - ``"paper"``: the image is resized bilinearly so that its longest side is ``size``, and lies in the top left
      corner; the rest is zero after normalization. (The paper states the size and the zeros, but not the corner.)
    - ``"matconvnet"``: the image is not resized, and is centered on a canvas that is zero before normalization.
    - ``"caffe"``: the image is stretched to the square.

    Attributes:
        canvas: one of the above.
        size: side S of the canvas in pixels. None: 500, or 512 for caffe.
        mean, std: per channel, for pixel values in [0, 1].
    """

    canvas: CanvasName = "paper"
    size: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Checks the settings."""
        if self.canvas not in _SIZES:
            raise ValueError(f"canvas must be one of {', '.join(map(repr, _SIZES))}; got {self.canvas!r}.")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {self.size}.")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocess":
        """Inverts :func:`dataclasses.asdict`; accepts lists instead of tuples, as read from JSON.

        Raises:
            TypeError, ValueError: if the values are not valid settings.
        """
        fields: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**fields)

    @property
    def side(self) -> int:
        """Side S of the canvas in pixels."""
        return _SIZES[self.canvas] if self.size is None else self.size

    def __call__(self, image: Image.Image) -> "CanvasImage":
        """Puts one image on the canvas.

        Args:
            image: an image in mode ``"RGB"``.

        Raises:
            ValueError: if the canvas is ``"matconvnet"`` and the image is larger than it.
        """
        side = self.side
        width, height = self._size_on_canvas(image)
        resized = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
        top, left = 0, 0
        if self.canvas == "matconvnet":
            # As in the release: if the margin is odd, the extra pixel comes first.
            top, left = ((side - length + length % 2) // 2 for length in (height, width))
        empty = torch.zeros(3, 1, 1, dtype=torch.float32, device="cpu")
        tensor = (self._normalize(empty) if self.canvas == "matconvnet" else empty).repeat(1, side, side)
        tensor[:, top : top + height, left : left + width] = self._normalize(pixels.float() / 255)
        return CanvasImage(tensor, pixels, top, left, (image.height, image.width))

    def pixels(self, canvases: Tensor) -> Tensor:
        """Inverts the normalization.

        Args:
            canvases: ``(..., 3, H, W)``, normalized.

        Returns:
            ``(..., 3, H, W)`` uint8. The empty part of the canvas ``"paper"`` has the mean color.
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
            raise ValueError(
                f"canvas 'matconvnet' does not resize: the image {image.size} exceeds its {side} pixels. Resize it "
                "first."
            )
        return image.size

    def _normalize(self, values: Tensor) -> Tensor:
        return (values - values.new_tensor(self.mean)[:, None, None]) / values.new_tensor(self.std)[:, None, None]


@dataclass(frozen=True)
class CanvasImage:
    """An image on its canvas.

    Attributes:
        tensor: ``(3, S, S)`` float32, normalized; the input of the network.
        pixels: ``(3, h, w)`` uint8, the image at the size that it has on the canvas; input of the CRF.
        top, left: position of the image on the canvas, in pixels.
        size: ``(H, W)`` of the original image.
    """

    tensor: Tensor
    pixels: Tensor
    top: int
    left: int
    size: tuple[int, int]

    def crop(self, maps: Tensor) -> Tensor:
        """Crops maps of the canvas, ``(..., S, S)``, to the image, ``(..., h, w)``."""
        height, width = self.pixels.shape[1:]
        return maps[..., self.top : self.top + height, self.left : self.left + width]

    def restore(self, maps: Tensor) -> Tensor:
        """Resizes cropped maps, ``(K, h, w)``, bilinearly to the original size, ``(K, H, W)``."""
        return F.interpolate(maps[None], self.size, mode="bilinear", antialias=True)[0]

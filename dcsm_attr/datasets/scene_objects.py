"""Drawings of the eight kinds of objects in the generated scenes.

Each kind has an outline and a texture of its own (scales, bricks, gores, ...) in any colors, so that every part of an
object shows its class, and the hue does not.

An object is drawn upright in a square from -1 to 1, x to the right and y down. :class:`Pen` rotates, mirrors and scales
it and draws it larger than needed; :meth:`Pen.cut_out` reduces it to an antialiased cut-out.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = [
    "DRAWINGS",
    "Color",
    "CutOut",
    "Floats",
    "ObjectColors",
    "ObjectKind",
    "Pen",
    "Points",
    "arc",
    "ellipse",
    "gray_to_float",
    "midpoints",
    "oklch",
]


Color = tuple[int, int, int]
Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

# Pixels of the drawing per pixel of the result and axis.
_OVERSAMPLING = 3
# Half the side of the drawing in object coordinates. The corners of a rotated square do not fit; no object reaches into
# them.
_REACH = 1.15
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE: Points = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def oklch(lightness: float, chroma: float, hue: float) -> Color:
    """Converts a color from OKLCH, the polar form of Ottosson's perceptually uniform OKLab, to sRGB.

    Args:
        lightness: 0 (black) to 1 (white).
        chroma: 0 (gray) to about 0.3; colors outside of sRGB are clipped.
        hue: in turns; 0.08 is red, 0.3 yellow, 0.4 green, 0.7 blue.

    Returns:
        sRGB, each 0 to 255.
    """
    a, b = chroma * math.cos(2 * math.pi * hue), chroma * math.sin(2 * math.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encode_srgb(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encode_srgb(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encode_srgb(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _encode_srgb(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * value)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """Returns the outline of an ellipse with center ``(x, y)``, rotated by ``turn`` (in turns), ``(28, 2)``."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    axes = np.array([[rx * cosine, rx * sine], [-ry * sine, ry * cosine]])
    points: Points = _CIRCLE @ axes + (x, y)
    return points


@dataclass(frozen=True)
class CutOut:
    """A drawn object that can be composited on an image.

    Attributes:
        color: ``(s, s, 3)`` float32 in 0 to 255.
        alpha: ``(s, s)`` float32 in [0, 1].
        left, top: position of its first pixel in the image; it may extend beyond the edges.
    """

    color: Floats
    alpha: Floats
    left: int
    top: int


class Pen:
    """Draws one object.

    Attributes:
        detail: pixels of the result per unit of object coordinates.
    """

    def __init__(self, center: tuple[float, float], radius: float, turn: float, mirrored: bool, ground: Color) -> None:
        """Starts a drawing.

        Args:
            center: ``(x, y)`` in pixels of the image.
            radius: pixels per unit of object coordinates.
            turn: clockwise rotation, in turns.
            mirrored: whether to swap left and right.
            ground: color that shows through antialiased outlines.
        """
        self.detail = radius
        half = math.ceil(_REACH * radius)
        self._left, self._top = round(center[0]) - half, round(center[1]) - half
        side = 2 * half * _OVERSAMPLING
        cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
        flip = -1.0 if mirrored else 1.0
        self._axes = np.array([[flip * cosine, flip * sine], [-sine, cosine]]) * (radius * _OVERSAMPLING)
        self._origin = side / 2
        self._unit = radius * _OVERSAMPLING
        self._color = Image.new("RGB", (side, side), ground)
        self._alpha = Image.new("L", (side, side))
        self._paint = ImageDraw.Draw(self._color)
        self._cut = ImageDraw.Draw(self._alpha)

    def shape(self, points: npt.ArrayLike, color: Color) -> None:
        """Adds a filled polygon ``(n, 2)`` to the object."""
        flat = self._to_pixels(points)
        self._paint.polygon(flat, fill=color)
        self._cut.polygon(flat, fill=255)

    def mark(self, points: npt.ArrayLike, color: Color) -> None:
        """Paints a polygon ``(n, 2)`` on the object, clipped to it."""
        self._paint.polygon(self._to_pixels(points), fill=color)

    def stroke(self, points: npt.ArrayLike, color: Color, width: float) -> None:
        """Paints a line through points ``(n, 2)`` on the object, clipped to it; ``width`` in object coordinates."""
        self._paint.line(self._to_pixels(points), fill=color, width=max(1, round(width * self._unit)), joint="curve")

    def strut(self, points: npt.ArrayLike, color: Color, width: float) -> None:
        """Adds a line to the object; arguments as in :meth:`stroke`."""
        self.stroke(points, color, width)
        self._cut.line(self._to_pixels(points), fill=255, width=max(1, round(width * self._unit)))

    def _to_pixels(self, points: npt.ArrayLike) -> list[float]:
        placed = np.asarray(points, dtype=np.float64) @ self._axes + self._origin
        flat: list[float] = placed.ravel().tolist()
        return flat

    def cut_out(self, light: tuple[float, float] | None = None) -> CutOut:
        """Finishes the drawing.

        Args:
            light: unit vector toward the light; the object is shaded as if its center were raised. None: no shading.
        """
        color = np.asarray(self._color.reduce(_OVERSAMPLING), dtype=np.float32)
        alpha_image = self._alpha.reduce(_OVERSAMPLING)
        alpha = gray_to_float(alpha_image)
        if light is not None:
            color = np.clip(color * self._shade(alpha_image, light)[..., None], 0, 255)
        return CutOut(color, alpha, self._left, self._top)

    def _shade(self, alpha: Image.Image, light: tuple[float, float]) -> Floats:
        # The blurred silhouette serves as height: slopes that face the light are bright, the rim is dark.
        blurred = alpha.filter(ImageFilter.GaussianBlur(0.16 * self.detail))
        height = gray_to_float(blurred)
        slope_y, slope_x = np.gradient(height)
        facing = -(light[0] * slope_x + light[1] * slope_y) * self.detail
        shading: Floats = 0.80 + 0.24 * height + 0.13 * np.clip(facing, -1.5, 1.5)
        return shading


def gray_to_float(image: Image.Image) -> Floats:
    """Converts a gray image to float32 in [0, 1]."""
    shares: Floats = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return shares


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, points: int = 7) -> Points:
    """Returns part of an ellipse, ``start`` to ``end`` in turns clockwise from the right, ``(points, 2)``."""
    angle = 2 * np.pi * np.linspace(start, end, points)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def midpoints(first: float, last: float, count: int) -> Iterable[float]:
    """Yields the midpoints of ``count`` equal parts of the interval from ``first`` to ``last``."""
    return (first + (last - first) * (i + 0.5) / count for i in range(count))


@dataclass(frozen=True)
class ObjectColors:
    """The colors of one object."""

    main: Color
    deep: Color
    second: Color
    light: Color
    dark: Color

    @staticmethod
    def from_hues(hue: float, second_hue: float, lightness: float) -> "ObjectColors":
        """Builds matching colors from two hues (in turns)."""
        return ObjectColors(
            main=oklch(lightness, 0.145, hue),
            deep=oklch(lightness - 0.15, 0.13, hue),
            second=oklch(lightness + 0.08, 0.13, second_hue),
            light=oklch(0.95, 0.035, second_hue),
            dark=oklch(0.33, 0.06, hue),
        )


def _balloon(pen: Pen, colors: ObjectColors) -> None:
    height = np.linspace(-1, 0.5, 13)
    # A sphere that narrows to the mouth below.
    sphere = np.sqrt(np.clip(1 - ((height + 0.3) / 0.7) ** 2, 0, 1)) * 0.72
    funnel = 0.16 + (0.5 - height) * 0.66
    half_width = np.where(height < -0.1, sphere, np.minimum(sphere + 0.12, funnel))
    half_width[-1] = 0.16
    for x in (-0.14, 0.14):
        pen.strut([(x, 0.45), (0.85 * x, 0.78)], colors.dark, 0.05)
    edges = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 8))
    for i, (left, right) in enumerate(pairwise(edges)):
        gore = np.concatenate(
            [np.stack([left * half_width, height], 1), np.stack([right * half_width, height], 1)[::-1]]
        )
        pen.shape(gore, (colors.main, colors.light, colors.second, colors.light)[i % 4])
    pen.shape([(-0.2, 0.70), (0.2, 0.70), (0.15, 0.99), (-0.15, 0.99)], colors.deep)
    for y in (0.78, 0.88):
        pen.stroke([(-0.2, y), (0.2, y)], colors.light, 0.04)


def _butterfly(pen: Pen, colors: ObjectColors) -> None:
    for side in (-1, 1):
        pen.strut([(0, -0.4), (0.1 * side, -0.75), (0.26 * side, -0.92)], colors.dark, 0.06)
        for x, y, rx, ry, turn in ((0.5, -0.32, 0.52, 0.36, -0.11), (0.4, 0.42, 0.4, 0.34, 0.13)):
            pen.shape(ellipse(x * side, y, rx, ry, turn * side), colors.deep)
            pen.mark(ellipse(x * side, y, rx - 0.09, ry - 0.09, turn * side), colors.main)
            pen.mark(ellipse(x * side * 1.06, y, rx * 0.42, ry * 0.42, turn * side), colors.second)
            pen.mark(ellipse(x * side * 1.1, y, rx * 0.17, ry * 0.17), colors.dark)
        for x, y in ((0.24, -0.12), (0.78, -0.2), (0.4, -0.6), (0.2, 0.2), (0.62, 0.32), (0.36, 0.68)):
            pen.mark(ellipse(x * side, y, 0.065, 0.065), colors.light)
    pen.shape(ellipse(0, 0, 0.09, 0.55), colors.dark)
    pen.shape(ellipse(0, -0.5, 0.11, 0.11), colors.dark)


def _fish(pen: Pen, colors: ObjectColors) -> None:
    pen.shape([(-0.45, -0.1), (-0.98, -0.52), (-0.84, 0), (-0.98, 0.52), (-0.45, 0.1)], colors.second)
    for y in (-0.32, -0.16, 0.16, 0.32):
        pen.stroke([(-0.5, 0.25 * y), (-0.95, 1.2 * y)], colors.deep, 0.045)
    pen.shape([(-0.25, -0.35), (-0.12, -0.74), (0.4, -0.66), (0.5, -0.3)], colors.second)
    pen.shape([(-0.1, 0.3), (-0.2, 0.68), (0.16, 0.6), (0.3, 0.3)], colors.second)
    for x in (-0.02, 0.14, 0.3):
        pen.stroke([(x, -0.3), (x + 0.02, -0.66)], colors.deep, 0.04)
    pen.shape(ellipse(0.14, 0, 0.8, 0.48), colors.main)
    for column, x in enumerate(np.arange(-0.5, 0.36, 0.165)):
        half = 0.46 * np.sqrt(1 - ((x - 0.14) / 0.8) ** 2)
        for y in np.arange(-0.4 + 0.1 * (column % 2), 0.42, 0.2):
            if abs(y) < half - 0.05:
                pen.stroke(arc(x, y, 0.1, 0.1, 0.25, 0.75, 5), colors.light, 0.05)
    pen.mark(ellipse(0.66, 0.02, 0.27, 0.32), colors.deep)
    pen.mark(ellipse(0.68, -0.08, 0.115, 0.115), colors.light)
    pen.mark(ellipse(0.71, -0.08, 0.06, 0.06), colors.dark)


def _flower(pen: Pen, colors: ObjectColors) -> None:
    petals = 7
    for i in range(petals):
        turn = i / petals
        x, y = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
        pen.shape(ellipse(0.58 * x, 0.58 * y, 0.42, 0.285, turn), colors.deep)
        pen.mark(ellipse(0.6 * x, 0.6 * y, 0.36, 0.225, turn), colors.main)
        for lean in (-0.022, 0, 0.022):
            ray = np.array([np.cos(2 * np.pi * (turn + lean)), np.sin(2 * np.pi * (turn + lean))])
            pen.stroke([0.3 * ray, 0.78 * ray], colors.light, 0.035)
    pen.shape(ellipse(0, 0, 0.33, 0.33), colors.second)
    for radius, count in ((0.0, 1), (0.13, 5), (0.245, 10)):
        for i in range(count):
            angle = 2 * np.pi * i / count
            pen.mark(ellipse(radius * np.cos(angle), radius * np.sin(angle), 0.042, 0.042), colors.dark)


def _house(pen: Pen, colors: ObjectColors) -> None:
    pen.shape([(0.32, -0.9), (0.56, -0.9), (0.56, -0.3), (0.32, -0.3)], colors.deep)
    pen.shape([(-0.68, -0.15), (0.68, -0.15), (0.68, 0.92), (-0.68, 0.92)], colors.main)
    for row, y in enumerate(np.arange(0.0, 0.9, 0.155)):
        pen.stroke([(-0.68, y), (0.68, y)], colors.light, 0.035)
        for x in np.arange(-0.62 + 0.15 * (row % 2), 0.66, 0.3):
            pen.stroke([(x, y), (x, y + 0.155)], colors.light, 0.035)
    pen.shape([(-0.95, -0.08), (0, -0.95), (0.95, -0.08)], colors.second)
    for y in (-0.66, -0.46, -0.26):
        pen.stroke([(-0.95 - y, y), (0.95 + y, y)], colors.deep, 0.05)
    pen.mark([(-0.17, 0.42), (0.17, 0.42), (0.17, 0.92), (-0.17, 0.92)], colors.dark)
    for x in (-0.42, 0.42):
        pen.mark([(x - 0.16, 0.1), (x + 0.16, 0.1), (x + 0.16, 0.42), (x - 0.16, 0.42)], colors.light)
        pen.stroke([(x, 0.1), (x, 0.42)], colors.dark, 0.04)
        pen.stroke([(x - 0.16, 0.26), (x + 0.16, 0.26)], colors.dark, 0.04)


def _mushroom(pen: Pen, colors: ObjectColors) -> None:
    pen.shape([(-0.22, 0.1), (0.22, 0.1), (0.36, 0.9), (0.2, 0.98), (-0.2, 0.98), (-0.36, 0.9)], colors.light)
    for x in midpoints(-0.26, 0.26, 4):
        pen.stroke([(0.75 * x, 0.2), (1.2 * x, 0.92)], colors.second, 0.05)
    pen.shape(np.concatenate([arc(0, 0.1, 0.97, 1.05, 0.5, 1.0, 19), arc(0, 0.1, 0.97, 0.2, 0, 0.5, 11)]), colors.main)
    pen.mark(ellipse(0, 0.14, 0.76, 0.13), colors.light)
    for x in midpoints(-0.7, 0.7, 9):
        pen.stroke([(0.7 * x, 0.06), (x, 0.2)], colors.second, 0.04)
    for x, y, radius in (
        (-0.05, -0.62, 0.16),
        (-0.46, -0.36, 0.14),
        (0.38, -0.45, 0.13),
        (-0.08, -0.2, 0.15),
        (0.66, -0.12, 0.12),
        (-0.76, -0.06, 0.09),
        (0.3, -0.1, 0.09),
    ):
        pen.mark(ellipse(x, y, 1.1 * radius, radius), colors.light)


def _sailboat(pen: Pen, colors: ObjectColors) -> None:
    pen.strut([(0, -0.98), (0, 0.5)], colors.dark, 0.07)
    for side, foot, top in ((1, 0.86, -0.95), (-1, -0.7, -0.8)):
        x = 0.06 * side
        heights = np.linspace(0.4, top, 8)
        for i, (low, high) in enumerate(pairwise(heights)):
            low_x = x + (foot - x) * (low - top) / (0.4 - top)
            high_x = x + (foot - x) * (high - top) / (0.4 - top)
            stripe = colors.main if (i + side) % 2 else colors.light
            pen.shape([(x, low), (low_x, low), (high_x, high), (x, high)], stripe)
    pen.shape([(-0.92, 0.48), (0.98, 0.48), (0.68, 0.92), (-0.62, 0.92)], colors.deep)
    pen.stroke([(-0.95, 0.52), (1, 0.52)], colors.second, 0.09)
    for y in (0.66, 0.79):
        pen.stroke([(-0.9, y), (0.95, y)], colors.dark, 0.035)


def _tree(pen: Pen, colors: ObjectColors) -> None:
    pen.shape([(-0.13, 0.6), (0.13, 0.6), (0.17, 0.99), (-0.17, 0.99)], colors.dark)
    for top, bottom, half in ((0.0, 0.78, 0.8), (-0.48, 0.32, 0.66), (-0.98, -0.14, 0.5)):
        hem = [(half * (1 - 2 * i / 8), bottom + (0.09 if i % 2 else 0.0)) for i in range(9)]
        pen.shape([(0, top), *hem], colors.main)
        for y in midpoints(top + 0.12, bottom, 4):
            width = half * (y - top) / (bottom - top)
            count = max(1, round(width / 0.14))
            for x in midpoints(-0.92 * width, 0.92 * width, count):
                pen.stroke([(x - 0.07, y + 0.05), (x, y - 0.05), (x + 0.07, y + 0.05)], colors.deep, 0.04)
        pen.stroke([(-half, bottom), (half, bottom)], colors.deep, 0.05)
    for x, y in ((0.0, -0.42), (-0.26, 0.12), (0.22, 0.0), (-0.42, 0.62), (0.08, 0.5), (0.5, 0.66)):
        pen.mark(ellipse(x, y, 0.085, 0.085), colors.second)


@dataclass(frozen=True)
class ObjectKind:
    """A kind of object, one class of the scenes.

    Attributes:
        name: class name.
        draw: draws the object with a pen in given colors.
        max_turn: largest rotation from upright, in turns; 0.5 allows any.
    """

    name: str
    draw: Callable[[Pen, ObjectColors], None]
    max_turn: float


DRAWINGS = (
    ObjectKind("balloon", _balloon, 0.05),
    ObjectKind("butterfly", _butterfly, 0.5),
    ObjectKind("fish", _fish, 0.08),
    ObjectKind("flower", _flower, 0.5),
    ObjectKind("house", _house, 0.03),
    ObjectKind("mushroom", _mushroom, 0.06),
    ObjectKind("sailboat", _sailboat, 0.05),
    ObjectKind("tree", _tree, 0.03),
)

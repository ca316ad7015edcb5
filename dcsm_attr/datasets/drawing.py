"""Drawing one object as an antialiased cut-out: polygons and strokes in the object's own coordinates.

An object is drawn upright in a square from -1 to 1, x to the right and y down; :class:`Pen` turns, mirrors, scales and
draws it several times larger than needed, and :meth:`Pen.cut_out` reduces it, so that edges are smooth.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["Colour", "CutOut", "Floats", "Pen", "Points", "arc", "between", "ellipse", "oklch", "shares_of"]

Colour = tuple[int, int, int]
Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

# Pixels of the drawing an edge of a pixel of the result.
_OVERSAMPLING = 3
# Half the side of the drawing in the object's coordinates. The corners of a turned square do not fit; no object reaches
# into them.
_REACH = 1.15
_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE: Points = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Colour in Ottosson's OKLab, in which equal steps look equal: hues of one lightness and chroma go together.

    Args:
        lightness: 0 (black) to 1 (white).
        chroma: 0 (grey) to about 0.3; what sRGB cannot show is clipped.
        hue: in turns; 0.08 is red, 0.3 yellow, 0.4 green, 0.7 blue.

    Returns:
        sRGB, each 0 to 255.
    """
    a, b = chroma * math.cos(2 * math.pi * hue), chroma * math.sin(2 * math.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _encoded(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _encoded(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _encoded(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _encoded(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    value = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * value)


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """The outline of an ellipse with centre ``(x, y)``, turned by ``turn`` (in turns), as ``(28, 2)`` points."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    axes = np.array([[rx * cosine, rx * sine], [-ry * sine, ry * cosine]])
    points: Points = _CIRCLE @ axes + (x, y)
    return points


@dataclass(frozen=True)
class CutOut:
    """A drawn object, ready to be laid on a picture.

    Attributes:
        colour: ``(s, s, 3)`` float32 in 0 to 255.
        alpha: ``(s, s)`` float32 in [0, 1].
        left, top: where its first pixel lies in the picture; it may reach over the edges.
    """

    colour: Floats
    alpha: Floats
    left: int
    top: int


class Pen:
    """Draws one object.

    Attributes:
        detail: pixels of the result in one unit of the object's coordinates, by which drawings choose how much to show.
    """

    def __init__(self, centre: tuple[float, float], radius: float, turn: float, mirrored: bool, ground: Colour) -> None:
        """Set up a drawing.

        Args:
            centre: ``(x, y)`` in pixels of the picture.
            radius: pixels that 1 in the object's coordinates becomes.
            turn: rotation, in turns, clockwise.
            mirrored: whether left and right are exchanged.
            ground: the colour that shows through antialiased outlines.
        """
        self.detail = radius
        half = math.ceil(_REACH * radius)
        self._left, self._top = round(centre[0]) - half, round(centre[1]) - half
        side = 2 * half * _OVERSAMPLING
        cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
        flip = -1.0 if mirrored else 1.0
        self._axes = np.array([[flip * cosine, flip * sine], [-sine, cosine]]) * (radius * _OVERSAMPLING)
        self._origin = side / 2
        self._unit = radius * _OVERSAMPLING
        self._colour = Image.new("RGB", (side, side), ground)
        self._alpha = Image.new("L", (side, side))
        self._paint = ImageDraw.Draw(self._colour)
        self._cut = ImageDraw.Draw(self._alpha)

    def shape(self, points: npt.ArrayLike, colour: Colour) -> None:
        """Add a filled polygon to the object, ``(n, 2)``."""
        flat = self._placed(points)
        self._paint.polygon(flat, fill=colour)
        self._cut.polygon(flat, fill=255)

    def mark(self, points: npt.ArrayLike, colour: Colour) -> None:
        """Paint a polygon on the object, ``(n, 2)``; what lies outside of the object does not show."""
        self._paint.polygon(self._placed(points), fill=colour)

    def stroke(self, points: npt.ArrayLike, colour: Colour, width: float) -> None:
        """Paint a line through ``(n, 2)`` points on the object, ``width`` in the object's coordinates."""
        self._paint.line(self._placed(points), fill=colour, width=max(1, round(width * self._unit)), joint="curve")

    def strut(self, points: npt.ArrayLike, colour: Colour, width: float) -> None:
        """Add a line to the object, as :meth:`stroke` paints one."""
        self.stroke(points, colour, width)
        self._cut.line(self._placed(points), fill=255, width=max(1, round(width * self._unit)))

    def _placed(self, points: npt.ArrayLike) -> list[float]:
        placed = np.asarray(points, dtype=np.float64) @ self._axes + self._origin
        flat: list[float] = placed.ravel().tolist()
        return flat

    def cut_out(self, light: tuple[float, float] | None = None) -> CutOut:
        """Finish the drawing.

        Args:
            light: direction towards the light, of length one; the object is shaded like a cushion. None: flat.
        """
        colour = np.asarray(self._colour.reduce(_OVERSAMPLING), dtype=np.float32)
        alpha_image = self._alpha.reduce(_OVERSAMPLING)
        alpha = shares_of(alpha_image)
        if light is not None:
            colour = np.clip(colour * self._shading(alpha_image, light)[..., None], 0, 255)
        return CutOut(colour, alpha, self._left, self._top)

    def _shading(self, alpha: Image.Image, light: tuple[float, float]) -> Floats:
        # The blurred silhouette as a height: bright where it falls towards the light, dark at the rim.
        blurred = alpha.filter(ImageFilter.GaussianBlur(0.16 * self.detail))
        height = shares_of(blurred)
        slope_y, slope_x = np.gradient(height)
        facing = -(light[0] * slope_x + light[1] * slope_y) * self.detail
        shading: Floats = 0.80 + 0.24 * height + 0.13 * np.clip(facing, -1.5, 1.5)
        return shading


def shares_of(image: Image.Image) -> Floats:
    """A grey picture as float32 in [0, 1]."""
    shares: Floats = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    return shares


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, points: int = 7) -> Points:
    """Part of an ellipse's outline, from ``start`` to ``end`` (in turns, clockwise from the right), ``(points, 2)``."""
    angle = 2 * np.pi * np.linspace(start, end, points)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def between(first: float, last: float, count: int) -> Iterable[float]:
    """``count`` numbers at equal distances, the middles of equal parts of ``first`` to ``last``."""
    return (first + (last - first) * (i + 0.5) / count for i in range(count))

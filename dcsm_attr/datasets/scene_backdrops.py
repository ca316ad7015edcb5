"""Backdrops of the generated scenes, and clutter: drawings that belong to no class."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from dcsm_attr.datasets.scene_objects import Color, Floats, Pen, arc, ellipse, oklch

__all__ = ["CLUTTER", "draw_backdrop"]


def draw_backdrop(rng: np.random.Generator, size: int, hue: float) -> Floats:
    """Draws one of six backdrops in soft colors: a gradient, hills, the sea, a night sky, wallpaper, or lights.

    Args:
        rng: source of all random choices.
        size: side S in pixels.
        hue: mean hue of the colors, in turns.

    Returns:
        ``(S, S, 3)`` float32 in 0 to 255.
    """
    kinds: tuple[Callable[[np.random.Generator, int, float], Floats], ...]
    kinds = (_gradient, _hills, _sea, _night, _wallpaper, _lights)
    image = kinds[rng.integers(len(kinds))](rng, size, hue)
    image += _soft_noise(rng, size, cells=8)[..., None] * rng.uniform(1, 5)
    image += rng.normal(0, rng.uniform(0.3, 1.2), (size, size, 1)).astype(np.float32)
    return np.clip(image, 0, 255, out=image)


def _rgb(lightness: float, chroma: float, hue: float) -> Floats:
    return np.array(oklch(lightness, chroma, hue), dtype=np.float32)


def _ramp(size: int, top: Floats, bottom: Floats, lean: float = 0.0) -> Floats:
    """Returns a vertical color gradient; ``lean`` tilts its direction."""
    axis = np.linspace(0, 1, size, dtype=np.float32)
    share = np.clip(axis[:, None] + lean * (axis[None, :] - 0.5), 0, 1)[..., None]
    ramp: Floats = top * (1 - share) + bottom * share
    return ramp


def _soft_noise(rng: np.random.Generator, size: int, cells: int) -> Floats:
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _fill_below(image: Floats, line: Floats, color: Floats) -> None:
    """Fills the area below a line ``(S,)``, one row per column, with a smooth edge; changes ``image``."""
    rows = np.arange(len(image), dtype=np.float32)[:, None]
    cover = np.clip(rows - line[None, :] + 0.5, 0, 1)[..., None]
    image += (color - image) * cover


def _waves(rng: np.random.Generator, size: int, height: float, amplitude: float, periods: float) -> Floats:
    column = np.linspace(0, 1, size, dtype=np.float32)
    phase, second = rng.random(2)
    wave = np.sin(2 * np.pi * (periods * column + phase)) + 0.4 * np.sin(2 * np.pi * (2.3 * periods * column + second))
    line: Floats = (size * (height + amplitude * wave)).astype(np.float32)
    return line


def _gradient(rng: np.random.Generator, size: int, hue: float) -> Floats:
    top, bottom = rng.uniform(0.74, 0.94, 2)
    other = hue + rng.uniform(-0.2, 0.2)
    return _ramp(size, _rgb(top, 0.06, hue), _rgb(bottom, 0.06, other), rng.uniform(-0.8, 0.8))


def _hills(rng: np.random.Generator, size: int, hue: float) -> Floats:
    image = _ramp(size, _rgb(0.84, 0.06, hue), _rgb(0.95, 0.03, hue + 0.1))
    land = hue + rng.uniform(0.2, 0.5)
    ridges = rng.integers(2, 5)
    for i in range(ridges):
        height = 0.45 + 0.5 * (i + rng.uniform(0, 0.6)) / ridges
        line = _waves(rng, size, height, rng.uniform(0.02, 0.06), rng.uniform(0.5, 1.5))
        near = _rgb(0.84 - 0.09 * i, 0.05 + 0.012 * i, land + 0.02 * i)
        _fill_below(image, line, _ramp(size, near, _rgb(0.76 - 0.09 * i, 0.06, land)))
    return image


def _sea(rng: np.random.Generator, size: int, hue: float) -> Floats:
    image = _ramp(size, _rgb(0.93, 0.04, hue + 0.4), _rgb(0.88, 0.05, hue))
    horizon = rng.uniform(0.2, 0.5)
    bands = rng.integers(4, 8)
    for i in range(bands):
        height = horizon + (1 - horizon) * i / bands
        line = _waves(rng, size, height, 0.008 + 0.004 * i, rng.uniform(2, 4))
        _fill_below(image, line, _rgb(0.82 - 0.035 * i, 0.06 + 0.005 * i, hue))
    return image


def _night(rng: np.random.Generator, size: int, hue: float) -> Floats:
    # Only teal to purple: dark yellow and green are hard to tell apart.
    hue = rng.uniform(0.55, 0.9)
    image = _ramp(size, _rgb(0.26, 0.06, hue), _rgb(rng.uniform(0.36, 0.5), 0.09, hue + 0.06))
    for x, y, glow in zip(*rng.integers(1, size - 1, (2, 40)), rng.uniform(20, 130, 40), strict=True):
        image[y, x] += glow
        image[y - 1 : y + 2, x] += 0.2 * glow
        image[y, x - 1 : x + 2] += 0.2 * glow
    return image


def _wallpaper(rng: np.random.Generator, size: int, hue: float) -> Floats:
    """Broad stripes, checks or dots in two similar colors."""
    axis = np.arange(size, dtype=np.float32) - size / 2
    turn, period = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.11, 0.23)
    along = np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None]
    across = np.cos(turn) * axis[:, None] - np.sin(turn) * axis[None, :]
    first, second = np.sin(2 * np.pi * along / period), np.sin(2 * np.pi * across / period)
    pattern = (first, first * second, first + second - 0.9)[rng.integers(3)]
    share = np.clip(0.5 + 2.5 * pattern, 0, 1)[..., None].astype(np.float32)
    lightness = rng.uniform(0.7, 0.92)
    ground = _ramp(size, _rgb(lightness, 0.05, hue), _rgb(lightness - 0.06, 0.06, hue + 0.05))
    figure = _rgb(lightness + rng.choice([-0.05, 0.05]), 0.055, hue + 0.03)
    image: Floats = ground + (figure - ground) * share
    return image


def _lights(rng: np.random.Generator, size: int, hue: float) -> Floats:
    """Blurred discs of light."""
    lightness = rng.uniform(0.5, 0.85)
    image = _ramp(size, _rgb(lightness, 0.08, hue), _rgb(lightness - 0.1, 0.08, hue + 0.15), 0.5)
    rows, columns = np.ogrid[:size, :size]
    for _ in range(rng.integers(5, 11)):
        x, y = rng.uniform(0, size, 2)
        radius = rng.uniform(0.06, 0.17) * size
        distance = np.sqrt((columns - x) ** 2 + (rows - y) ** 2).astype(np.float32)
        disc = np.clip((radius - distance) / 2 + 0.5, 0, 1)[..., None] * rng.uniform(0.1, 0.35)
        image += (_rgb(0.92, 0.06, hue + rng.uniform(-0.1, 0.2)) - image) * disc
    return image


def _cloud(pen: Pen, main: Color, other: Color) -> None:
    for x, y, rx, ry in ((-0.45, 0.1, 0.42, 0.32), (0.05, -0.12, 0.48, 0.44), (0.5, 0.12, 0.4, 0.28)):
        pen.shape(ellipse(x, y, rx, ry), main)


def _pebble(pen: Pen, main: Color, other: Color) -> None:
    pen.shape(ellipse(0, 0, 0.9, 0.6), main)
    pen.mark(ellipse(-0.2, -0.2, 0.4, 0.2), other)


def _ring(pen: Pen, main: Color, other: Color) -> None:
    pen.strut(np.vstack([ellipse(0, 0, 0.75, 0.75), ellipse(0, 0, 0.75, 0.75)[:2]]), main, 0.3)


def _chip(pen: Pen, main: Color, other: Color) -> None:
    pen.shape([(-0.8, 0.5), (0.1, -0.9), (0.85, 0.6)], main)


def _tile(pen: Pen, main: Color, other: Color) -> None:
    pen.shape([(-0.7, -0.6), (0.7, -0.6), (0.7, 0.6), (-0.7, 0.6)], main)
    pen.mark([(-0.45, -0.35), (0.45, -0.35), (0.45, 0.35), (-0.45, 0.35)], other)


def _leaf(pen: Pen, main: Color, other: Color) -> None:
    pen.shape(np.vstack([arc(0, 0.55, 1.0, 1.0, 0.59, 0.91, 9), arc(0, -0.55, 1.0, 1.0, 0.09, 0.41, 9)]), main)
    pen.stroke([(-0.9, 0), (0.8, 0)], other, 0.08)


def _squiggle(pen: Pen, main: Color, other: Color) -> None:
    x = np.linspace(-0.95, 0.95, 17)
    pen.strut(np.stack([x, 0.3 * np.sin(7 * x)], axis=1), main, 0.16)


def _twig(pen: Pen, main: Color, other: Color) -> None:
    pen.strut([(-0.95, 0.1), (0.1, 0), (0.95, -0.2)], main, 0.12)
    pen.strut([(0.1, 0), (0.55, 0.45)], main, 0.1)


def _cross(pen: Pen, main: Color, other: Color) -> None:
    pen.strut([(-0.7, 0), (0.7, 0)], main, 0.3)
    pen.strut([(0, -0.7), (0, 0.7)], main, 0.3)


#: Drawings of objects that belong to no class, in two colors.
CLUTTER: tuple[Callable[[Pen, Color, Color], None], ...]
CLUTTER = (_cloud, _pebble, _ring, _chip, _tile, _leaf, _squiggle, _twig, _cross)

"""The eight kinds of objects in the generated scenes, as drawings.

Each kind has its own outline and its own texture all over (scales, bricks, gores, ...), in any colours: what tells a
fish from a house is everywhere on it, and it is not the hue.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dcsm_attr.datasets.drawing import Colour, Pen, arc, between, ellipse, oklch

__all__ = ["DRAWINGS", "Dyes", "Kind"]


@dataclass(frozen=True)
class Dyes:
    """The colours of one object."""

    main: Colour
    deep: Colour
    second: Colour
    light: Colour
    dark: Colour

    @staticmethod
    def around(hue: float, second_hue: float, lightness: float) -> "Dyes":
        """Colours that go together: two hues (in turns), each with its shade, one near white and one near black."""
        return Dyes(
            main=oklch(lightness, 0.145, hue),
            deep=oklch(lightness - 0.15, 0.13, hue),
            second=oklch(lightness + 0.08, 0.13, second_hue),
            light=oklch(0.95, 0.035, second_hue),
            dark=oklch(0.33, 0.06, hue),
        )


def _balloon(pen: Pen, dyes: Dyes) -> None:
    height = np.linspace(-1, 0.5, 13)
    # A circle above, drawn in to the mouth below.
    sphere = np.sqrt(np.clip(1 - ((height + 0.3) / 0.7) ** 2, 0, 1)) * 0.72
    funnel = 0.16 + (0.5 - height) * 0.66
    half_width = np.where(height < -0.1, sphere, np.minimum(sphere + 0.12, funnel))
    half_width[-1] = 0.16
    for x in (-0.14, 0.14):
        pen.strut([(x, 0.45), (0.85 * x, 0.78)], dyes.dark, 0.05)
    edges = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 8))
    for i, (left, right) in enumerate(pairwise(edges)):
        gore = np.concatenate(
            [np.stack([left * half_width, height], 1), np.stack([right * half_width, height], 1)[::-1]]
        )
        pen.shape(gore, (dyes.main, dyes.light, dyes.second, dyes.light)[i % 4])
    pen.shape([(-0.2, 0.70), (0.2, 0.70), (0.15, 0.99), (-0.15, 0.99)], dyes.deep)
    for y in (0.78, 0.88):
        pen.stroke([(-0.2, y), (0.2, y)], dyes.light, 0.04)


def _butterfly(pen: Pen, dyes: Dyes) -> None:
    for side in (-1, 1):
        pen.strut([(0, -0.4), (0.1 * side, -0.75), (0.26 * side, -0.92)], dyes.dark, 0.06)
        for x, y, rx, ry, turn in ((0.5, -0.32, 0.52, 0.36, -0.11), (0.4, 0.42, 0.4, 0.34, 0.13)):
            pen.shape(ellipse(x * side, y, rx, ry, turn * side), dyes.deep)
            pen.mark(ellipse(x * side, y, rx - 0.09, ry - 0.09, turn * side), dyes.main)
            pen.mark(ellipse(x * side * 1.06, y, rx * 0.42, ry * 0.42, turn * side), dyes.second)
            pen.mark(ellipse(x * side * 1.1, y, rx * 0.17, ry * 0.17), dyes.dark)
        for x, y in ((0.24, -0.12), (0.78, -0.2), (0.4, -0.6), (0.2, 0.2), (0.62, 0.32), (0.36, 0.68)):
            pen.mark(ellipse(x * side, y, 0.065, 0.065), dyes.light)
    pen.shape(ellipse(0, 0, 0.09, 0.55), dyes.dark)
    pen.shape(ellipse(0, -0.5, 0.11, 0.11), dyes.dark)


def _fish(pen: Pen, dyes: Dyes) -> None:
    pen.shape([(-0.45, -0.1), (-0.98, -0.52), (-0.84, 0), (-0.98, 0.52), (-0.45, 0.1)], dyes.second)
    for y in (-0.32, -0.16, 0.16, 0.32):
        pen.stroke([(-0.5, 0.25 * y), (-0.95, 1.2 * y)], dyes.deep, 0.045)
    pen.shape([(-0.25, -0.35), (-0.12, -0.74), (0.4, -0.66), (0.5, -0.3)], dyes.second)
    pen.shape([(-0.1, 0.3), (-0.2, 0.68), (0.16, 0.6), (0.3, 0.3)], dyes.second)
    for x in (-0.02, 0.14, 0.3):
        pen.stroke([(x, -0.3), (x + 0.02, -0.66)], dyes.deep, 0.04)
    pen.shape(ellipse(0.14, 0, 0.8, 0.48), dyes.main)
    for column, x in enumerate(np.arange(-0.5, 0.36, 0.165)):
        half = 0.46 * np.sqrt(1 - ((x - 0.14) / 0.8) ** 2)
        for y in np.arange(-0.4 + 0.1 * (column % 2), 0.42, 0.2):
            if abs(y) < half - 0.05:
                pen.stroke(arc(x, y, 0.1, 0.1, 0.25, 0.75, 5), dyes.light, 0.05)
    pen.mark(ellipse(0.66, 0.02, 0.27, 0.32), dyes.deep)
    pen.mark(ellipse(0.68, -0.08, 0.115, 0.115), dyes.light)
    pen.mark(ellipse(0.71, -0.08, 0.06, 0.06), dyes.dark)


def _flower(pen: Pen, dyes: Dyes) -> None:
    petals = 7
    for i in range(petals):
        turn = i / petals
        x, y = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
        pen.shape(ellipse(0.58 * x, 0.58 * y, 0.42, 0.285, turn), dyes.deep)
        pen.mark(ellipse(0.6 * x, 0.6 * y, 0.36, 0.225, turn), dyes.main)
        for lean in (-0.022, 0, 0.022):
            ray = np.array([np.cos(2 * np.pi * (turn + lean)), np.sin(2 * np.pi * (turn + lean))])
            pen.stroke([0.3 * ray, 0.78 * ray], dyes.light, 0.035)
    pen.shape(ellipse(0, 0, 0.33, 0.33), dyes.second)
    for radius, count in ((0.0, 1), (0.13, 5), (0.245, 10)):
        for i in range(count):
            angle = 2 * np.pi * i / count
            pen.mark(ellipse(radius * np.cos(angle), radius * np.sin(angle), 0.042, 0.042), dyes.dark)


def _house(pen: Pen, dyes: Dyes) -> None:
    pen.shape([(0.32, -0.9), (0.56, -0.9), (0.56, -0.3), (0.32, -0.3)], dyes.deep)
    pen.shape([(-0.68, -0.15), (0.68, -0.15), (0.68, 0.92), (-0.68, 0.92)], dyes.main)
    for row, y in enumerate(np.arange(0.0, 0.9, 0.155)):
        pen.stroke([(-0.68, y), (0.68, y)], dyes.light, 0.035)
        for x in np.arange(-0.62 + 0.15 * (row % 2), 0.66, 0.3):
            pen.stroke([(x, y), (x, y + 0.155)], dyes.light, 0.035)
    pen.shape([(-0.95, -0.08), (0, -0.95), (0.95, -0.08)], dyes.second)
    for y in (-0.66, -0.46, -0.26):
        pen.stroke([(-0.95 - y, y), (0.95 + y, y)], dyes.deep, 0.05)
    pen.mark([(-0.17, 0.42), (0.17, 0.42), (0.17, 0.92), (-0.17, 0.92)], dyes.dark)
    for x in (-0.42, 0.42):
        pen.mark([(x - 0.16, 0.1), (x + 0.16, 0.1), (x + 0.16, 0.42), (x - 0.16, 0.42)], dyes.light)
        pen.stroke([(x, 0.1), (x, 0.42)], dyes.dark, 0.04)
        pen.stroke([(x - 0.16, 0.26), (x + 0.16, 0.26)], dyes.dark, 0.04)


def _mushroom(pen: Pen, dyes: Dyes) -> None:
    pen.shape([(-0.22, 0.1), (0.22, 0.1), (0.36, 0.9), (0.2, 0.98), (-0.2, 0.98), (-0.36, 0.9)], dyes.light)
    for x in between(-0.26, 0.26, 4):
        pen.stroke([(0.75 * x, 0.2), (1.2 * x, 0.92)], dyes.second, 0.05)
    pen.shape(np.concatenate([arc(0, 0.1, 0.97, 1.05, 0.5, 1.0, 19), arc(0, 0.1, 0.97, 0.2, 0, 0.5, 11)]), dyes.main)
    pen.mark(ellipse(0, 0.14, 0.76, 0.13), dyes.light)
    for x in between(-0.7, 0.7, 9):
        pen.stroke([(0.7 * x, 0.06), (x, 0.2)], dyes.second, 0.04)
    for x, y, radius in (
        (-0.05, -0.62, 0.16),
        (-0.46, -0.36, 0.14),
        (0.38, -0.45, 0.13),
        (-0.08, -0.2, 0.15),
        (0.66, -0.12, 0.12),
        (-0.76, -0.06, 0.09),
        (0.3, -0.1, 0.09),
    ):
        pen.mark(ellipse(x, y, 1.1 * radius, radius), dyes.light)


def _sailboat(pen: Pen, dyes: Dyes) -> None:
    pen.strut([(0, -0.98), (0, 0.5)], dyes.dark, 0.07)
    for side, foot, top in ((1, 0.86, -0.95), (-1, -0.7, -0.8)):
        x = 0.06 * side
        heights = np.linspace(0.4, top, 8)
        for i, (low, high) in enumerate(pairwise(heights)):
            low_x = x + (foot - x) * (low - top) / (0.4 - top)
            high_x = x + (foot - x) * (high - top) / (0.4 - top)
            stripe = dyes.main if (i + side) % 2 else dyes.light
            pen.shape([(x, low), (low_x, low), (high_x, high), (x, high)], stripe)
    pen.shape([(-0.92, 0.48), (0.98, 0.48), (0.68, 0.92), (-0.62, 0.92)], dyes.deep)
    pen.stroke([(-0.95, 0.52), (1, 0.52)], dyes.second, 0.09)
    for y in (0.66, 0.79):
        pen.stroke([(-0.9, y), (0.95, y)], dyes.dark, 0.035)


def _tree(pen: Pen, dyes: Dyes) -> None:
    pen.shape([(-0.13, 0.6), (0.13, 0.6), (0.17, 0.99), (-0.17, 0.99)], dyes.dark)
    for top, bottom, half in ((0.0, 0.78, 0.8), (-0.48, 0.32, 0.66), (-0.98, -0.14, 0.5)):
        hem = [(half * (1 - 2 * i / 8), bottom + (0.09 if i % 2 else 0.0)) for i in range(9)]
        pen.shape([(0, top), *hem], dyes.main)
        for y in between(top + 0.12, bottom, 4):
            width = half * (y - top) / (bottom - top)
            count = max(1, round(width / 0.14))
            for x in between(-0.92 * width, 0.92 * width, count):
                pen.stroke([(x - 0.07, y + 0.05), (x, y - 0.05), (x + 0.07, y + 0.05)], dyes.deep, 0.04)
        pen.stroke([(-half, bottom), (half, bottom)], dyes.deep, 0.05)
    for x, y in ((0.0, -0.42), (-0.26, 0.12), (0.22, 0.0), (-0.42, 0.62), (0.08, 0.5), (0.5, 0.66)):
        pen.mark(ellipse(x, y, 0.085, 0.085), dyes.second)


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        name: what a person calls it.
        draw: draws it with a pen in given colours.
        sway: how far it may be turned from upright, in turns; 0.5 is any way.
    """

    name: str
    draw: Callable[[Pen, Dyes], None]
    sway: float


DRAWINGS = (
    Kind("balloon", _balloon, 0.05),
    Kind("butterfly", _butterfly, 0.5),
    Kind("fish", _fish, 0.08),
    Kind("flower", _flower, 0.5),
    Kind("house", _house, 0.03),
    Kind("mushroom", _mushroom, 0.06),
    Kind("sailboat", _sailboat, 0.05),
    Kind("tree", _tree, 0.03),
)

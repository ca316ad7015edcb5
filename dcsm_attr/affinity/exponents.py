r"""Exponents of the background, :math:`(1 - \max_c M_c)^\alpha`, for the maps of each method.

Maps of different methods rise to their maximum in different ways, and an exponent that suits one says of another that
everything is foreground.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["EXPONENTS", "RELEASED", "Exponents", "exponents_of"]


@dataclass(frozen=True)
class Exponents:
    """Where the foreground of one method's maps begins.

    Attributes:
        low: for labels in which foreground is sure.
        high: for labels in which background is sure.
        walk: for the background that walks with the classes.
    """

    low: float
    high: float
    walk: float


#: Those of the release, for CAM. (The submission had 24 in the place of 32.)
RELEASED = Exponents(4.0, 32.0, 16.0)

#: By the name of the method. Those of DCSM, with the preset "tuned", and of its product with CAM were chosen on 64
#: photographs of VOC's training set: about as many pixels are known, and as many of them rightly, as with CAM.
EXPONENTS: Mapping[str, Exponents] = {
    "cam": RELEASED,
    "dcsm": Exponents(0.2, 0.8, 0.25),
    "fusion": Exponents(8.0, 64.0, 32.0),
}


def exponents_of(method: str) -> Exponents:
    """Those of a method by its name.

    Raises:
        ValueError: if none are known for it.
    """
    if method not in EXPONENTS:
        raise ValueError(
            f"no exponents of the background are known for the maps of {method}: give them all, or take one of "
            f"{', '.join(EXPONENTS)}."
        )
    return EXPONENTS[method]

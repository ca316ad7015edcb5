"""Warnings that point at the line of the user's own code."""

import sys
import warnings
from types import FrameType

__all__ = ["warn_caller"]

_PASSED_ON_BY = ("dcsm_attr.", "captum.")


def warn_caller(message: str) -> None:
    """Warn, with the first frame outside of this package and of Captum's wrappers as the origin."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith(_PASSED_ON_BY):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)

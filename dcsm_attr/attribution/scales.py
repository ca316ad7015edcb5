"""The sizes at which a method looks at an image, as ratios to its own."""

from collections.abc import Sequence

__all__ = ["checked_scales", "nearest_first"]


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Check the ratios of the sides.

    Raises:
        ValueError: if there is none, or one is not positive or far too large.
    """
    scales = tuple(scales)
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise ValueError(f"scales must be ratios to the input size, above 0 and at most 8; got {scales}.")
    return scales


def nearest_first(scales: Sequence[float]) -> list[float]:
    """The scale nearest to 1 comes first: there the classes are chosen."""
    return sorted(scales, key=lambda ratio: abs(ratio - 1))

"""Measurements of the package: accuracy, ablations, speed. Not part of the wheel."""

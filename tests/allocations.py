"""Implementations that allocate memory, in a module that measuring processes import quickly."""

import torch

from benchmarks.speed.comparison import OURS

MIB = 2**20


def allocating(mebibytes):
    """Implementations that allocate the given memory, and half of it."""

    def filled(count):
        return lambda: float(torch.ones(count * MIB // 4).sum())

    return {OURS: filled(mebibytes), "half": filled(mebibytes // 2)}

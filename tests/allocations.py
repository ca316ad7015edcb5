"""Contenders that take memory, in a module that the processes in which they are measured import quickly."""

import torch

from benchmarks.speed.comparison import OURS

MIB = 2**20


def allocating(mebibytes):
    """Contenders that take so much memory, and half of it."""

    def filled(count):
        return lambda: float(torch.ones(count * MIB // 4).sum())

    return {OURS: filled(mebibytes), "half": filled(mebibytes // 2)}

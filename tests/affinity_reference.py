"""Affinities and walks in float64, pair by pair and by dense matrices, from the paper alone: nothing of the package."""

import numpy as np


def offsets_within(radius):
    """Half of the disc, by looking at every offset of the square."""
    square = range(-radius, radius + 1)
    disc = [(dy, dx) for dy in square for dx in square if (dy**2 + dx**2) ** 0.5 < radius]
    return [(dy, dx) for dy, dx in disc if dy > 0 or (dy == 0 and dx > 0)]


def dense_weights(affinities, offsets, beta=1.0):
    """W of one image, with ones on its diagonal, raised to beta: (P, h, w) to (h w, h w)."""
    pairs, height, width = affinities.shape
    weights = np.eye(height * width)
    for p in range(pairs):
        dy, dx = offsets[p]
        for y in range(height):
            for x in range(width):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    weights[i, j] = weights[j, i] = float(affinities[p, y, x]) ** beta
    return weights


def dense_walk(maps, affinities, offsets, beta, squarings):
    """As the released code goes about it: columns normalized, squared again and again, applied from the right."""
    weights = dense_weights(affinities, offsets, beta)
    power = weights / weights.sum(axis=0, keepdims=True)
    for _ in range(squarings):
        power = power @ power
    labels, height, width = maps.shape
    return (np.asarray(maps, dtype=np.float64).reshape(labels, -1) @ power).reshape(labels, height, width)

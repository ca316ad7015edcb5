r"""The random walk of AffinityNet: class maps spread to positions that belong together.

Ahn and Kwak, CVPR 2018: :math:`T = D^{-1} W^{\circ\beta}`, :math:`D_{ii} = \sum_j W_{ij}^\beta`; a map becomes
:math:`T^t` times the map. Positions farther apart than the radius have no affinity, so that T is sparse: a row has 69
entries with a radius of 5.

T stays sparse whatever the size: few products make a power of it (``matrix_power.py``), where squaring fills it, and
costs the cube of the number of positions. Products are taken in float64: in float32 the rounding of 256 steps adds up
where features are smooth (``python -m benchmarks.speed walk`` tells to how much, and what all of it takes).
"""

import math

import torch
from torch import Tensor

from dcsm_attr.affinity.batches import together
from dcsm_attr.affinity.compressed_rows import compressed_rows
from dcsm_attr.affinity.matrix_power import apply_power
from dcsm_attr.affinity.neighbours import Border, Offsets, overlap, pair_mask

__all__ = ["random_walk", "transition_matrix"]


def random_walk(
    maps: Tensor,
    affinities: Tensor,
    offsets: Offsets,
    *,
    beta: float = 8.0,
    steps: int = 256,
    border: Border = "full",
) -> Tensor:
    """Let every map walk; what an image gets does not depend on the others.

    Args:
        maps: ``(N, L, h, w)`` floating point, for example of the classes and the background.
        affinities: ``(N, P, h, w)`` floating point in [0, 1], see :func:`dcsm_attr.affinity.affinities.affinities`.
        offsets: P pairs ``(dy, dx)``, those of the affinities.
        beta: the power of each affinity, positive; a larger one keeps maps from crossing weak affinities. The paper's.
        steps: t, not negative; with more of them maps walk farther. The paper's.
        border: ``"released"`` leaves out the pairs that the released code misses, see
            :func:`dcsm_attr.affinity.neighbours.pair_mask`.

    Returns:
        ``(N, L, h, w)``, detached, with the dtype of the maps, each within its map's range.

    Raises:
        TypeError: if maps or affinities are not floating point.
        ValueError: if shapes do not fit, affinities are not in [0, 1], a map is not finite, or a setting is out of its
            range.
    """
    _check(maps, affinities, steps)
    tolerance = torch.finfo(torch.promote_types(maps.dtype, torch.float32)).eps
    walked = torch.empty_like(maps)
    with torch.no_grad():
        for images in together(maps):
            matrix = transition_matrix(affinities[images].double(), offsets, beta=beta, border=border)
            # What is left out moves less, in all steps together, than the tolerance.
            smallest = tolerance / (matrix.shape[1] * max(1, steps))
            # The maps of a position side by side in memory: all of them are read together.
            values = maps[images].double().permute(0, 2, 3, 1).contiguous()
            rows = _compressed(matrix, offsets, smallest)
            result = apply_power(rows.matmul, values.flatten(0, 2), steps, tolerance)
            walked[images] = result.view(values.shape).permute(0, 3, 1, 2)
        return walked.clamp_(maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True))


def transition_matrix(affinities: Tensor, offsets: Offsets, *, beta: float = 8.0, border: Border = "full") -> Tensor:
    r"""The probabilities to step from each position to each of its neighbours: the rows of :math:`T = D^{-1} W^\beta`.

    W is symmetric, with ones on its diagonal.

    Args:
        affinities: ``(N, P, h, w)`` floating point in [0, 1]; those with a neighbour outside of the map do not count.
        offsets: P pairs ``(dy, dx)``.
        beta: the power of each affinity, positive.
        border: as of :func:`random_walk`.

    Returns:
        ``(N, 2P + 1, h, w)``, with the dtype of the affinities, at least float32, summing to one over the second
        dimension: to the neighbours that come before the position (the offsets negated, the last one first), to itself,
        to those after it.

    Raises:
        ValueError: if shapes do not fit, or a setting is out of its range.
    """
    if affinities.ndim != 4 or affinities.shape[1] != len(offsets):
        raise ValueError(
            f"affinities must have shape (N, P, h, w), P = {len(offsets)}, the number of offsets; got "
            f"{tuple(affinities.shape)}."
        )
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be positive, got {beta}.")
    pairs = len(offsets)
    height, width = affinities.shape[2:]
    present = pair_mask(height, width, offsets, border, device=affinities.device)
    ahead = affinities.to(torch.promote_types(affinities.dtype, torch.float32)).pow(beta).masked_fill(~present, 0)
    behind = torch.zeros_like(ahead)
    for pair, offset in enumerate(offsets):
        (rows, columns), (rows_ahead, columns_ahead) = overlap(height, width, offset)
        behind[:, pairs - 1 - pair, rows_ahead, columns_ahead] = ahead[:, pair, rows, columns]
    weights = torch.cat([behind, ahead.new_ones(len(ahead), 1, height, width), ahead], dim=1)
    return weights / weights.sum(dim=1, keepdim=True)


def _compressed(matrix: Tensor, offsets: Offsets, smallest: float) -> Tensor:
    """Of ``(N, 2P + 1, h, w)``, what is above the smallest: ``(N h w, N h w)``, images as blocks on the diagonal."""
    count, entries, height, width = matrix.shape
    points = count * height * width
    steps = [dy * width + dx for dy, dx in offsets]
    shifts = torch.tensor([*(-step for step in reversed(steps)), 0, *steps], dtype=torch.int32, device=matrix.device)
    columns = torch.arange(points, dtype=torch.int32, device=matrix.device)[:, None] + shifts
    values = matrix.permute(0, 2, 3, 1).contiguous().view(points, entries)
    return compressed_rows(columns, values, values > smallest)


def _check(maps: Tensor, affinities: Tensor, steps: int) -> None:
    if maps.ndim != 4 or 0 in maps.shape:
        raise ValueError(f"maps must have shape (N, L, h, w), none of them 0; got {tuple(maps.shape)}.")
    if affinities.ndim != 4 or (affinities.shape[0], *affinities.shape[2:]) != (maps.shape[0], *maps.shape[2:]):
        raise ValueError(
            f"affinities must have shape (N, P, h, w) = ({maps.shape[0]}, P, {maps.shape[2]}, {maps.shape[3]}) to go "
            f"with maps of {tuple(maps.shape)}; got {tuple(affinities.shape)}."
        )
    for name, values in (("maps", maps), ("affinities", affinities)):
        if not values.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {values.dtype}.")
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}.")
    if not maps.isfinite().all():
        raise ValueError("maps must be finite, but hold NaN or infinities, which a walk would spread.")
    if affinities.numel():
        lowest, highest = torch.stack(affinities.aminmax()).tolist()
        if not (lowest >= 0 and highest <= 1):
            raise ValueError(
                f"affinities must lie in [0, 1]; got {lowest:.3g} to {highest:.3g} (NaN where a value is none)."
            )

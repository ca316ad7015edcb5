r"""The random walk of AffinityNet: class maps spread to positions that belong together.

Ahn and Kwak, CVPR 2018: :math:`T = D^{-1} W^{\circ\beta}`, :math:`D_{ii} = \sum_j W_{ij}^\beta`; a map becomes
:math:`T^t` times the map. Positions farther apart than the radius have no affinity, so that T is sparse: a row has 69
entries with a radius of 5.
"""

import torch
from torch import Tensor

from dcsm_attr.affinity.neighbours import Border, Offsets, overlap, pair_mask
from dcsm_attr.affinity.power import apply_power
from dcsm_attr.crf.row_sums import RowSums

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
        beta: the power of each affinity, positive; larger keeps maps from crossing weak affinities. The paper's.
        steps: t, not negative; more lets maps walk farther. The paper's.
        border: ``"released"`` leaves out the pairs that the released code misses, see
            :func:`dcsm_attr.affinity.neighbours.pair_mask`.

    Returns:
        ``(N, L, h, w)``, detached, with the dtype of the maps and within the range of each; computed at least in
        float32.

    Raises:
        TypeError: if maps or affinities are not floating point, or ``steps`` is not an integer.
        ValueError: if shapes do not fit, affinities are not in [0, 1], a map is not finite, or a setting is out of its
            range.
    """
    with torch.no_grad():
        dtype = torch.promote_types(torch.promote_types(maps.dtype, affinities.dtype), torch.float32)
        matrix = transition_matrix(affinities.to(dtype), offsets, beta=beta, border=border)
        lowest, highest = maps.to(dtype).aminmax()
        walked = torch.empty_like(maps)
        at_once = 1 if maps.device.type == "cpu" else len(maps)
        for start in range(0, len(maps), at_once):
            part = slice(start, start + at_once)
            values = maps[part].to(dtype).permute(0, 2, 3, 1)
            result = apply_power(_products(matrix[part], offsets), values.reshape(-1, maps.shape[1]), steps)
            walked[part] = result.view(values.shape).permute(0, 3, 1, 2)
        return walked.clamp_(lowest, highest)


def transition_matrix(affinities: Tensor, offsets: Offsets, *, beta: float = 8.0, border: Border = "full") -> Tensor:
    r"""The probabilities to step from each position to each of its neighbours: the rows of :math:`T = D^{-1} W^\beta`.

    W is symmetric, with ones on its diagonal.

    Args:
        affinities: ``(N, P, h, w)`` floating point in [0, 1].
        offsets: P pairs ``(dy, dx)``.
        beta: the power of each affinity.
        border: as of :func:`random_walk`.

    Returns:
        ``(N, 2P + 1, h, w)``, summing to one over the second dimension: to the neighbours that come before the
        position (the offsets negated, the last one first), to itself, to those after it.
    """
    pairs = len(offsets)
    height, width = affinities.shape[2:]
    present = pair_mask(height, width, offsets, border, device=affinities.device)
    ahead = affinities.pow(beta).masked_fill_(~present, 0)
    behind = torch.zeros_like(ahead)
    for pair, offset in enumerate(offsets):
        (rows, columns), (rows_ahead, columns_ahead) = overlap(height, width, offset)
        behind[:, pairs - 1 - pair, rows_ahead, columns_ahead] = ahead[:, pair, rows, columns]
    matrix = torch.cat([behind, torch.ones_like(affinities[:, :1]), ahead], dim=1)
    return matrix.div_(matrix.sum(dim=1, keepdim=True))


def _products(matrix: Tensor, offsets: Offsets) -> RowSums:
    count, entries, height, width = matrix.shape
    points = height * width
    steps = [dy * width + dx for dy, dx in offsets]
    shifts = torch.tensor([*(-step for step in reversed(steps)), 0, *steps], dtype=torch.int32, device=matrix.device)
    positions = torch.arange(points, dtype=torch.int32, device=matrix.device)
    # What lies outside of the map has no weight: any position of the same image will do.
    rows = (positions[:, None] + shifts).clamp_(0, points - 1)
    of_images = torch.arange(0, count * points, points, dtype=torch.int32, device=matrix.device)
    rows = (of_images[:, None, None] + rows).view(-1, entries)
    return RowSums(rows, matrix.permute(0, 2, 3, 1).reshape(-1, entries))

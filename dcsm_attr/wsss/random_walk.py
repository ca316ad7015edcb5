r"""The random walk of AffinityNet: class maps spread to positions that belong together.

Ahn and Kwak, CVPR 2018: :math:`T = D^{-1} W^{\circ\beta}`, :math:`D_{ii} = \sum_j W_{ij}^\beta`; a map becomes
:math:`T^t` times the map. Positions farther apart than the radius have no affinity, so that T is sparse: a row has 69
entries with a radius of 5.

T stays sparse whatever the size: few products make a power of it (``matrix_power.py``), where squaring fills it, and
costs the cube of the number of positions. Products are taken in float64: in float32 the rounding of 256 steps adds up
where features are smooth (``python -m benchmarks.speed walk`` tells to how much, and what all of it takes).

Sparse matrices of compressed rows (CSR), from tables of columns and values.

Powers of a matrix applied to vectors, in about the square root of as many products.

Sachdeva and Vishnoi, "Faster Algorithms via Approximation Theory", 2014, section 3: of the Chebyshev expansion

.. math:: x^t = 2^{1 - t} \sum_k \binom{t}{(t - k) / 2} T_k(x), \quad k = t, t - 2, \dots,

half of the term for k = 0, the first :math:`\sqrt{2 t \log(2 / \epsilon)}` polynomials hold all but :math:`\epsilon`
of the sum: 84 products do for 256, where rounding to float32 is tolerated, 128 where rounding to float64 is.

The random walk as a step of a segmentation: from class maps on an image to class maps along its objects.
"""

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dcsm_attr.attribution.model import prepared_model
from dcsm_attr.evaluation.result import parameters_digest
from dcsm_attr.models.affinity_net import (
    GRID_STRIDE,
    Border,
    Offsets,
    affinities,
    neighbor_offsets,
    overlap,
    pair_mask,
    together,
)
from dcsm_attr.models.checkpoint import TrainedAffinityNet

__all__ = [
    "SemanticWalk",
    "apply_power",
    "build_csr_matrix",
    "chebyshev_coefficients",
    "random_walk",
    "transition_matrix",
]


_lock = threading.Lock()
_warning_silenced = False


def build_csr_matrix(columns: Tensor, values: Tensor, present: Tensor) -> Tensor:
    """A square matrix from tables of its rows.

    Args:
        columns: ``(R, k)`` int32, of each entry.
        values: ``(R, k)`` floating point.
        present: ``(R, k)`` bool: the entries that there are.

    Returns:
        ``(R, R)``, sparse, of layout CSR.
    """
    _silence_beta_warning()
    ends = torch.zeros(len(columns) + 1, dtype=torch.int32, device=columns.device)
    torch.cumsum(present.sum(dim=1), dim=0, out=ends[1:])
    # Looked for once, where indexing with the mask would look for them in each table.
    entries = present.flatten().nonzero().flatten()
    columns, values = (table.flatten().index_select(0, entries) for table in (columns, values))
    return torch.sparse_csr_tensor(ends, columns, values, (len(present), len(present)), check_invariants=False)


def _silence_beta_warning() -> None:
    """PyTorch says once in a process that this layout is in beta: not to our callers, who can do nothing about it."""
    global _warning_silenced
    with _lock:
        if not _warning_silenced:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                none = torch.zeros(0, dtype=torch.int32)
                torch.sparse_csr_tensor(none.new_zeros(1), none, torch.zeros(0), (0, 0), check_invariants=False)
            _warning_silenced = True


def apply_power(product: Callable[[Tensor], Tensor], values: Tensor, exponent: int, tolerance: float) -> Tensor:
    """Apply a matrix ``exponent`` times, up to rounding and a tolerance.

    Args:
        product: what the matrix makes of a tensor like ``values``, in fresh memory. Its eigenvalues are real and in
            [-1, 1].
        values: floating point; left as it is.
        exponent: not negative.
        tolerance: as of :func:`chebyshev_coefficients`; relative to the largest value.

    Returns:
        Like ``values``.
    """
    first, coefficients = exponent % 2, chebyshev_coefficients(exponent, tolerance)
    previous, current = values, values
    total = torch.zeros_like(values)
    for degree in range(first + 2 * len(coefficients) - 1):
        if degree == 1:
            current = product(values)
        elif degree:
            previous, current = current, product(current).mul_(2).sub_(previous)
        if degree % 2 == first:
            total.add_(current, alpha=coefficients[degree // 2])
    return total


def chebyshev_coefficients(exponent: int, tolerance: float) -> list[float]:
    """The coefficients of :math:`x^t` in Chebyshev polynomials, without a tail that is smaller than the tolerance.

    Args:
        exponent: t, not negative.
        tolerance: what the left out coefficients may sum to, which is the largest error in [-1, 1].

    Returns:
        Those of :math:`T_k` for k = t mod 2 and every second after it; positive, summing to one.
    """
    first = exponent % 2
    # Neighboring binomial coefficients have simple ratios; the first is taken for one, and the sum normalizes.
    coefficient, degree, terms = 1.0, first, []
    while True:
        terms.append(coefficient if degree else coefficient / 2)
        ratio = ((exponent - degree) // 2) / ((exponent + degree) // 2 + 1)
        coefficient, degree = coefficient * ratio, degree + 2
        # The ratios shrink: a geometric series is above what is left.
        if coefficient <= tolerance * (1 - ratio) * sum(terms):
            break
    return [term / sum(terms) for term in terms]


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
        affinities: ``(N, P, h, w)`` floating point in [0, 1], see :func:`dcsm_attr.models.affinity_net.affinities`.
        offsets: P pairs ``(dy, dx)``, those of the affinities.
        beta: the power of each affinity, positive; a larger one keeps maps from crossing weak affinities. The paper's.
        steps: t, not negative; with more of them maps walk farther. The paper's.
        border: ``"released"`` leaves out the pairs that the released code misses, see
            :func:`dcsm_attr.models.affinity_net.pair_mask`.

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
    r"""The probabilities to step from each position to each of its neighbors: the rows of :math:`T = D^{-1} W^\beta`.

    W is symmetric, with ones on its diagonal.

    Args:
        affinities: ``(N, P, h, w)`` floating point in [0, 1]; those with a neighbor outside of the map do not count.
        offsets: P pairs ``(dy, dx)``.
        beta: the power of each affinity, positive.
        border: as of :func:`random_walk`.

    Returns:
        ``(N, 2P + 1, h, w)``, with the dtype of the affinities, at least float32, summing to one over the second
        dimension: to the neighbors that come before the position (the offsets negated, the last one first), to itself,
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
        (rows, columns), (target_rows, target_columns) = overlap(height, width, offset)
        behind[:, pairs - 1 - pair, target_rows, target_columns] = ahead[:, pair, rows, columns]
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
    return build_csr_matrix(columns, values, values > smallest)


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


@dataclass(frozen=True)
class SemanticWalk:
    r"""Let scores walk along the affinities that AffinityNet sees in the image.

    They are multiplied by :math:`T^t` with :math:`T = D^{-1} W^{\circ\beta}` (Ahn and Kwak, Eq. 9 and 10). Give it to
    :class:`dcsm_attr.Segmenter` as ``walk``.

    Attributes:
        net: a trained AffinityNet; its network is left as it is found, on the device where it is.
        radius: of the neighborhood, in positions of 8 pixels.
        beta: power of each affinity; larger makes unlikely steps unlikelier. 8 as published.
        steps: t, of the walk. 256 as published, which with networks that see borders less surely than VGG-16 trained on
            10,582 photographs carries everything everywhere; beta and t were chosen on 96 photographs of VOC's training
            set.
        border: ``"released"``: the release's, in which scores never leave the corners; see
            :func:`dcsm_attr.models.affinity_net.pair_mask`.

    Raises:
        ValueError: if radius, beta or steps are out of their range.
    """

    net: TrainedAffinityNet
    radius: int = 5
    beta: float = 16.0
    steps: int = 32
    border: Border = "full"

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.radius < 2:
            raise ValueError(f"radius must be at least 2, the smallest with neighbors, got {self.radius}.")
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"beta must be positive, got {self.beta}.")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the walk depends on beside the image, JSON-serializable."""
        return {
            "parameters": self._digest,
            "norm": self.net.norm,
            "radius": self.radius,
            "beta": self.beta,
            "steps": self.steps,
            "border": self.border,
        }

    @cached_property
    def _digest(self) -> str:
        # Once: a segmenter tells its settings with every batch, and this reads all parameters.
        return parameters_digest(self.net.network)

    def affinities(self, image: Tensor) -> Tensor:
        """The affinities that the network sees.

        Args:
            image: ``(3, H, W)``, normalized as the network was trained.

        Returns:
            ``(1, P, ceil(H / 8), ceil(W / 8))`` in [0, 1], see :func:`dcsm_attr.models.affinity_net.affinities`.
        """
        network = self.net.network
        parameter = next(network.parameters())
        height, width = image.shape[1:]
        # The release's padding to whole positions, so that they lie where those of the maps do.
        padded = F.pad(image[None], (0, -width % GRID_STRIDE, 0, -height % GRID_STRIDE))
        with prepared_model(network, parameter.device):
            features = network(padded.to(parameter.device, parameter.dtype))
            return affinities(features, neighbor_offsets(self.radius), self.net.norm)

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """Let the scores of one image walk.

        Args:
            scores: ``(L, H, W)``, of the background and of classes, in [0, 1].
            image: ``(3, H, W)``, as in :meth:`affinities`.

        Returns:
            ``(L, H, W)`` in [0, 1], on the device of the scores.
        """
        return self.walked(scores[None], self.affinities(image))[0]

    def walked(self, scores: Tensor, seen: Tensor) -> Tensor:
        """The same for several scores of one image, with affinities that were asked for already.

        Args:
            scores: ``(S, L, H, W)`` in [0, 1].
            seen: ``(1, P, h, w)`` of :meth:`affinities`.

        Returns:
            ``(S, L, H, W)`` in [0, 1]: averaged over positions of 8 x 8 pixels, walked, and enlarged bilinearly.
        """
        count, labels, height, width = scores.shape
        # Windows that reach over the edge are averaged over what is inside.
        grid = F.avg_pool2d(scores, GRID_STRIDE, ceil_mode=True, count_include_pad=False)
        walked = random_walk(
            grid.view(1, count * labels, *grid.shape[2:]),
            seen.to(scores.device),
            neighbor_offsets(self.radius),
            beta=self.beta,
            steps=self.steps,
            border=self.border,
        )
        enlarged = F.interpolate(walked, scale_factor=float(GRID_STRIDE), mode="bilinear")
        return enlarged[..., :height, :width].reshape(scores.shape)

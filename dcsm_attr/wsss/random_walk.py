r"""AffinityNet's random walk: class maps spread to positions with the same semantics.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018, Eq. 9 and 10. With the affinities W of neighboring positions, the transition matrix is

.. math:: T = D^{-1} W^{\circ\beta}, \quad D_{ii} = \sum_j W_{ij}^\beta ,

and the vector of a map becomes :math:`T^t` times itself. Positions farther apart than the radius have no affinity, so
that T is sparse: 69 entries per row with a radius of 5.

Squaring T would fill it, at the cube of the number of positions. Instead :math:`T^t` is applied by the Chebyshev
expansion of Sachdeva and Vishnoi, "Faster Algorithms via Approximation Theory", 2014, section 3:

.. math:: x^t = 2^{1 - t} \sum_k \binom{t}{(t - k) / 2} T_k(x), \quad k = t, t - 2, \dots,

with half of the term for k = 0. The first :math:`\sqrt{2 t \log(2 / \epsilon)}` polynomials hold all but
:math:`\epsilon` of the sum: for t = 256, 84 products give the result up to the rounding of float32, 128 up to that of
float64. Products are computed in float64: in float32, rounding adds up over 256 steps where features are smooth
(``python -m benchmarks.speed walk`` measures how much).
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
    device_chunks,
    neighbor_offsets,
    overlap_slices,
    pair_mask,
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


@dataclass(frozen=True)
class SemanticWalk:
    r"""Refines scores by a random walk along the affinities that AffinityNet predicts for the image.

    Pass it to :class:`dcsm_attr.Segmenter` as ``walk``.

    Attributes:
        net: a trained AffinityNet, used on the device where it is; its network is left unchanged.
        radius: of the neighborhood, in positions of 8 pixels.
        beta: exponent of the affinities; a larger one keeps scores from crossing weak affinities. 8 in the paper.
        steps: t, number of steps. 256 in the paper, which spreads scores over the whole image if borders are
            predicted less reliably than by VGG-16 trained on 10,582 images; the defaults of beta and t were chosen on
            96 images of VOC's training set.
        border: ``"released"``: as in the released code, in which scores never leave the corners; see
            :func:`~dcsm_attr.models.affinity_net.pair_mask`.

    Raises:
        ValueError: if radius, beta or steps are out of range.
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
        """What the result depends on besides the image, JSON-serializable."""
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
        # Cached: a segmenter reads the settings for every batch, and the digest reads all parameters.
        return parameters_digest(self.net.network)

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """Refine the scores of one image.

        Args:
            scores: ``(L, H, W)`` in [0, 1], of the background and of classes.
            image: ``(3, H, W)``, normalized for the network.

        Returns:
            ``(L, H, W)`` in [0, 1], on the device of the scores.
        """
        return self.refine_all(scores[None], self.affinities(image))[0]

    def affinities(self, image: Tensor) -> Tensor:
        """Predict the affinities of one image.

        Args:
            image: ``(3, H, W)``, normalized for the network.

        Returns:
            ``(1, P, ceil(H / 8), ceil(W / 8))`` in [0, 1], see :func:`dcsm_attr.models.affinity_net.affinities`.
        """
        network = self.net.network
        parameter = next(network.parameters())
        height, width = image.shape[1:]
        # Padded to whole positions as in the release, so that they are aligned with those of the maps.
        padded = F.pad(image[None], (0, -width % GRID_STRIDE, 0, -height % GRID_STRIDE))
        with prepared_model(network, parameter.device):
            features = network(padded.to(parameter.device, parameter.dtype))
            return affinities(features, neighbor_offsets(self.radius), self.net.norm)

    def refine_all(self, scores: Tensor, image_affinities: Tensor) -> Tensor:
        """Refine several sets of scores of one image.

        Args:
            scores: ``(S, L, H, W)`` in [0, 1].
            image_affinities: ``(1, P, h, w)`` of :meth:`affinities`.

        Returns:
            ``(S, L, H, W)`` in [0, 1]: averaged over positions of 8 x 8 pixels, refined, and resized bilinearly.
        """
        count, labels, height, width = scores.shape
        # Windows across the edge are averaged over their pixels inside the image.
        grid = F.avg_pool2d(scores, GRID_STRIDE, ceil_mode=True, count_include_pad=False)
        walked = random_walk(
            grid.view(1, count * labels, *grid.shape[2:]),
            image_affinities.to(scores.device),
            neighbor_offsets(self.radius),
            beta=self.beta,
            steps=self.steps,
            border=self.border,
        )
        enlarged = F.interpolate(walked, scale_factor=float(GRID_STRIDE), mode="bilinear")
        return enlarged[..., :height, :width].reshape(scores.shape)


def random_walk(
    maps: Tensor,
    affinities: Tensor,
    offsets: Offsets,
    *,
    beta: float = 8.0,
    steps: int = 256,
    border: Border = "full",
) -> Tensor:
    r"""Multiply every map by :math:`T^t`; images are independent.

    Args:
        maps: ``(N, L, h, w)`` floating point, for example of the background and of classes.
        affinities: ``(N, P, h, w)`` floating point in [0, 1], see :func:`dcsm_attr.models.affinity_net.affinities`.
        offsets: P pairs ``(dy, dx)``, those of the affinities.
        beta: exponent of the affinities, positive; the paper's.
        steps: t, not negative; the paper's.
        border: see :func:`~dcsm_attr.models.affinity_net.pair_mask`.

    Returns:
        ``(N, L, h, w)``, detached, of the dtype of the maps; each map stays within its range.

    Raises:
        TypeError: if maps or affinities are not floating point.
        ValueError: if shapes do not fit, affinities are not in [0, 1], a map is not finite, or a setting is out of
            range.
    """
    _check_inputs(maps, affinities, steps)
    tolerance = torch.finfo(torch.promote_types(maps.dtype, torch.float32)).eps
    walked = torch.empty_like(maps)
    with torch.no_grad():
        for images in device_chunks(maps):
            matrix = transition_matrix(affinities[images].double(), offsets, beta=beta, border=border)
            # All omitted entries change the result by less than the tolerance, over all steps.
            smallest = tolerance / (matrix.shape[1] * max(1, steps))
            # The values of one position are adjacent in memory, because they are read together.
            values = maps[images].double().permute(0, 2, 3, 1).contiguous()
            rows = _to_csr(matrix, offsets, smallest)
            result = apply_power(rows.matmul, values.flatten(0, 2), steps, tolerance)
            walked[images] = result.view(values.shape).permute(0, 3, 1, 2)
        return walked.clamp_(maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True))


def transition_matrix(affinities: Tensor, offsets: Offsets, *, beta: float = 8.0, border: Border = "full") -> Tensor:
    r"""Compute the rows of :math:`T = D^{-1} W^{\circ\beta}`: the probability of each step from each position.

    W is symmetric, with ones on its diagonal.

    Args:
        affinities: ``(N, P, h, w)`` floating point in [0, 1]; values of pairs that leave the map are ignored.
        offsets: P pairs ``(dy, dx)``.
        beta: exponent of the affinities, positive.
        border: see :func:`~dcsm_attr.models.affinity_net.pair_mask`.

    Returns:
        ``(N, 2P + 1, h, w)``, of the dtype of the affinities, at least float32, summing to one over the second
        dimension: to the neighbors before the position (negated offsets, the last one first), to itself, to those
        after it.

    Raises:
        ValueError: if shapes do not fit, or a setting is out of range.
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
        (rows, columns), (target_rows, target_columns) = overlap_slices(height, width, offset)
        behind[:, pairs - 1 - pair, target_rows, target_columns] = ahead[:, pair, rows, columns]
    weights = torch.cat([behind, ahead.new_ones(len(ahead), 1, height, width), ahead], dim=1)
    return weights / weights.sum(dim=1, keepdim=True)


def _check_inputs(maps: Tensor, affinities: Tensor, steps: int) -> None:
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


def _to_csr(matrix: Tensor, offsets: Offsets, smallest: float) -> Tensor:
    """Convert ``(N, 2P + 1, h, w)`` to ``(N h w, N h w)`` with images as blocks, without entries below the smallest."""
    count, entries, height, width = matrix.shape
    points = count * height * width
    steps = [dy * width + dx for dy, dx in offsets]
    shifts = torch.tensor([*(-step for step in reversed(steps)), 0, *steps], dtype=torch.int32, device=matrix.device)
    columns = torch.arange(points, dtype=torch.int32, device=matrix.device)[:, None] + shifts
    values = matrix.permute(0, 2, 3, 1).contiguous().view(points, entries)
    return build_csr_matrix(columns, values, values > smallest)


def apply_power(product: Callable[[Tensor], Tensor], values: Tensor, exponent: int, tolerance: float) -> Tensor:
    """Apply a power of a matrix, up to rounding and a tolerance, by its Chebyshev expansion.

    Args:
        product: multiplies the matrix, whose eigenvalues are real and in [-1, 1], with a tensor like ``values``; the
            result is new memory.
        values: floating point; left unchanged.
        exponent: t, not negative.
        tolerance: see :func:`chebyshev_coefficients`; relative to the largest value.

    Returns:
        A tensor like ``values``.
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
    """Return the coefficients of :math:`x^t` in Chebyshev polynomials, without a tail below the tolerance.

    Args:
        exponent: t, not negative.
        tolerance: largest sum of the omitted coefficients, which bounds the error for x in [-1, 1].

    Returns:
        The coefficients of :math:`T_k` for k = t mod 2, t mod 2 + 2, ...; positive, summing to one.
    """
    first = exponent % 2
    # Consecutive binomial coefficients have simple ratios; the first is set to one, and the sum normalizes.
    coefficient, degree, terms = 1.0, first, []
    while True:
        terms.append(coefficient if degree else coefficient / 2)
        ratio = ((exponent - degree) // 2) / ((exponent + degree) // 2 + 1)
        coefficient, degree = coefficient * ratio, degree + 2
        # The ratios decrease, so that a geometric series bounds the rest.
        if coefficient <= tolerance * (1 - ratio) * sum(terms):
            break
    return [term / sum(terms) for term in terms]


_lock = threading.Lock()
_warning_silenced = False


def build_csr_matrix(columns: Tensor, values: Tensor, present: Tensor) -> Tensor:
    """Build a square sparse matrix from tables of its rows.

    Args:
        columns: ``(R, k)`` int32, the column of each entry.
        values: ``(R, k)`` floating point.
        present: ``(R, k)`` bool, which entries exist.

    Returns:
        ``(R, R)``, in CSR layout.
    """
    _silence_beta_warning()
    ends = torch.zeros(len(columns) + 1, dtype=torch.int32, device=columns.device)
    torch.cumsum(present.sum(dim=1), dim=0, out=ends[1:])
    # Indexing each table with the mask would search for the entries again.
    entries = present.flatten().nonzero().flatten()
    columns, values = (table.flatten().index_select(0, entries) for table in (columns, values))
    return torch.sparse_csr_tensor(ends, columns, values, (len(present), len(present)), check_invariants=False)


def _silence_beta_warning() -> None:
    """Trigger PyTorch's warning that CSR is in beta, once per process, where the caller does not see it."""
    global _warning_silenced
    with _lock:
        if not _warning_silenced:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                none = torch.zeros(0, dtype=torch.int32)
                torch.sparse_csr_tensor(none.new_zeros(1), none, torch.zeros(0), (0, 0), check_invariants=False)
            _warning_silenced = True

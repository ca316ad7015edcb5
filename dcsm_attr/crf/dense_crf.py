r"""The fully connected CRF as one class over three backends with one result.

Mean field inference for a fully connected CRF with Potts compatibility.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm
1), for the energy of Eq. 6 and 8 of DCSM.

The reference implementation of the dense CRF: pydensecrf, one image at a time, on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from dcsm_attr.crf.permutohedral import GaussianKernels, PermutohedralLattice

__all__ = ["MIN_PROBABILITY", "Backend", "DenseCRF", "Pairwise", "infer_with_pydensecrf", "mean_field"]


# Far enough from where exponentials of four-byte numbers overflow or lose digits.
_MAX_LOGIT = 80.0
# Values that fit into the cache of one core: messages are read and turned into probabilities before they leave it.
_BLOCK = 2**18


class Pairwise(Protocol):
    r"""The pairwise terms: :math:`\sum_m w_m \tilde K_m`, in two steps."""

    def vertex_values(self, q: Tensor) -> Tensor:
        """What all points ``(P, V)`` say, gathered, in memory of its own."""
        ...

    def messages(self, vertex_values: Tensor, points: slice) -> Tensor:
        """What some of the points hear of it, ``(p, V)``, in fresh memory."""
        ...


def mean_field(unary: Tensor, pairwise: Pairwise | None, iterations: int) -> Tensor:
    r"""Approximate the marginals :math:`Q` of the CRF.

    Starts at :math:`Q = softmax(-U)`; each iteration sets :math:`Q \propto \exp(-U + \sum_m w_m \tilde K_m Q)`, which
    is the Potts model up to a term equal for all labels of a point.

    Args:
        unary: ``(P, ..., L)`` energies :math:`U`, for example negative log probabilities; dimensions in the middle
            count labelings of the same points, which do not see each other.
        pairwise: the pairwise terms, applied to the columns of ``(P, V)``. None: there are none.
        iterations: 0 returns the start.

    Returns:
        ``(P, ..., L)``, summing to one over the labels.
    """
    # The labels of a point side by side in memory: all of them are read together.
    unary = unary.contiguous()
    q = torch.empty_like(unary)
    step = len(q) if q.device.type != "cpu" else max(1, _BLOCK // q[0].numel())
    blocks = [slice(start, start + step) for start in range(0, len(q), step)]
    for points in blocks:
        q[points] = _softmax_over_labels(-unary[points])
    if pairwise is None:
        return q
    for _ in range(iterations):
        vertex_values = pairwise.vertex_values(q.flatten(1))
        for points in blocks:
            heard = pairwise.messages(vertex_values, points).view_as(unary[points])
            q[points] = _softmax_over_labels(heard.sub_(unary[points]))
    return q


def _softmax_over_labels(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; may overwrite its argument.

    On the CPU, :func:`torch.softmax` is slow along so short a dimension (65,536 points of 4 labels: 2.4 ms, these three
    steps 0.3 ms). Without its subtraction of the maximum they are as exact wherever no exponential overflows.
    """
    if logits.device.type != "cpu":
        return torch.softmax(logits, dim=-1)
    lowest, highest = logits.aminmax()
    if not (lowest > -_MAX_LOGIT and highest < _MAX_LOGIT):  # Neither if one is not a number.
        return torch.softmax(logits, dim=-1)
    return logits.exp_().div_(logits.sum(dim=-1, keepdim=True))


def infer_with_pydensecrf(
    unary: Tensor,
    image: Tensor,
    *,
    bilateral: tuple[float, float, float],
    gaussian: tuple[float, float],
    iterations: int,
) -> Tensor:
    """Run pydensecrf on one image.

    Args:
        unary: ``(L, H, W)`` energies.
        image: ``(3, H, W)`` uint8.
        bilateral: weight, standard deviation in pixels, and in color levels (0 to 255).
        gaussian: weight, and standard deviation in pixels.
        iterations: of mean field.

    Returns:
        ``(L, H, W)`` float32 on the CPU, summing to one over the labels.

    Raises:
        ImportError: if pydensecrf is not installed.
    """
    densecrf = _import_pydensecrf()
    labels, height, width = unary.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1).cpu().float().numpy()))
    weight, deviation = gaussian
    if weight:
        crf.addPairwiseGaussian(sxy=deviation, compat=weight)
    weight, deviation, color_deviation = bilateral
    if weight:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
        crf.addPairwiseBilateral(sxy=deviation, srgb=color_deviation, rgbim=pixels, compat=weight)
    marginals = np.array(crf.inference(iterations), dtype=np.float32)
    return torch.from_numpy(marginals).view(labels, height, width)


def _import_pydensecrf() -> Any:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError(
            "backend='pydensecrf' needs the reference library, which needs a C++ compiler to install: pip install "
            "'dcsm_attr[pydensecrf]'. backend='torch' gives the same result without it."
        ) from error
    return pydensecrf.densecrf


Backend = Literal["auto", "torch", "triton", "pydensecrf"]

#: Smallest probability whose negative logarithm is taken; the unary of a label then is at most 11.5.
MIN_PROBABILITY = 1e-5


@dataclass(frozen=True)
class DenseCRF:
    r"""Refine label probabilities by a fully connected CRF (Krähenbühl and Koltun, NIPS 2011; Eq. 6 and 8 of DCSM).

    .. math::
        k(f_i, f_j) = w_1 \exp\left(-\frac{|p_i - p_j|^2}{2 \gamma_\alpha^2} - \frac{|I_i - I_j|^2}{2
        \gamma_\beta^2}\right) + w_2 \exp\left(-\frac{|p_i - p_j|^2}{2 \gamma_\gamma^2}\right)

    Unaries are negative log probabilities, clamped at 1e-5; labels are compared by a Potts model; each kernel is
    normalized symmetrically, which Eq. 8 does not print and the reference library does by default. The paper does not
    state the number of iterations.

    Attributes:
        bilateral_weight: :math:`w_1`; 0 leaves the kernel out.
        bilateral_xy: :math:`\gamma_\alpha`, in pixels.
        bilateral_rgb: :math:`\gamma_\beta`, in color levels (0 to 255).
        gaussian_weight: :math:`w_2`; 0 leaves the kernel out.
        gaussian_xy: :math:`\gamma_\gamma`, in pixels.
        iterations: of mean field.
        backend: ``"torch"``: CPU and accelerators, the whole batch at once, no compiler needed. ``"triton"``:
            the same on a GPU with fused kernels, tested in Triton's interpreter alone so far. ``"pydensecrf"``: the
            reference library, on the CPU, image by image. ``"auto"``: the fastest that needs no further package, which
            is ``"torch"``.

    Examples::

        >>> crf = DenseCRF()
        >>> refined = crf(probabilities, images)  # (N, L, H, W) and uint8 (N, 3, H, W) -> (N, L, H, W)
        >>> labels = refined.argmax(dim=1)
    """

    bilateral_weight: float = 1.0
    bilateral_xy: float = 30.0
    bilateral_rgb: float = 10.0
    gaussian_weight: float = 1.0
    gaussian_xy: float = 3.0
    iterations: int = 10
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        """Check the settings."""
        for name in ("bilateral_xy", "bilateral_rgb", "gaussian_xy"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is a standard deviation and must be positive, got {getattr(self, name)}.")
        for name in ("bilateral_weight", "gaussian_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative, got {self.iterations}.")
        if self.backend not in get_args(Backend):
            raise ValueError(f"backend must be one of {', '.join(map(repr, get_args(Backend)))}; got {self.backend!r}.")

    def __call__(self, probabilities: Tensor, images: Tensor) -> Tensor:
        """Refine the probabilities of a batch; what an image gets does not depend on the others.

        Args:
            probabilities: ``(N, L, H, W)`` floating point in [0, 1].
            images: ``(N, 3, H, W)`` uint8, the images at the same size, not normalized.

        Returns:
            ``(N, L, H, W)``, summing to one over the labels, detached, with dtype and device of ``probabilities``.

        Raises:
            TypeError: if the probabilities are not floating point, or the images are not uint8.
            ValueError: if shapes do not fit, a probability is outside [0, 1] or NaN, or Triton is asked for on the CPU.
            ImportError: if pydensecrf or Triton is asked for and not installed.
        """
        _check(probabilities, images)
        with torch.no_grad():
            unary = probabilities.float().clamp(min=MIN_PROBABILITY).log_().neg_()
            refined = (
                self._with_pydensecrf(unary, images)
                if self.backend == "pydensecrf"
                else self._with_torch(unary, images)
            )
            return refined.to(probabilities.device, probabilities.dtype)

    def refine_alternatives(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Refine several labelings of one image; the lattices are built once for all of them.

        The backend ``"triton"``, whose kernels take one labeling, works as ``"torch"`` here.

        Args:
            probabilities: ``(S, L, H, W)`` floating point in [0, 1], S labelings.
            image: ``(3, H, W)`` uint8, as in a call.

        Returns:
            ``(S, L, H, W)``: each as a call with it alone would give it, up to rounding.

        Raises:
            TypeError, ValueError, ImportError: as a call.
        """
        images = image.expand(len(probabilities), *image.shape)
        if self.backend == "pydensecrf":
            return self(probabilities, images)
        _check(probabilities, images)
        count, labels, height, width = probabilities.shape
        with torch.no_grad():
            unary = probabilities.float().clamp(min=MIN_PROBABILITY).log_().neg_()
            pairwise = self.pairwise(image[None].to(unary.device), self.gaussian(1, height, width, unary.device))
            q = mean_field(unary.permute(2, 3, 0, 1).reshape(-1, count, labels), pairwise, self.iterations)
            refined = q.view(height, width, count, labels).permute(2, 3, 0, 1).contiguous()
            return refined.to(probabilities.device, probabilities.dtype)

    def _with_torch(self, unary: Tensor, images: Tensor) -> Tensor:
        """All images in one lattice on an accelerator; one after the other on the CPU, as its caches like it better."""
        count, labels, height, width = unary.shape
        images = images.to(unary.device)
        chunk_size = 1 if unary.device.type == "cpu" else count
        gaussian = self.gaussian(chunk_size, height, width, unary.device)
        refined = torch.empty_like(unary)
        for start in range(0, count, chunk_size):
            part = slice(start, start + chunk_size)
            pairwise = self.pairwise(images[part], gaussian)
            energies = unary[part].permute(0, 2, 3, 1).reshape(-1, labels)
            if self.backend == "triton" and pairwise is not None:
                q = _mean_field_with_triton()(energies, pairwise, self.iterations)
            else:
                q = mean_field(energies, pairwise, self.iterations)
            refined[part] = q.view(-1, height, width, labels).permute(0, 3, 1, 2)
        return refined

    def gaussian(self, count: int, height: int, width: int, device: torch.device) -> PermutohedralLattice | None:
        """The lattice of positions alone, which all images of a size share.

        Args:
            count: of images in one lattice, N.
            height: of each, H.
            width: of each, W.
            device: where the lattice is built.

        Returns:
            The lattice of N H W points, image by image, row by row; None where the kernel has no weight.
        """
        if not self.gaussian_weight:
            return None
        positions, groups = _pixels(count, height, width, device)
        return PermutohedralLattice(_scale_coordinates(positions, [self.gaussian_xy] * 2), groups)

    def pairwise(self, images: Tensor, gaussian: PermutohedralLattice | None) -> GaussianKernels | None:
        """The terms of Eq. 8 for photographs of which none sees another.

        Args:
            images: ``(N, 3, H, W)`` uint8.
            gaussian: of :meth:`gaussian` with the same N, H and W.

        Returns:
            The weighted kernels over the same points; None where neither has a weight.
        """
        weighted = [] if gaussian is None else [(gaussian, self.gaussian_weight)]
        if self.bilateral_weight:
            count, _, height, width = images.shape
            positions, groups = _pixels(count, height, width, images.device)
            colors = images.permute(0, 2, 3, 1).reshape(-1, 3).float()
            deviations = [self.bilateral_xy] * 2 + [self.bilateral_rgb] * 3
            features = _scale_coordinates(torch.cat([positions, colors], dim=1), deviations)
            weighted.append((PermutohedralLattice(features, groups), self.bilateral_weight))
        return GaussianKernels.build(weighted) if weighted else None

    def _with_pydensecrf(self, unary: Tensor, images: Tensor) -> Tensor:
        refined = [
            infer_with_pydensecrf(
                energies,
                image,
                bilateral=(self.bilateral_weight, self.bilateral_xy, self.bilateral_rgb),
                gaussian=(self.gaussian_weight, self.gaussian_xy),
                iterations=self.iterations,
            )
            for energies, image in zip(unary, images, strict=True)
        ]
        return torch.stack(refined)


def _pixels(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Column and row of each pixel of each image, ``(N * H * W, 2)``, and its image, ``(N * H * W,)``."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    positions = torch.stack([columns, rows], dim=-1).view(-1, 2).repeat(count, 1)
    return positions, torch.arange(count, device=device).repeat_interleave(height * width)


def _scale_coordinates(coordinates: Tensor, deviations: list[float]) -> Tensor:
    # By a tensor: by a number, accelerators multiply with the reciprocal, and pixels on the faces of simplices change
    # sides.
    return coordinates / coordinates.new_tensor(deviations)


def _check(probabilities: Tensor, images: Tensor) -> None:
    if probabilities.ndim != 4 or 0 in probabilities.shape:
        raise ValueError(
            f"probabilities must have shape (N, L, H, W), none of them 0; got {tuple(probabilities.shape)}."
        )
    expected = (probabilities.shape[0], 3, *probabilities.shape[2:])
    if tuple(images.shape) != expected:
        raise ValueError(
            f"images must have shape (N, 3, H, W) = {expected} to go with probabilities of "
            f"{tuple(probabilities.shape)}; got {tuple(images.shape)}."
        )
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities must be floating point, got {probabilities.dtype}.")
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 RGB in 0 to 255, not normalized, got {images.dtype}. Convert values in [0, 1] with "
            "(255 * images).round().to(torch.uint8)."
        )
    lowest, highest = torch.stack(probabilities.aminmax()).tolist()
    if not (lowest >= 0 and highest <= 1):
        raise ValueError(
            f"probabilities must lie in [0, 1]; got {lowest:.3g} to {highest:.3g} (NaN where a value is none)."
        )


def _mean_field_with_triton() -> Callable[[Tensor, GaussianKernels, int], Tensor]:
    try:
        from dcsm_attr.crf.triton import triton_mean_field
    except ImportError as error:
        raise ImportError(
            "the backend 'triton' needs the package triton, which comes with PyTorch for CUDA on Linux. Choose "
            "backend='torch' elsewhere."
        ) from error
    return triton_mean_field

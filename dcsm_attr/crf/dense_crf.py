r"""The fully connected CRF of Krähenbühl and Koltun: mean field with Potts compatibility and two Gaussian kernels.

"Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011 (Algorithm 1), for the energy of
Eq. 6 and 8 of DCSM. :class:`DenseCRF` is the public class; :func:`mean_field` is the algorithm, on kernels of
:mod:`dcsm_attr.crf.permutohedral`. Two other backends give the same result: fused GPU kernels
(:mod:`dcsm_attr.crf.triton`) and the reference library pydensecrf.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dcsm_attr.crf.permutohedral import GaussianKernels, PermutohedralLattice

__all__ = ["MIN_PROBABILITY", "Backend", "DenseCRF", "infer_with_pydensecrf", "mean_field"]

Backend = Literal["auto", "torch", "triton", "pydensecrf"]

#: Probabilities are clamped at this minimum, so that a unary is at most 11.5.
MIN_PROBABILITY = 1e-5


@dataclass(frozen=True)
class DenseCRF:
    r"""Refines label probabilities with a fully connected CRF (Krähenbühl and Koltun, NIPS 2011; Eq. 6 and 8 of DCSM).

    .. math::
        k(f_i, f_j) = w_1 \exp\left(-\frac{|p_i - p_j|^2}{2 \gamma_\alpha^2} - \frac{|I_i - I_j|^2}{2
        \gamma_\beta^2}\right) + w_2 \exp\left(-\frac{|p_i - p_j|^2}{2 \gamma_\gamma^2}\right)

    Unaries are negative log probabilities, clamped at 1e-5; the compatibility is the Potts model. Differs from Eq. 8 in
    that each kernel is normalized symmetrically, which is the default of the reference library. The paper does not
    state the number of iterations.

    Attributes:
        bilateral_weight: :math:`w_1`; 0 removes the kernel.
        bilateral_xy: :math:`\gamma_\alpha`, in pixels.
        bilateral_rgb: :math:`\gamma_\beta`, in color levels (0 to 255).
        gaussian_weight: :math:`w_2`; 0 removes the kernel.
        gaussian_xy: :math:`\gamma_\gamma`, in pixels.
        iterations: number of mean field iterations.
        backend: ``"torch"``: CPU and accelerators, the whole batch at once, no compiler needed. ``"triton"``: the same
            on a GPU with fused kernels; so far tested only in Triton's interpreter. ``"pydensecrf"``: the reference
            library, on the CPU, image by image. ``"auto"``: the fastest without further packages, which is ``"torch"``.

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
        """Checks the settings."""
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
        """Refines the probabilities of a batch. The result of an image does not depend on the others.

        Args:
            probabilities: ``(N, L, H, W)`` floating point in [0, 1].
            images: ``(N, 3, H, W)`` uint8, the images at the same size, not normalized.

        Returns:
            ``(N, L, H, W)``, summing to one over the labels, detached, with dtype and device of ``probabilities``.

        Raises:
            TypeError: if the probabilities are not floating point, or the images are not uint8.
            ValueError: if the shapes do not match, a probability is outside [0, 1] or NaN, or the backend is
                ``"triton"`` and the probabilities are on the CPU.
            ImportError: if the backend is pydensecrf or Triton and it is not installed.
        """
        _check_inputs(probabilities, images)
        with torch.no_grad():
            infer = self._infer_with_pydensecrf if self.backend == "pydensecrf" else self._infer_with_lattices
            return infer(_unary(probabilities), images).to(probabilities.device, probabilities.dtype)

    def refine_alternatives(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Refines several alternative labelings of one image, with lattices that are built only once.

        The backend ``"triton"``, whose kernels take a single labeling, is replaced by ``"torch"`` here.

        Args:
            probabilities: ``(S, L, H, W)`` floating point in [0, 1], S labelings.
            image: ``(3, H, W)`` uint8, as in :meth:`__call__`.

        Returns:
            ``(S, L, H, W)``; each labeling is refined as in a call of its own, up to rounding.

        Raises:
            TypeError, ValueError, ImportError: as in :meth:`__call__`.
        """
        images = image.expand(len(probabilities), *image.shape)
        if self.backend == "pydensecrf":
            return self(probabilities, images)
        _check_inputs(probabilities, images)
        count, labels, height, width = probabilities.shape
        with torch.no_grad():
            unary = _unary(probabilities)
            kernels = self.kernels(image[None].to(unary.device), self.position_lattice(1, height, width, unary.device))
            q = mean_field(unary.permute(2, 3, 0, 1).reshape(-1, count, labels), kernels, self.iterations)
            refined = q.view(height, width, count, labels).permute(2, 3, 0, 1).contiguous()
            return refined.to(probabilities.device, probabilities.dtype)

    def _infer_with_lattices(self, unary: Tensor, images: Tensor) -> Tensor:
        count, labels, height, width = unary.shape
        images = images.to(unary.device)
        # One lattice for the whole batch on accelerators; image by image on the CPU, which fits its caches better.
        chunk_size = 1 if unary.device.type == "cpu" else count
        positions = self.position_lattice(chunk_size, height, width, unary.device)
        refined = torch.empty_like(unary)
        for start in range(0, count, chunk_size):
            chunk = slice(start, start + chunk_size)
            kernels = self.kernels(images[chunk], positions)
            energies = unary[chunk].permute(0, 2, 3, 1).reshape(-1, labels)
            if self.backend == "triton" and kernels is not None:
                q = _mean_field_with_triton(energies, kernels, self.iterations)
            else:
                q = mean_field(energies, kernels, self.iterations)
            refined[chunk] = q.view(-1, height, width, labels).permute(0, 3, 1, 2)
        return refined

    def position_lattice(
        self, count: int, height: int, width: int, device: torch.device
    ) -> PermutohedralLattice | None:
        """Builds the lattice of the second kernel, which depends on positions only; images of one size share it.

        Args:
            count: number N of images in the lattice.
            height: H of each image.
            width: W of each image.
            device: device of the lattice.

        Returns:
            The lattice of N H W points, image by image, row by row; None if the kernel has no weight.
        """
        if not self.gaussian_weight:
            return None
        positions, groups = _pixel_positions(count, height, width, device)
        return PermutohedralLattice(_scale_coordinates(positions, [self.gaussian_xy] * 2), groups)

    def kernels(self, images: Tensor, positions: PermutohedralLattice | None) -> GaussianKernels | None:
        """Builds the kernels of Eq. 8 for a batch of images that are not connected with each other.

        Args:
            images: ``(N, 3, H, W)`` uint8.
            positions: from :meth:`position_lattice` with the same N, H and W.

        Returns:
            The weighted kernels over the same points; None if neither has a weight.
        """
        weighted = [] if positions is None else [(positions, self.gaussian_weight)]
        if self.bilateral_weight:
            count, _, height, width = images.shape
            coordinates, groups = _pixel_positions(count, height, width, images.device)
            colors = images.permute(0, 2, 3, 1).reshape(-1, 3).float()
            deviations = [self.bilateral_xy] * 2 + [self.bilateral_rgb] * 3
            features = _scale_coordinates(torch.cat([coordinates, colors], dim=1), deviations)
            weighted.append((PermutohedralLattice(features, groups), self.bilateral_weight))
        return GaussianKernels.build(weighted) if weighted else None

    def _infer_with_pydensecrf(self, unary: Tensor, images: Tensor) -> Tensor:
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


def _check_inputs(probabilities: Tensor, images: Tensor) -> None:
    if probabilities.ndim != 4 or 0 in probabilities.shape:
        raise ValueError(
            f"probabilities must have shape (N, L, H, W), none of them 0; got {tuple(probabilities.shape)}."
        )
    expected = (probabilities.shape[0], 3, *probabilities.shape[2:])
    if tuple(images.shape) != expected:
        raise ValueError(
            f"images must have shape (N, 3, H, W) = {expected} to match probabilities of shape "
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
            f"probabilities must lie in [0, 1]; got {lowest:.3g} to {highest:.3g} (NaN if a value is NaN)."
        )


def _unary(probabilities: Tensor) -> Tensor:
    return probabilities.float().clamp(min=MIN_PROBABILITY).log_().neg_()


def _pixel_positions(count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns column and row of each pixel of each image, ``(N * H * W, 2)``, and the image index, ``(N * H * W,)``."""
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    positions = torch.stack([columns, rows], dim=-1).view(-1, 2).repeat(count, 1)
    return positions, torch.arange(count, device=device).repeat_interleave(height * width)


def _scale_coordinates(coordinates: Tensor, deviations: list[float]) -> Tensor:
    # Divide by a tensor: divided by a number, accelerators multiply by the reciprocal, and points on a face of a
    # simplex may fall into another one.
    return coordinates / coordinates.new_tensor(deviations)


def mean_field(unary: Tensor, kernels: GaussianKernels | None, iterations: int) -> Tensor:
    r"""Approximates the marginals :math:`Q` of the CRF.

    Starts at :math:`Q = softmax(-U)`; each iteration sets :math:`Q \propto \exp(-U + \sum_m w_m \tilde K_m Q)`. This is
    the Potts model up to a term that is equal for all labels of a point.

    Args:
        unary: ``(P, ..., L)`` energies :math:`U`, for example negative log probabilities. Dimensions in the middle are
            independent labelings of the same points.
        kernels: the pairwise terms :math:`\sum_m w_m \tilde K_m`. None: there are none.
        iterations: number of iterations; 0 returns the start.

    Returns:
        ``(P, ..., L)``, summing to one over the labels.
    """
    # Contiguous, because all labels of a point are read together.
    unary = unary.contiguous()
    q = torch.empty_like(unary)
    blocks = _blocks_of_points(unary)
    for points in blocks:
        q[points] = _softmax_over_labels(-unary[points])
    if kernels is None:
        return q
    for _ in range(iterations):
        vertex_values = kernels.vertex_values(q.flatten(1))
        for points in blocks:
            messages = kernels.messages(vertex_values, points).view_as(unary[points])
            q[points] = _softmax_over_labels(messages.sub_(unary[points]))
    return q


# On the CPU, a block of points has at most this many values, which fit into the cache of one core.
_BLOCK = 2**18
# Largest magnitude at which float32 exponentials neither overflow nor lose digits.
_MAX_LOGIT = 80.0


def _blocks_of_points(unary: Tensor) -> list[slice]:
    step = len(unary) if unary.device.type != "cpu" else max(1, _BLOCK // unary[0].numel())
    return [slice(start, start + step) for start in range(0, len(unary), step)]


def _softmax_over_labels(logits: Tensor) -> Tensor:
    """Computes the softmax over the last dimension; may overwrite its argument.

    On the CPU, :func:`torch.softmax` is slow along a short dimension (65,536 points with 4 labels: 2.4 ms instead of
    0.3 ms). Without the subtraction of the maximum the result is equally exact if no exponential overflows.
    """
    if logits.device.type != "cpu":
        return torch.softmax(logits, dim=-1)
    lowest, highest = logits.aminmax()
    if not (lowest > -_MAX_LOGIT and highest < _MAX_LOGIT):  # Also if a value is NaN.
        return torch.softmax(logits, dim=-1)
    return logits.exp_().div_(logits.sum(dim=-1, keepdim=True))


def _mean_field_with_triton(unary: Tensor, kernels: GaussianKernels, iterations: int) -> Tensor:
    try:
        from dcsm_attr.crf.triton import triton_mean_field
    except ImportError as error:
        raise ImportError(
            "the backend 'triton' needs the package triton, which comes with PyTorch for CUDA on Linux. Choose "
            "backend='torch' elsewhere."
        ) from error
    return triton_mean_field(unary, kernels, iterations)


def infer_with_pydensecrf(
    unary: Tensor,
    image: Tensor,
    *,
    bilateral: tuple[float, float, float],
    gaussian: tuple[float, float],
    iterations: int,
) -> Tensor:
    """Runs pydensecrf on one image.

    Args:
        unary: ``(L, H, W)`` energies.
        image: ``(3, H, W)`` uint8.
        bilateral: weight, standard deviation in pixels, and standard deviation in color levels (0 to 255).
        gaussian: weight, and standard deviation in pixels.
        iterations: number of mean field iterations.

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

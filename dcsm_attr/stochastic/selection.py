"""Stochastic hidden unit selection as a layer: a convolution that reads other units of each window in every pass."""

import torch
from torch import Tensor, nn

from dcsm_attr.initialisation import begin_unsure
from dcsm_attr.stochastic.gathering import gathered_convolution
from dcsm_attr.stochastic.masks import check_rate, check_window, selection_masks
from dcsm_attr.stochastic.shifts import shifted_convolution

__all__ = ["StochasticSelection", "selected_convolution"]

# From which rate on gathering beats shifting on the CPU (benchmarks/stochastic_selection.py, two CPU cores).
_GATHER_FROM = 0.85


def selected_convolution(x: Tensor, weight: Tensor, masks: Tensor, rate: float) -> Tensor:
    """Convolve what each window keeps, in the form that is fastest for the device and the rate.

    Args:
        x: ``(N, D, h, w)`` features.
        weight: ``(C, D, s, s)``, s odd.
        masks: ``(N, s * s, h, w)`` bool, of :func:`~dcsm_attr.stochastic.masks.selection_masks`.
        rate: at which they were drawn.

    Returns:
        ``(N, C, h, w)``: at each position the sum over the kept cells of its window; the map is padded with zeros.
    """
    if x.device.type == "cpu" and rate >= _GATHER_FROM:
        return gathered_convolution(x, weight, masks)
    return shifted_convolution(x, weight, masks)


class StochasticSelection(nn.Conv2d):
    """A convolution that drops units of each window at random, in training and in evaluation mode alike.

    Lee et al., "FickleNet", CVPR 2019. The mask is the same for all channels and another for each window: two windows
    that share a pixel may disagree about it. Inference drops too, for that is what makes the maps of one picture
    differ. The random numbers are those of :func:`~dcsm_attr.stochastic.masks.drawing_from`, else PyTorch's global
    ones.

    The paper does not say whether what is kept is scaled up; here it is not, unless ``rescale`` is set.

    Attributes:
        rate: probability that a cell is dropped; 0: an ordinary convolution.
        centre_kept: whether the centre of a window is never dropped.
        rescale: whether the weights of cells that may be dropped are divided by ``1 - rate``, so that the mean over
            many passes is the ordinary convolution.

    Examples::

        >>> network = ScoreMapNetwork(trunk, nn.Sequential(StochasticSelection(512, 20)))
        >>> with drawing_from(torch.Generator().manual_seed(0)):
        ...     scores = network(images)
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        window: int = 9,
        rate: float = 0.9,
        *,
        centre_kept: bool = True,
        rescale: bool = False,
    ) -> None:
        """Draw the weights from PyTorch's global generator.

        Args:
            channels: D, of the features.
            num_classes: C.
            window: side s of a window, odd.
            rate: in [0, 1]; 0.9 is the paper's best.
            centre_kept: False is ordinary dropout, with which the paper compares.
            rescale: see the attribute.

        Raises:
            ValueError: if the window is even, the rate is no probability, or everything is dropped and to be rescaled.
        """
        check_window(window)
        check_rate(rate)
        if rescale and rate == 1:
            raise ValueError("rescale=True divides by 1 - rate: it needs a rate below 1, got 1.")
        super().__init__(channels, num_classes, window, padding=window // 2)
        begin_unsure(self)
        self.rate = rate
        self.centre_kept = centre_kept
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        """Score maps before sigmoid, of units that are drawn anew.

        Args:
            x: ``(N, D, h, w)``.

        Returns:
            ``(N, C, h, w)``.
        """
        if not self.rate:
            return super().forward(x)
        scores = selected_convolution(x, self.scaled_weight(), self.draw(len(x), x), self.rate)
        assert self.bias is not None
        return scores + self.bias[:, None, None]

    def draw(self, count: int, x: Tensor) -> Tensor:
        """Draw masks for windows of a map.

        Args:
            count: M, how many.
            x: ``(N, D, h, w)``.

        Returns:
            ``(M, s * s, h, w)`` bool, see :func:`~dcsm_attr.stochastic.masks.selection_masks`.
        """
        size = (x.shape[2], x.shape[3])
        return selection_masks(
            count, size, self.kernel_size[0], self.rate, centre_kept=self.centre_kept, device=x.device
        )

    def scaled_weight(self) -> Tensor:
        """The weights that a pass multiplies with, ``(C, D, s, s)``: the parameter, unless they are rescaled."""
        if not self.rescale:
            return self.weight
        scale = torch.full_like(self.weight[0, 0], 1 / (1 - self.rate))
        if self.centre_kept:
            scale.view(-1)[scale.numel() // 2] = 1.0
        return self.weight * scale

    def extra_repr(self) -> str:
        """The settings, for ``print``."""
        convolution: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{convolution}, rate={self.rate}, centre_kept={self.centre_kept}, rescale={self.rescale}"

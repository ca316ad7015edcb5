r"""FickleNet's localization: many stochastic maps of each class, and the seeds that they give together.

Lee et al., "FickleNet: Weakly and Semi-supervised Semantic Image Segmentation using Stochastic Inference", CVPR 2019
(the *paper*). The classifier's head drops random units (:mod:`dcsm_attr.models.stochastic`). The backbone runs once per
image; the head N times, each time with newly drawn masks. Each time, Grad-CAM on the features x maps class c,

.. math:: M^c(u) = ReLU\Big(\sum_k x_k(u) \, \frac{\partial S^c}{\partial x_k(u)}\Big) ,

and a pixel is a seed of the class for which any of the N maps, divided by its maximum, is above a threshold.

Where the head is one stochastic selection, as in the paper, no backward pass is needed. The score is the mean of the
score map, which is linear in the features: with :math:`w^c_d` the weights of cell d, and :math:`m_d(u)` whether pixel u
is kept by the window in which it is cell d,

.. math:: \frac{\partial S^c}{\partial x(u)} = \frac{1}{hw} \sum_d m_d(u) \, w^c_d .

The products :math:`w^c_d \cdot x(u)` are the same for all masks. They are computed once, and each further map costs one
sum over the cells.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dcsm_attr.attribution.gradients import DetachedParameters
from dcsm_attr.attribution.guided import unguided_rectifiers
from dcsm_attr.attribution.maps import divide_by_maximum, upsample
from dcsm_attr.attribution.model import pool_score_maps, prepared_model
from dcsm_attr.datasets.masks import VOID
from dcsm_attr.datasets.preprocess import CanvasImage
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork
from dcsm_attr.models.stochastic import StochasticSelection, cell_products, transpose_masks, use_generator

__all__ = [
    "Aggregate",
    "FickleLocalizer",
    "GradCamForm",
    "aggregate_maps",
    "aggregate_prefixes",
    "fickle_maps",
    "find_stochastic_selections",
    "grad_cam",
    "stochastic_maps",
]

GradCamForm = Literal["elementwise", "pooled"]

# Maps that are computed together: their masks in float32 take 14 MB at 41 x 41.
_CHUNK_SIZE = 25


@dataclass(frozen=True)
class FickleLocalizer:
    """Foreground seeds of FickleNet; a :class:`~dcsm_attr.wsss.seeds.Localizer`.

    Attributes:
        network: with a stochastic selection in its head.
        num_samples: N, the number of maps per class; 200 in the paper.
        threshold: share of a map's maximum above which a pixel is a seed; 0.35 in the paper.
        form: see :func:`grad_cam`.
        seed: of the masks, the same for each image.

    Raises:
        ValueError: if the network has no stochastic selection, or the threshold is outside [0, 1].
    """

    network: ScoreMapNetwork
    num_samples: int = 200
    threshold: float = 0.35
    form: GradCamForm = "elementwise"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the network and the threshold."""
        find_stochastic_selections(self.network)
        _check_threshold(self.threshold)

    def __call__(self, canvas: Tensor, prepared: CanvasImage, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localize the classes of one image.

        Args:
            canvas: ``(1, 3, S, S)``, normalized, on the device of the network.
            prepared: where the image lies on the canvas.
            classes: K classes of the image.

        Returns:
            Seeds ``(K, h, w)`` bool in the area of the image, and the mean maps ``(K, h, w)``.
        """
        size = (canvas.shape[2], canvas.shape[3])
        maps = fickle_maps(self.network, canvas, classes, self.num_samples, form=self.form, size=size, seed=self.seed)
        aggregate = aggregate_maps(prepared.crop(one) for one in maps)
        return aggregate.highest > self.threshold, aggregate.mean

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on besides the parameters and the image, JSON-serializable."""
        (selection, *_) = find_stochastic_selections(self.network)
        return {
            "method": "FickleNet",
            "num_samples": self.num_samples,
            "threshold": self.threshold,
            "form": self.form,
            "seed": self.seed,
            "window": selection.kernel_size[0],
            "rate": selection.rate,
            "keep_center": selection.keep_center,
        }


def find_stochastic_selections(network: ScoreMapNetwork) -> list[StochasticSelection]:
    """Return the stochastic selections of a network.

    Raises:
        ValueError: if there is none.
    """
    found = [module for module in network.modules() if isinstance(module, StochasticSelection)]
    if not found:
        raise ValueError(
            "this network selects no hidden units at random, so that all of its maps are alike: train one with "
            "dcsm-attr train --head fickle."
        )
    return found


def fickle_maps(
    network: ScoreMapNetwork,
    image: Tensor,
    classes: Sequence[int],
    num_samples: int = 200,
    *,
    form: GradCamForm = "elementwise",
    size: tuple[int, int] | None = None,
    chunk_size: int = _CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Map classes of one image by stochastic inference.

    The backbone runs once, when the first map is requested. The network and PyTorch's random state are left unchanged.

    Args:
        network: with a :class:`~dcsm_attr.models.stochastic.StochasticSelection` in its head.
        image: ``(1, 3, H, W)``, normalized for the network.
        classes: K classes of the network.
        num_samples: N, the number of maps; 200 in the paper.
        form: see :func:`grad_cam`.
        size: ``(H, W)``, to which each map is resized bilinearly. None: the size of the features.
        chunk_size: number of maps that are computed together; affects memory and time only.
        seed: of the masks, which are the same on every device.
        progress: whether to show a progress bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalized.

    Raises:
        ValueError: with the first map, if there is not one image, a class is not the network's, there is no such form,
            or a number is not positive.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image must be one image, of shape (1, 3, H, W); got {tuple(image.shape)}.")
    with prepared_model(network, image.device):
        features = network.backbone(image)["map"]
    for maps in stochastic_maps(
        network.head,
        features,
        classes,
        num_samples,
        form=form,
        chunk_size=chunk_size,
        seed=seed,
        progress=progress,
    ):
        yield maps if size is None else upsample(maps[None], size)[0]


def stochastic_maps(
    head: nn.Module,
    features: Tensor,
    classes: Sequence[int],
    num_samples: int = 200,
    *,
    form: GradCamForm = "elementwise",
    chunk_size: int = _CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Map classes on the same features many times, each time with newly drawn masks.

    If the head is one stochastic selection, maps are computed in closed form. Any other head runs forward and backward
    once per map.

    Args:
        head: features to score maps; left unchanged.
        features: ``(1, D, h, w)``.
        classes: K classes of the head.
        num_samples: N, the number of maps.
        form: see :func:`grad_cam`.
        chunk_size: number of maps that are computed together; affects memory and time only.
        seed: of the masks.
        progress: whether to show a progress bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalized.

    Raises:
        ValueError: with the first map, if the features are not those of one image, a class is not the head's, there is
            no such form, or a number is not positive.
    """
    if features.ndim != 4 or len(features) != 1:
        raise ValueError(f"features must be of one image, of shape (1, D, h, w); got {tuple(features.shape)}.")
    _check_form(form)
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    generator = torch.Generator().manual_seed(seed)
    selection = _single_selection(head)
    map_chunk = (
        partial(_map_by_autograd, head, features, classes, form)
        if selection is None
        else _closed_form(selection, features, classes, form)
    )
    with tqdm(total=num_samples, unit="map", disable=not progress, leave=False) as bar:
        for start in range(0, num_samples, chunk_size):
            with use_generator(generator):
                maps = map_chunk(min(chunk_size, num_samples - start))
            for one in maps:
                bar.update()
                yield one


def _single_selection(head: nn.Module) -> StochasticSelection | None:
    parts = list(head) if type(head) is nn.Sequential else [head]
    return parts[0] if len(parts) == 1 and type(parts[0]) is StochasticSelection else None


def _map_by_autograd(
    head: nn.Module, features: Tensor, classes: Sequence[int], form: GradCamForm, count: int
) -> Tensor:
    with prepared_model(head, features.device):
        return grad_cam(head, features.expand(count, -1, -1, -1), classes, form)


def grad_cam(head: nn.Module, features: Tensor, classes: Sequence[int], form: GradCamForm = "elementwise") -> Tensor:
    r"""Map classes on the features that a head reads, by the gradient of the mean of each score map.

    Args:
        head: features to score maps.
        features: ``(N, D, h, w)``.
        classes: K classes of the head.
        form: ``"elementwise"``: :math:`ReLU(\sum_k x_k \, \partial S^c / \partial x_k)`, FickleNet's;
            ``"pooled"``: with the mean of the gradient over positions, as in Grad-CAM (Selvaraju et al., ICCV 2017).

    Returns:
        ``(N, K, h, w)``, detached, not negative.

    Raises:
        ValueError: if a class is not the head's, or there is no such form.
    """
    _check_form(form)
    with torch.enable_grad(), DetachedParameters(), unguided_rectifiers():
        x = features.detach().requires_grad_()
        scores = pool_score_maps(head(x), "average")
        _check_classes(classes, scores.shape[1])
        totals = [scores[:, c].sum() for c in classes]
    maps = []
    for total in totals:
        (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
        if form == "pooled":
            gradient = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((features.detach() * gradient).sum(dim=1).relu_())
    return torch.stack(maps, dim=1)


def _closed_form(
    selection: StochasticSelection, features: Tensor, classes: Sequence[int], form: GradCamForm
) -> Callable[[int], Tensor]:
    """Return the function from a number of masks to the maps of newly drawn masks."""
    _check_classes(classes, selection.out_channels)
    features = features.detach()
    weight = selection.weight.detach()[list(classes)]
    if form == "pooled":
        return lambda count: _pooled_maps(features[0], weight, selection.draw_masks(count, features))
    products = cell_products(features, weight)[0]
    return lambda count: _elementwise_maps(products, selection.draw_masks(count, features))


def _elementwise_maps(products: Tensor, masks: Tensor) -> Tensor:
    r"""Compute :math:`ReLU(\sum_d m_d(u) \, w^c_d \cdot x(u)) / hw` for each mask.

    Args:
        products: ``(K, s * s, h, w)``, of :func:`~dcsm_attr.models.stochastic.cell_products`.
        masks: ``(M, s * s, h, w)`` bool.

    Returns:
        ``(M, K, h, w)``.
    """
    classes, _, height, width = products.shape
    # One small matrix product per pixel: (h * w, M, s * s) with (h * w, s * s, K).
    kept_by = transpose_masks(masks).flatten(2).permute(2, 0, 1).to(products.dtype)
    summed = torch.bmm(kept_by, products.flatten(2).permute(2, 1, 0))
    maps = summed.permute(1, 2, 0).reshape(len(masks), classes, height, width)
    return maps.relu_().div_(height * width)


def _pooled_maps(features: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    r"""Compute :math:`ReLU(x(u) \cdot \sum_d w^c_d \, mean_v \, m_d(v)) / hw` for each mask.

    Args:
        features: ``(D, h, w)``.
        weight: ``(K, D, s, s)`` of the requested classes.
        masks: ``(M, s * s, h, w)`` bool.

    Returns:
        ``(M, K, h, w)``.
    """
    positions = features[0].numel()
    shares = transpose_masks(masks).flatten(2).sum(dim=2).to(weight.dtype) / positions**2
    pooled = torch.einsum("ms,kds->mkd", shares, weight.flatten(2))
    return torch.einsum("mkd,dhw->mkhw", pooled, features).relu_()


@dataclass(frozen=True)
class Aggregate:
    """Running maximum and sum of any number of maps.

    Attributes:
        highest: ``(K, H, W)``, the maximum over the maps, each divided by its own maximum.
        total: ``(K, H, W)``, the sum of the same maps.
        count: number of maps.
    """

    highest: Tensor
    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """``(K, H, W)`` in [0, 1]."""
        return self.total / self.count

    def labels(self, classes: Sequence[int], threshold: float = 0.35) -> Tensor:
        """Label the pixels at which any map is above the threshold.

        Args:
            classes: class of each of the K slots.
            threshold: in [0, 1]; 0.35 in the paper.

        Returns:
            ``(H, W)`` int64: ``c + 1`` where a map of class c is above the threshold; where maps of several classes
            are, the one of them with the highest mean; 255 where none is.

        Raises:
            ValueError: if there is not one class per slot, or the threshold is outside [0, 1].
        """
        if len(classes) != len(self.highest):
            raise ValueError(f"classes must name each of the {len(self.highest)} slots; got {len(classes)}.")
        _check_threshold(threshold)
        above = self.highest > threshold
        slot = self.total.masked_fill(~above, -torch.inf).argmax(dim=0)
        labels = torch.tensor(classes, device=slot.device)[slot] + 1
        return torch.where(above.any(dim=0), labels, VOID)


def aggregate_maps(maps: Iterable[Tensor]) -> Aggregate:
    """Aggregate maps one after the other; none of them is kept in memory.

    The paper does not say how maps are scaled before they are compared with a threshold; here each is divided by its
    maximum.

    Args:
        maps: each ``(K, H, W)``, not negative, of one image.

    Raises:
        ValueError: if there is no map, or they differ in shape.
    """
    last = deque(aggregate_prefixes(maps), maxlen=1)
    if not last:
        raise ValueError("there are no maps to aggregate: at least one is needed.")
    return last[0]


def aggregate_prefixes(maps: Iterable[Tensor]) -> Iterator[Aggregate]:
    """Yield the aggregate of the first map, of the first two, and so on; each shares its memory with the next one.

    Args:
        maps: as in :func:`aggregate_maps`.

    Raises:
        ValueError: if maps differ in shape.
    """
    aggregate: Aggregate | None = None
    for one in maps:
        normalized = divide_by_maximum(one.detach().to(torch.promote_types(one.dtype, torch.float32)))
        if aggregate is None:
            aggregate = Aggregate(normalized, normalized.clone(), 1)
        else:
            if normalized.shape != aggregate.highest.shape:
                raise ValueError(
                    f"maps must all be of one shape (K, H, W); got {tuple(normalized.shape)} after "
                    f"{tuple(aggregate.highest.shape)}."
                )
            aggregate.total.add_(normalized)
            torch.maximum(aggregate.highest, normalized, out=aggregate.highest)
            aggregate = replace(aggregate, count=aggregate.count + 1)
        yield aggregate


def _check_form(form: GradCamForm) -> None:
    if form not in get_args(GradCamForm):
        raise ValueError(f"form must be 'elementwise' or 'pooled', got {form!r}.")


def _check_classes(classes: Sequence[int], count: int) -> None:
    unknown = [c for c in classes if not 0 <= c < count]
    if unknown or not classes:
        raise ValueError(f"classes must be in 0 to {count - 1}, at least one; got {unknown[0] if unknown else 'none'}.")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of each map's maximum and must lie in [0, 1], got {threshold}.")

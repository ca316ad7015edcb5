r"""Grad-CAM of a head that is one stochastic selection, many draws at once and without a backward pass.

The score of a class is the mean of its map, which is linear in the features: with :math:`w^c_d` the weights of cell d
and :math:`m_d(u)` whether pixel u is kept by the window of which it is cell d,

.. math:: \frac{\partial S^c}{\partial x(u)} = \frac{1}{hw} \sum_d m_d(u) \, w^c_d .

What a pixel adds to each window, :math:`w^c_d \cdot x(u)`, is the same in every draw. So it is computed once, and a
draw costs one sum over the cells.

From many maps of each class to one label map: what any of them shows, and where they contradict, their mean.

Lee et al., "FickleNet", CVPR 2019. The maps may be those of any method that gives other ones each time.

Many maps of each class from one pass through the backbone: Grad-CAM on the features, of units resampled each time.

FickleNet's foreground seeds: what any of many stochastic maps is sure of.
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
    "aggregated",
    "aggregates",
    "check_threshold",
    "elementwise_maps",
    "fickle_maps",
    "find_stochastic_selections",
    "grad_cam",
    "pooled_maps",
    "stochastic_maps",
]


def elementwise_maps(products: Tensor, masks: Tensor) -> Tensor:
    r"""Maps :math:`ReLU(\sum_k x_k \, \partial S^c / \partial x_k)` of each draw.

    Args:
        products: ``(K, s * s, h, w)``, of :func:`~dcsm_attr.models.stochastic.cell_products`.
        masks: ``(M, s * s, h, w)`` bool, one a draw.

    Returns:
        ``(M, K, h, w)``, not negative.
    """
    classes, _, height, width = products.shape
    # One small matrix product a pixel: (h * w, M, s * s) with (h * w, s * s, K).
    seen = transpose_masks(masks).flatten(2).permute(2, 0, 1).to(products.dtype)
    summed = torch.bmm(seen, products.flatten(2).permute(2, 1, 0))
    maps = summed.permute(1, 2, 0).reshape(len(masks), classes, height, width)
    return maps.relu_().div_(height * width)


def pooled_maps(features: Tensor, weight: Tensor, masks: Tensor) -> Tensor:
    r"""Maps :math:`ReLU(\sum_k x_k \, mean_u \, \partial S^c / \partial x_k(u))` of each draw.

    Args:
        features: ``(D, h, w)``.
        weight: ``(K, D, s, s)`` of the classes that are asked for.
        masks: ``(M, s * s, h, w)`` bool, one a draw.

    Returns:
        ``(M, K, h, w)``, not negative.
    """
    positions = features[0].numel()
    shares = transpose_masks(masks).flatten(2).sum(dim=2).to(weight.dtype) / positions**2
    pooled = torch.einsum("ms,kds->mkd", shares, weight.flatten(2))
    return torch.einsum("mkd,dhw->mkhw", pooled, features).relu_()


@dataclass(frozen=True)
class Aggregate:
    """What is kept of any number of maps.

    Attributes:
        highest: ``(K, H, W)``, the maximum over the maps, each divided by its own maximum.
        total: ``(K, H, W)``, their sum.
        count: how many they were.
    """

    highest: Tensor
    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """``(K, H, W)`` in [0, 1]."""
        return self.total / self.count

    def labels(self, classes: Sequence[int], threshold: float = 0.35) -> Tensor:
        """Label each pixel that any map is sure of.

        Args:
            classes: of the K slots.
            threshold: above which one of the maps must be; the paper's is 0.35.

        Returns:
            ``(H, W)`` int64: ``c + 1`` where a map of class c is above the threshold, where those of several classes
            are, the one of them with the highest mean; 255 where none is.

        Raises:
            ValueError: if there is not one class a slot, or the threshold is outside [0, 1].
        """
        if len(classes) != len(self.highest):
            raise ValueError(f"classes must name each of the {len(self.highest)} slots; got {len(classes)}.")
        check_threshold(threshold)
        sure = self.highest > threshold
        slot = self.total.masked_fill(~sure, -torch.inf).argmax(dim=0)
        labels = torch.tensor(classes, device=slot.device)[slot] + 1
        return torch.where(sure.any(dim=0), labels, VOID)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that maps, each divided by its maximum, cannot have.

    Raises:
        ValueError: if it is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of each map's maximum and must lie in [0, 1], got {threshold}.")


def aggregated(maps: Iterable[Tensor]) -> Aggregate:
    """Aggregate maps as they come; none of them is kept.

    That each map is divided by its maximum before it is compared with a threshold is our choice.

    Args:
        maps: each ``(K, H, W)``, not negative, of one picture.

    Raises:
        ValueError: if there is none, or they differ in shape.
    """
    last = deque(aggregates(maps), maxlen=1)
    if not last:
        raise ValueError("there are no maps to aggregate: at least one is needed.")
    return last[0]


def aggregates(maps: Iterable[Tensor]) -> Iterator[Aggregate]:
    """The aggregate of the first map, of the first two, and so on; each shares its memory with the next one.

    Args:
        maps: as in :func:`aggregated`.

    Raises:
        ValueError: if they differ in shape.
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


GradCamForm = Literal["elementwise", "pooled"]

# Draws that are computed together: their masks in float32 take 14 MB at 41 x 41.
_CHUNK_SIZE = 25


def fickle_maps(
    network: ScoreMapNetwork,
    image: Tensor,
    classes: Sequence[int],
    draws: int = 200,
    *,
    form: GradCamForm = "elementwise",
    size: tuple[int, int] | None = None,
    draw_chunk_size: int = _CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Localize classes in one picture by stochastic inference; the backbone runs once, when the first map is asked for.

    Lee et al., "FickleNet", CVPR 2019. The network is left as it is found, and so is PyTorch's random state.

    Args:
        network: whose head holds a :class:`~dcsm_attr.models.stochastic.StochasticSelection`.
        image: ``(1, 3, H, W)``, normalized as the network wants it.
        classes: K of the network's classes.
        draws: N, 200 in the paper.
        form: see :func:`grad_cam`.
        size: ``(H, W)``, to which each map is resized bilinearly. None: the maps have the size of the features.
        draw_chunk_size: how many are computed together; changes memory and time alone.
        seed: of the draws, which are the same on every device.
        progress: whether to show a bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalized.

    Raises:
        ValueError: with the first map, if there is not one picture, a class is not the network's, there is no such
            form, or a number is not positive.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image must be one picture, of shape (1, 3, H, W); got {tuple(image.shape)}.")
    with prepared_model(network, image.device):
        features = network.backbone(image)["map"]
    for maps in stochastic_maps(
        network.head,
        features,
        classes,
        draws,
        form=form,
        draw_chunk_size=draw_chunk_size,
        seed=seed,
        progress=progress,
    ):
        yield maps if size is None else upsample(maps[None], size)[0]


def stochastic_maps(
    head: nn.Module,
    features: Tensor,
    classes: Sequence[int],
    draws: int = 200,
    *,
    form: GradCamForm = "elementwise",
    draw_chunk_size: int = _CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Draw units anew for the same features, many times, and map each class each time.

    For a head that is one stochastic selection, as the paper's, nothing is differentiated: see
    :mod:`dcsm_attr.wsss.ficklenet`. Any other head runs forward and backward once a draw.

    Args:
        head: features to score maps; it is left as it is found.
        features: ``(1, D, h, w)``.
        classes: K of its classes.
        draws: N.
        form: see :func:`grad_cam`.
        draw_chunk_size: how many are computed together; changes memory and time alone.
        seed: of the draws.
        progress: whether to show a bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalized.

    Raises:
        ValueError: with the first map, if the features are not of one picture, a class is not the head's, there is no
            such form, or a number is not positive.
    """
    _check(features, draws, form, draw_chunk_size)
    generator = torch.Generator().manual_seed(seed)
    selection = _single_selection(head)
    map_draw_batch = (
        partial(_by_autograd, head, features, classes, form)
        if selection is None
        else _in_closed_form(selection, features, classes, form)
    )
    with tqdm(total=draws, unit="map", disable=not progress, leave=False) as bar:
        for start in range(0, draws, draw_chunk_size):
            with use_generator(generator):
                maps = map_draw_batch(min(draw_chunk_size, draws - start))
            for one in maps:
                bar.update()
                yield one


def grad_cam(head: nn.Module, features: Tensor, classes: Sequence[int], form: GradCamForm = "elementwise") -> Tensor:
    r"""Map classes on the features that a head reads, by the gradient of the mean of each score map.

    Args:
        head: features to score maps.
        features: ``(N, D, h, w)``, before they are expanded.
        classes: K of its classes.
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
    maps = []
    for c in classes:
        (gradient,) = torch.autograd.grad(scores[:, c].sum(), x, retain_graph=True)
        if form == "pooled":
            gradient = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((features.detach() * gradient).sum(dim=1).relu_())
    return torch.stack(maps, dim=1)


def _by_autograd(head: nn.Module, features: Tensor, classes: Sequence[int], form: GradCamForm, count: int) -> Tensor:
    with prepared_model(head, features.device):
        return grad_cam(head, features.expand(count, -1, -1, -1), classes, form)


def _in_closed_form(
    selection: StochasticSelection, features: Tensor, classes: Sequence[int], form: GradCamForm
) -> Callable[[int], Tensor]:
    _check_classes(classes, selection.out_channels)
    features = features.detach()
    weight = selection.weight.detach()[list(classes)]
    if form == "pooled":
        return lambda count: pooled_maps(features[0], weight, selection.draw_masks(count, features))
    products = cell_products(features, weight)[0]
    return lambda count: elementwise_maps(products, selection.draw_masks(count, features))


def _single_selection(head: nn.Module) -> StochasticSelection | None:
    parts = list(head) if type(head) is nn.Sequential else [head]
    return parts[0] if len(parts) == 1 and type(parts[0]) is StochasticSelection else None


def _check(features: Tensor, draws: int, form: GradCamForm, draw_chunk_size: int) -> None:
    if features.ndim != 4 or len(features) != 1:
        raise ValueError(f"features must be of one picture, of shape (1, D, h, w); got {tuple(features.shape)}.")
    _check_form(form)
    for name, value in (("draws", draws), ("draw_chunk_size", draw_chunk_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_form(form: GradCamForm) -> None:
    if form not in get_args(GradCamForm):
        raise ValueError(f"form must be 'elementwise' or 'pooled', got {form!r}.")


def _check_classes(classes: Sequence[int], count: int) -> None:
    unknown = [c for c in classes if not 0 <= c < count]
    if unknown or not classes:
        raise ValueError(f"classes must be in 0 to {count - 1}, at least one; got {unknown[0] if unknown else 'none'}.")


def find_stochastic_selections(network: ScoreMapNetwork) -> list[StochasticSelection]:
    """The stochastic selections of a network.

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


@dataclass(frozen=True)
class FickleLocalizer:
    """Stochastic inference, aggregated; a :class:`~dcsm_attr.wsss.seeds.Localizer`.

    Attributes:
        network: whose head holds a stochastic selection.
        draws: N; 200 in the paper.
        threshold: above which one of the maps must be, each divided by its maximum; 0.35 in the paper.
        form: see :func:`~dcsm_attr.wsss.ficklenet.grad_cam`.
        seed: of the draws, the same for each image.

    Raises:
        ValueError: if the network selects no units at random, or the threshold is outside [0, 1].
    """

    network: ScoreMapNetwork
    draws: int = 200
    threshold: float = 0.35
    form: GradCamForm = "elementwise"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the network and the threshold."""
        find_stochastic_selections(self.network)
        check_threshold(self.threshold)

    def __call__(self, canvas: Tensor, prepared: CanvasImage, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Localize.

        Args:
            canvas: ``(1, 3, S, S)``, normalized, on the device of the network.
            prepared: where on it the image lies.
            classes: K classes of the image.

        Returns:
            Seeds ``(K, h, w)`` bool where the image lies, and the mean maps ``(K, h, w)``.
        """
        size = (canvas.shape[2], canvas.shape[3])
        maps = fickle_maps(self.network, canvas, classes, self.draws, form=self.form, size=size, seed=self.seed)
        aggregate = aggregated(prepared.crop(one) for one in maps)
        return aggregate.highest > self.threshold, aggregate.mean

    @property
    def settings(self) -> dict[str, Any]:
        """What the seeds depend on beside the parameters and the image, JSON-serializable."""
        (selection, *_) = find_stochastic_selections(self.network)
        return {
            "method": "FickleNet",
            "draws": self.draws,
            "threshold": self.threshold,
            "form": self.form,
            "seed": self.seed,
            "window": selection.kernel_size[0],
            "rate": selection.rate,
            "keep_center": selection.keep_center,
        }

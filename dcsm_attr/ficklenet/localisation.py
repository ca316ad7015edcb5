"""Many maps of each class from one pass through the trunk: Grad-CAM on the features, of units drawn anew each time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dcsm_attr.attribution.gradients import ConstantParameters
from dcsm_attr.attribution.guided import plain_rectifiers
from dcsm_attr.backbones.convolutional import ScoreMapNetwork
from dcsm_attr.backbones.score_pooling import pooled_scores
from dcsm_attr.ficklenet.linear_maps import elementwise_maps, pooled_maps
from dcsm_attr.guest import evaluation_mode, preserved_random_state, uncompiled
from dcsm_attr.maps import upsample
from dcsm_attr.stochastic.masks import drawing_from
from dcsm_attr.stochastic.selection import StochasticSelection
from dcsm_attr.stochastic.shifts import cell_products

__all__ = ["GradCamForm", "fickle_maps", "grad_cam", "stochastic_maps"]

GradCamForm = Literal["elementwise", "pooled"]

# Draws that are computed together: their masks in float32 take 14 MB at 41 x 41.
_AT_ONCE = 25


def fickle_maps(
    network: ScoreMapNetwork,
    image: Tensor,
    classes: Sequence[int],
    draws: int = 200,
    *,
    form: GradCamForm = "elementwise",
    size: tuple[int, int] | None = None,
    draws_at_once: int = _AT_ONCE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Localise classes in one picture by stochastic inference; the trunk runs once, when the first map is asked for.

    Lee et al., "FickleNet", CVPR 2019. The network is left as it is found, and so is PyTorch's random state.

    Args:
        network: whose head holds a :class:`~dcsm_attr.stochastic.selection.StochasticSelection`.
        image: ``(1, 3, H, W)``, normalised as the network wants it.
        classes: K of the network's classes.
        draws: N, 200 in the paper.
        form: see :func:`grad_cam`.
        size: ``(H, W)``, to which each map is resized bilinearly. None: the maps have the size of the features.
        draws_at_once: how many are computed together; changes memory and time alone.
        seed: of the draws, which are the same on every device.
        progress: whether to show a bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalised.

    Raises:
        ValueError: with the first map, if there is not one picture, a class is not the network's, there is no such
            form, or a number is not positive.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"image must be one picture, of shape (1, 3, H, W); got {tuple(image.shape)}.")
    with torch.no_grad(), _as_guest(network, image.device):
        features = network.trunk(image)["map"]
    for maps in stochastic_maps(
        network.head,
        features,
        classes,
        draws,
        form=form,
        draws_at_once=draws_at_once,
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
    draws_at_once: int = _AT_ONCE,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Tensor]:
    """Draw units anew for the same features, many times, and map each class each time.

    For a head that is one stochastic selection, as the paper's, nothing is differentiated: see
    :mod:`dcsm_attr.ficklenet.linear_maps`. Any other head runs forward and backward once a draw.

    Args:
        head: features to score maps; it is left as it is found.
        features: ``(1, D, h, w)``.
        classes: K of its classes.
        draws: N.
        form: see :func:`grad_cam`.
        draws_at_once: how many are computed together; changes memory and time alone.
        seed: of the draws.
        progress: whether to show a bar.

    Yields:
        N times ``(K, h, w)``, not negative, not normalised.

    Raises:
        ValueError: with the first map, if the features are not of one picture, a class is not the head's, there is no
            such form, or a number is not positive.
    """
    _check(features, draws, form, draws_at_once)
    generator = torch.Generator().manual_seed(seed)
    selection = _only_selection(head)
    map_draws = (
        partial(_by_autograd, head, features, classes, form)
        if selection is None
        else _in_closed_form(selection, features, classes, form)
    )
    with tqdm(total=draws, unit="map", disable=not progress, leave=False) as bar:
        for start in range(0, draws, draws_at_once):
            with drawing_from(generator):
                maps = map_draws(min(draws_at_once, draws - start))
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
    with torch.enable_grad(), ConstantParameters(), plain_rectifiers():
        x = features.detach().requires_grad_()
        scores = pooled_scores(head(x), "average")
    _check_classes(classes, scores.shape[1])
    maps = []
    for c in classes:
        (gradient,) = torch.autograd.grad(scores[:, c].sum(), x, retain_graph=True)
        if form == "pooled":
            gradient = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append((features.detach() * gradient).sum(dim=1).relu_())
    return torch.stack(maps, dim=1)


def _by_autograd(head: nn.Module, features: Tensor, classes: Sequence[int], form: GradCamForm, count: int) -> Tensor:
    with _as_guest(head, features.device):
        return grad_cam(head, features.expand(count, -1, -1, -1), classes, form)


def _in_closed_form(
    selection: StochasticSelection, features: Tensor, classes: Sequence[int], form: GradCamForm
) -> Callable[[int], Tensor]:
    _check_classes(classes, selection.out_channels)
    features = features.detach()
    weight = selection.scaled_weight().detach()[list(classes)]
    if form == "pooled":
        return lambda count: pooled_maps(features[0], weight, selection.draw(count, features))
    products = cell_products(features, weight)[0]
    return lambda count: elementwise_maps(products, selection.draw(count, features))


def _only_selection(head: nn.Module) -> StochasticSelection | None:
    parts = list(head) if type(head) is nn.Sequential else [head]
    return parts[0] if len(parts) == 1 and type(parts[0]) is StochasticSelection else None


@contextmanager
def _as_guest(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in evaluation mode and uncompiled; it and the random state as before afterwards."""
    with evaluation_mode(model), uncompiled(model), preserved_random_state(device):
        yield


def _check(features: Tensor, draws: int, form: GradCamForm, draws_at_once: int) -> None:
    if features.ndim != 4 or len(features) != 1:
        raise ValueError(f"features must be of one picture, of shape (1, D, h, w); got {tuple(features.shape)}.")
    _check_form(form)
    for name, value in (("draws", draws), ("draws_at_once", draws_at_once)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_form(form: GradCamForm) -> None:
    if form not in get_args(GradCamForm):
        raise ValueError(f"form must be 'elementwise' or 'pooled', got {form!r}.")


def _check_classes(classes: Sequence[int], count: int) -> None:
    unknown = [c for c in classes if not 0 <= c < count]
    if unknown or not classes:
        raise ValueError(f"classes must be in 0 to {count - 1}, at least one; got {unknown[0] if unknown else 'none'}.")

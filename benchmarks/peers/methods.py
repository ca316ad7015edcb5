"""Class activation methods of other libraries, computed by these libraries on score map networks.

:func:`reference_maps` computes the maps of any of them. The libraries are optional (``pip install "dcsm_attr[peers]"``)
and imported when they are needed. Each method returns its maps before its library normalizes or resizes them, so that
all are normalized alike.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from captum.attr import GuidedGradCam
from torch import Tensor, nn

from benchmarks.peers.hooks import HookableNetwork, cam_point, classification_layer, feature_point, make_hookable
from dcsm_attr.attribution.gradients import LayerPoint
from dcsm_attr.attribution.maps import absolute_channel_maximum, divide_by_maximum, upsample
from dcsm_attr.attribution.model import PoolingName, prepared_model
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork

__all__ = ["REFERENCE_METHODS", "ReferenceMethod", "import_library", "reference_maps"]

# FinerCAM: number of similar classes and strength, both defaults of pytorch-grad-cam.
_NUM_SIMILAR = 3
_STRENGTH = 1.0

_Target = Callable[[Tensor], Tensor]


def reference_maps(
    name: str,
    network: ScoreMapNetwork,
    pooling: PoolingName,
    images: Tensor,
    classes: Sequence[int],
    layer: nn.Module | str | None = None,
) -> Tensor:
    """Compute the maps of several classes of one image by a method of another library.

    All methods are normalized alike, whatever their library does: each map is rectified, resized bilinearly to the
    image, and divided by its maximum over the image; a map without a positive value is zero.

    The network is left unchanged: parameters, their gradients, hooks, training flags and random state. It must not run
    in another thread at the same time.

    Args:
        name: one of :data:`REFERENCE_METHODS`.
        network: returns score maps; its layers run in evaluation mode.
        pooling: from score maps to the scores whose gradients are taken.
        images: ``(1, 3, H, W)``, floating point, on any device.
        classes: K class numbers.
        layer: the module whose output is weighted, or its name as in ``network.named_modules()``; it must run exactly
            once. None: the last map of the backbone. CAM accepts None only.

    Returns:
        ``(K, H, W)`` float32 in [0, 1], on the CPU.

    Raises:
        ImportError: if the library is not installed.
        TypeError: if the layer is neither a module nor a name.
        ValueError: if the name, a class or the layer is unknown, the images have another shape, or the method is not
            defined for the layer or the number of classes.
    """
    if name not in REFERENCE_METHODS:
        raise ValueError(f"there is no reference method {name!r}; choose one of {', '.join(REFERENCE_METHODS)}.")
    if images.ndim != 4 or images.shape[:2] != (1, 3) or not images.is_floating_point():
        raise ValueError(
            f"images must have shape (1, 3, H, W) and be floating point, got {tuple(images.shape)}, {images.dtype}."
        )
    if not classes:
        raise ValueError("classes is empty: at least one class is needed.")
    method = REFERENCE_METHODS[name]
    device = next(network.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(prepared_model(network, device))
        stack.enter_context(torch.enable_grad())
        model = stack.enter_context(make_hookable(network, pooling, classes, method.point(network, layer)))
        raw = method.raw_maps(model, images.detach().to(device), classes)
    maps = raw.detach().cpu().float().clamp(min=0)
    height, width = images.shape[2:]
    return divide_by_maximum(upsample(maps[None], (height, width)))[0]


def import_library(module: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: full name of the module.

    Raises:
        ImportError: if it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this method is that of another library, whose module {module} cannot be imported ({error}): pip install "
            '"dcsm_attr[peers]".'
        ) from error


def cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""CAM, by torchcam: :math:`\sum_k w^c_k A_k` with the weights of the classification layer and its input.

    Behind average pooling and one linear layer, this is the definition of Zhou et al. Where rectified layers come
    between the backbone and the classification layer, :math:`A` is the output of the last of them. In both cases the
    result is the score map without the bias, which Zhou et al. omit too. Where no linear layer comes last (SqueezeNet's
    own head, which rectifies its scores), there are no weights, and the score map itself is returned, with its bias.

    Args:
        model: hooked at :func:`~benchmarks.peers.hooks.cam_point`.
        images: ``(1, 3, H, W)``.
        classes: K class numbers.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if torchcam is not installed.
    """
    last = classification_layer(model.network.head)
    if last is None:
        return model.score_maps(images)[0, list(classes)].detach()
    with import_library("torchcam.methods").CAM(model, model.layer, last) as extractor:
        model(images)
        return torch.cat([extractor(c, normalized=False)[0] for c in classes])


def grad_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""Grad-CAM, by torchcam: :math:`\mathrm{ReLU}(\sum_k w^c_k A_k)`, weights are gradients averaged over positions.

    Args and errors are those of :func:`cam`, at any layer. Returns ``(K, h, w)``, not negative.
    """
    return _torchcam_maps("GradCAM", model, images, classes)


def layer_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""LayerCAM, by torchcam: :math:`\mathrm{ReLU}(\sum_k \mathrm{ReLU}(g^c_k) A_k)`, with a weight per position.

    Args and errors are those of :func:`cam`, at any layer. Returns ``(K, h, w)``, not negative.
    """
    return _torchcam_maps("LayerCAM", model, images, classes)


def _torchcam_maps(method: str, model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    with getattr(import_library("torchcam.methods"), method)(model, model.layer) as extractor:
        scores = model(images)
        return torch.cat([extractor(c, scores, normalized=False, retain_graph=True)[0] for c in classes])


def grad_cam_plus_plus(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""Grad-CAM++, by pytorch-grad-cam: weights :math:`\sum_{x,y} \alpha_k \mathrm{ReLU}(g_k)`.

    alpha is Eq. 19 of Chattopadhay et al. The library adds 1e-6 to the denominator :math:`2 g^2 + g^3 \sum A` of alpha.
    Where gradients are below about 1e-3, as behind average pooling over a large map, that term dominates, and the
    weights are :math:`10^6 \sum g^3` instead.

    torchcam is not used: up to version 0.5.0, its division by the denominator is applied to a copy and lost.

    Args:
        model: hooked at the layer.
        images: ``(1, 3, H, W)``.
        classes: K class numbers.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if pytorch-grad-cam is not installed.
    """
    target = import_library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    extractor = import_library("pytorch_grad_cam").GradCAMPlusPlus(model, [model.layer])
    with _release_hooks(extractor):
        return torch.stack([_unscaled_map(extractor, extractor, images, target(c)) for c in classes])


def finer_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    r"""FinerCAM, by pytorch-grad-cam: Grad-CAM of the mean of :math:`S_c - S_d` over similar classes d.

    The mean is weighted by the softmax of the similar classes. Each class is compared with the three whose scores are
    closest to its own, or all others where there are fewer, with strength alpha = 1: the defaults of the library, in
    which the gradient passes through the softmax too. (The authors' own script compares with one class at alpha = 1,
    and with three at 0.6.) Unlike the library's search, the one here always takes the requested class as the main one,
    also where several scores are equal.

    Args:
        model: hooked at the layer.
        images: ``(1, 3, H, W)``.
        classes: K class numbers.

    Returns:
        ``(K, h, w)``, of either sign.

    Raises:
        ImportError: if pytorch-grad-cam is not installed.
        ValueError: if the network has only one class.
    """
    weighted = import_library("pytorch_grad_cam.utils.model_targets").FinerWeightedTarget

    def target(c: int) -> _Target:
        return lambda scores: weighted(c, most_similar(scores.detach(), c), _STRENGTH)(scores)

    extractor = import_library("pytorch_grad_cam").FinerCAM(model, [model.layer])
    with _release_hooks(extractor.base_cam):
        return torch.stack([_unscaled_map(extractor, extractor.base_cam, images, target(c)) for c in classes])


def most_similar(scores: Tensor, c: int) -> list[int]:
    """Find the classes that FinerCAM compares class ``c`` with.

    Args:
        scores: ``(C,)``.
        c: the class.

    Returns:
        The three other classes with the closest scores, or all others, the closest first; of equally close ones the
        lower number first.

    Raises:
        ValueError: if there is no other class.
    """
    if len(scores) < 2:
        raise ValueError("FinerCAM compares a class with others: the network must have at least two classes, it has 1.")
    distances = (scores - scores[c]).abs()
    distances[c] = torch.inf
    return distances.argsort(stable=True)[: min(_NUM_SIMILAR, len(scores) - 1)].tolist()


def _unscaled_map(extractor: Any, base: Any, images: Tensor, target: _Target) -> Tensor:
    """The map of pytorch-grad-cam, before the library subtracts its minimum and divides by its maximum."""
    extractor(images, targets=[target])
    recorded = base.activations_and_grads
    maps = base.get_cam_image(
        images,
        base.target_layers[0],
        [target],
        recorded.activations[0].numpy(),
        recorded.gradients[0].numpy(),
    )
    return torch.from_numpy(maps[0])


@contextmanager
def _release_hooks(base: Any) -> Iterator[None]:
    # The library's own context manager suppresses every IndexError, including those of the network.
    try:
        yield
    finally:
        base.activations_and_grads.release()


def guided_grad_cam(model: HookableNetwork, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Guided Grad-CAM, by Captum: guided backpropagation to the image, times bilinearly resized Grad-CAM.

    Of the three colors the largest absolute value counts, as in the class saliency of Simonyan et al. and in Eq. 3 of
    DCSM. Captum guides modules ``nn.ReLU`` only: functional rectifiers of GoogLeNet, Inception v3 and DenseNet, and
    other activations, pass plain gradients.

    Args:
        model: hooked at the layer.
        images: ``(1, 3, H, W)``.
        classes: K class numbers.

    Returns:
        ``(K, H, W)``, not negative.
    """
    method = GuidedGradCam(model, model.layer)
    images = images.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting backward hooks on ReLU activations", UserWarning)
        maps = [method.attribute(images, target=c, interpolate_mode="bilinear") for c in classes]
    return absolute_channel_maximum(torch.cat(maps))[:, 0].detach()


@dataclass(frozen=True)
class ReferenceMethod:
    """A class activation method of another library.

    Attributes:
        title: name of the method as its authors write it.
        source: its publication.
        distribution: name on PyPI of the library that computes it.
        raw_maps: from a hookable network, images ``(1, 3, H, W)`` and K classes to maps ``(K, h, w)`` of either sign.
        point: from a network, and the layer that a user names or None, to the place of the hooks.
    """

    title: str
    source: str
    distribution: str
    raw_maps: Callable[[HookableNetwork, Tensor, Sequence[int]], Tensor]
    point: Callable[[ScoreMapNetwork, nn.Module | str | None], LayerPoint] = feature_point


#: All methods by the name that :func:`reference_maps` accepts.
REFERENCE_METHODS: Mapping[str, ReferenceMethod] = MappingProxyType(
    {
        "cam": ReferenceMethod("CAM", "Zhou et al., CVPR 2016", "torchcam", cam, cam_point),
        "grad-cam": ReferenceMethod("Grad-CAM", "Selvaraju et al., ICCV 2017", "torchcam", grad_cam),
        "grad-cam++": ReferenceMethod("Grad-CAM++", "Chattopadhay et al., WACV 2018", "grad-cam", grad_cam_plus_plus),
        "layer-cam": ReferenceMethod("LayerCAM", "Jiang et al., IEEE TIP 2021", "torchcam", layer_cam),
        "finer-cam": ReferenceMethod("FinerCAM", "Zhang et al., CVPR 2025", "grad-cam", finer_cam),
        "guided-grad-cam": ReferenceMethod("Guided Grad-CAM", "Selvaraju et al., ICCV 2017", "captum", guided_grad_cam),
    }
)

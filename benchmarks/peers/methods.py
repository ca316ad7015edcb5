"""The peers by name, and one function for the maps of any of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from benchmarks.peers.from_captum import guided_grad_cam
from benchmarks.peers.from_grad_cam import finer_cam, grad_cam_plus_plus
from benchmarks.peers.from_torchcam import cam, grad_cam, layer_cam
from benchmarks.peers.tapped import HookableNetwork, cam_point, feature_point, tapped
from dcsm_attr.attribution.gradients import LayerPoint
from dcsm_attr.attribution.maps import divide_by_maximum, upsample
from dcsm_attr.attribution.model import PoolingName, evaluation_mode, preserve_rng_state
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork

__all__ = ["REFERENCE_METHODS", "ReferenceMethod", "reference_maps"]


@dataclass(frozen=True)
class ReferenceMethod:
    """A class activation method of another library.

    Attributes:
        title: as its authors write it.
        source: its publication.
        distribution: the library that computes it, under its name on PyPI.
        raw_maps: of a tapped network, images ``(1, 3, H, W)`` and K classes, gives ``(K, h, w)`` of either sign.
        point: of a network, and of the layer that a user names or None, gives where to tap.
    """

    title: str
    source: str
    distribution: str
    raw_maps: Callable[[HookableNetwork, Tensor, Sequence[int]], Tensor]
    point: Callable[[ScoreMapNetwork, nn.Module | str | None], LayerPoint] = feature_point


#: Every method by the name that :func:`reference_maps` takes.
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

    The network is left as it was found: parameters, their gradients, hooks, training flags and random state. It must
    not run in another thread meanwhile.

    Args:
        name: one of :data:`REFERENCE_METHODS`.
        network: gives score maps; its layers run in evaluation mode.
        pooling: of score maps to the scores whose gradients are taken.
        images: ``(1, 3, H, W)``, floating point, on any device.
        classes: K class numbers.
        layer: the module whose output the map is made of, or its name as in ``network.named_modules()``; it must run
            just once. None: the last map of the backbone. Plain CAM has no choice.

    Returns:
        ``(K, H, W)`` float32 in [0, 1], on the CPU.

    Raises:
        ImportError: if the library is not installed.
        TypeError: if the layer is neither a module nor a name.
        ValueError: if the name, a class or the layer is not known, the images have another shape, or the method is not
            defined for the layer or the number of classes.
    """
    if name not in REFERENCE_METHODS:
        raise ValueError(f"there is no peer {name!r}; known are {', '.join(REFERENCE_METHODS)}.")
    if images.ndim != 4 or images.shape[:2] != (1, 3) or not images.is_floating_point():
        raise ValueError(
            f"images must have shape (1, 3, H, W) and be floating point, got {tuple(images.shape)}, {images.dtype}."
        )
    if not classes:
        raise ValueError("classes is empty: at least one class is needed.")
    peer = REFERENCE_METHODS[name]
    device = next(network.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(network))
        stack.enter_context(preserve_rng_state(device))
        stack.enter_context(torch.enable_grad())
        model = stack.enter_context(tapped(network, pooling, classes, peer.point(network, layer)))
        raw = peer.raw_maps(model, images.detach().to(device), classes)
    maps = raw.detach().cpu().float().clamp(min=0)
    height, width = images.shape[2:]
    return divide_by_maximum(upsample(maps[None], (height, width)))[0]

"""A score map network as other libraries want it: one score per class, and one module to hook."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dcsm_attr.attribution.gradients import DetachedParameters, LayerPoint
from dcsm_attr.attribution.layers import resolve_layers
from dcsm_attr.attribution.model import PoolingName, pool_score_maps
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork

__all__ = ["HookableNetwork", "cam_point", "classification_layer", "feature_point", "tapped"]


class _Tap(nn.Module):
    """Identity that a layer's map passes through; without a graph below it, the graph begins here."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.requires_grad else features.detach().requires_grad_()


class HookableNetwork(nn.Module):
    """Score maps pooled to scores, and a module of its own through which the map of one layer passes.

    A library that hooks :attr:`layer` hooks no module of the network, and finds a tensor there that nothing overwrites,
    also where a rectifier in place follows. Parameters take part as constants, so that no backward pass reaches the
    gradients that the user has accumulated.

    Attributes:
        network: the guest.
        layer: the module to hook; made by :func:`tapped`.
    """

    def __init__(self, network: ScoreMapNetwork, pooling: PoolingName, classes: Sequence[int], name: str) -> None:
        """Put the parts together.

        Args:
            network: gives score maps.
            pooling: of score maps to scores.
            classes: that maps are asked for.
            name: of the layer, for messages.
        """
        super().__init__()
        self.network = network
        self.layer = _Tap()
        self._pooling: PoolingName = pooling
        self._classes = classes
        self._name = name
        self._runs = 0

    def forward(self, images: Tensor) -> Tensor:
        """Scores before sigmoid or softmax.

        Args:
            images: ``(1, 3, H, W)``.

        Returns:
            ``(1, C)``.
        """
        return pool_score_maps(self.score_maps(images), self._pooling)

    def score_maps(self, images: Tensor) -> Tensor:
        """Score maps before sigmoid or softmax.

        Args:
            images: ``(1, 3, H, W)``.

        Returns:
            ``(1, C, h, w)``.

        Raises:
            ValueError: if the layer does not run just once, or there is no such class.
        """
        self._runs = 0
        with DetachedParameters():
            maps: Tensor = self.network(images)
        if self._runs != 1:
            raise ValueError(
                f"layer {self._name!r} must run once in a forward pass, but it runs {self._runs} times: name one that "
                "does. In a traced backbone those are the innermost modules, not the stages that hold them."
            )
        unknown = [c for c in self._classes if not 0 <= c < maps.shape[1]]
        if unknown:
            raise ValueError(f"classes must be in 0 to {maps.shape[1] - 1}, got {unknown[0]}.")
        return maps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the gradients of the parameters are the user's."""

    def pass_through(self, features: Any) -> Tensor:
        """Lead a layer's map through :attr:`layer`.

        Args:
            features: ``(1, D, h, w)``.

        Returns:
            A copy, so that the in-place operations that may follow leave the hooked tensor alone.

        Raises:
            ValueError: if it is no map.
        """
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise ValueError(f"layer {self._name!r} must give a map, one tensor of shape (N, D, h, w); name another.")
        self._runs += 1
        passed: Tensor = self.layer(features)
        return passed.clone()


@contextmanager
def tapped(
    network: ScoreMapNetwork, pooling: PoolingName, classes: Sequence[int], point: LayerPoint
) -> Iterator[HookableNetwork]:
    """Lead the map at ``point`` through a module that libraries can hook; the network is left as it was.

    Args:
        network: gives score maps.
        pooling: of score maps to scores.
        classes: that maps are asked for.
        point: of a module of the network.

    Yields:
        The network with that module.
    """
    model = HookableNetwork(network, pooling, classes, point.name)
    assert point.module is not None
    if point.at_input:
        handle = point.module.register_forward_pre_hook(lambda _, inputs: model.pass_through(inputs[0]))
    else:
        handle = point.module.register_forward_hook(lambda _, inputs, output: model.pass_through(output))
    try:
        yield model
    finally:
        handle.remove()


def feature_point(network: ScoreMapNetwork, layer: nn.Module | str | None) -> LayerPoint:
    """Where Grad-CAM and its relatives look.

    Args:
        network: gives score maps.
        layer: a module of it or its name. None: the map that the backbone hands to the head, its last.

    Returns:
        The output of the layer.

    Raises:
        TypeError: if the layer is neither a module nor a name.
        ValueError: if it is not in the network.
    """
    if layer is None:
        return LayerPoint("head", network.head, at_input=True)
    ((name, module),) = resolve_layers(network, layer).items()
    return LayerPoint(name, module, at_input=False)


def cam_point(network: ScoreMapNetwork, layer: nn.Module | str | None) -> LayerPoint:
    """Where plain CAM looks, which its definition says: at the input of the classifying layer.

    Args:
        network: gives score maps.
        layer: None.

    Returns:
        That input; where the head does not end in a classifying layer, the score maps.

    Raises:
        ValueError: if a layer is named.
    """
    if layer is not None:
        raise ValueError(f"CAM is defined at the input of the classifying layer alone: leave layer={layer!r} out.")
    last = classification_layer(network.head)
    return LayerPoint("head", network.head, at_input=False) if last is None else LayerPoint("head", last, at_input=True)


def classification_layer(head: nn.Sequential) -> nn.Conv2d | None:
    """Find the linear layer that ends a head: a 1 x 1 convolution to the classes.

    Args:
        head: of a score map network.

    Returns:
        The layer; None if something else comes last, such as the rectifier of SqueezeNet's own head.
    """
    last = head[-1]
    if not isinstance(last, nn.Conv2d) or (last.kernel_size, last.stride, last.groups) != ((1, 1), (1, 1), 1):
        return None
    return last

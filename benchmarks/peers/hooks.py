"""Present a score map network as other libraries expect it: one score per class, and one module to hook."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dcsm_attr.attribution.gradients import DetachedParameters, LayerPoint
from dcsm_attr.attribution.layers import resolve_layers
from dcsm_attr.attribution.model import PoolingName, pool_score_maps
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork

__all__ = ["HookableNetwork", "cam_point", "classification_layer", "feature_point", "make_hookable"]


class HookableNetwork(nn.Module):
    """Pools score maps to scores, and passes the map of one layer through a module of its own.

    A library that hooks :attr:`layer` hooks no module of the network, and receives a tensor that nothing overwrites,
    also where an in-place rectifier follows. Parameters are constants in the graph, so that no backward pass reaches
    gradients that the user has accumulated.

    Attributes:
        network: the wrapped network.
        layer: the module to hook.
    """

    def __init__(self, network: ScoreMapNetwork, pooling: PoolingName, classes: Sequence[int], name: str) -> None:
        """Wrap a network.

        Args:
            network: returns score maps.
            pooling: from score maps to scores.
            classes: classes whose maps are requested.
            name: name of the layer, for messages.
        """
        super().__init__()
        self.network = network
        self.layer = _GraphStart()
        self._pooling: PoolingName = pooling
        self._classes = classes
        self._name = name
        self._runs = 0

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores before sigmoid or softmax.

        Args:
            images: ``(1, 3, H, W)``.

        Returns:
            ``(1, C)``.
        """
        return pool_score_maps(self.score_maps(images), self._pooling)

    def score_maps(self, images: Tensor) -> Tensor:
        """Compute score maps before sigmoid or softmax.

        Args:
            images: ``(1, 3, H, W)``.

        Returns:
            ``(1, C, h, w)``.

        Raises:
            ValueError: if the layer does not run exactly once, or a class does not exist.
        """
        self._runs = 0
        with DetachedParameters():
            maps: Tensor = self.network(images)
        if self._runs != 1:
            raise ValueError(
                f"layer {self._name!r} must run once in a forward pass, but it runs {self._runs} times: name one that "
                "does. In a traced backbone those are the innermost modules, not the stages that contain them."
            )
        unknown = [c for c in self._classes if not 0 <= c < maps.shape[1]]
        if unknown:
            raise ValueError(f"classes must be in 0 to {maps.shape[1] - 1}, got {unknown[0]}.")
        return maps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: the gradients of the parameters belong to the user."""

    def pass_through(self, features: Any) -> Tensor:
        """Pass a layer's map through :attr:`layer`.

        Args:
            features: ``(1, D, h, w)``.

        Returns:
            A copy, so that in-place operations that may follow do not change the hooked tensor.

        Raises:
            ValueError: if it is not a map.
        """
        if not isinstance(features, Tensor) or features.ndim != 4:
            raise ValueError(
                f"layer {self._name!r} must return a map, one tensor of shape (N, D, h, w): name another layer."
            )
        self._runs += 1
        passed: Tensor = self.layer(features)
        return passed.clone()


class _GraphStart(nn.Module):
    """Identity; a map that does not require a gradient becomes the start of the graph."""

    def forward(self, features: Tensor) -> Tensor:
        return features if features.requires_grad else features.detach().requires_grad_()


@contextmanager
def make_hookable(
    network: ScoreMapNetwork, pooling: PoolingName, classes: Sequence[int], point: LayerPoint
) -> Iterator[HookableNetwork]:
    """Pass the map at ``point`` through a module that libraries can hook; the network is restored at the end.

    Args:
        network: returns score maps.
        pooling: from score maps to scores.
        classes: classes whose maps are requested.
        point: input or output of a module of the network.

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
    """Return the output of a layer, which Grad-CAM and its relatives weight.

    Args:
        network: returns score maps.
        layer: a module of the network or its name. None: the last map of the backbone, the input of the head.

    Raises:
        TypeError: if the layer is neither a module nor a name.
        ValueError: if it is not in the network.
    """
    if layer is None:
        return LayerPoint("head", network.head, at_input=True)
    ((name, module),) = resolve_layers(network, layer).items()
    return LayerPoint(name, module, at_input=False)


def cam_point(network: ScoreMapNetwork, layer: nn.Module | str | None) -> LayerPoint:
    """Return the input of the classification layer, where CAM is defined.

    Args:
        network: returns score maps.
        layer: must be None.

    Returns:
        That input; the score maps, where the head does not end in a classification layer.

    Raises:
        ValueError: if a layer is given.
    """
    if layer is not None:
        raise ValueError(f"CAM is defined only at the input of the classification layer: omit layer={layer!r}.")
    last = classification_layer(network.head)
    return LayerPoint("head", network.head, at_input=False) if last is None else LayerPoint("head", last, at_input=True)


def classification_layer(head: nn.Sequential) -> nn.Conv2d | None:
    """Find the linear layer that ends a head: a 1 x 1 convolution to the classes.

    Args:
        head: head of a score map network.

    Returns:
        The layer; None if another module comes last, such as the rectifier of SqueezeNet's own head.
    """
    last = head[-1]
    if not isinstance(last, nn.Conv2d) or (last.kernel_size, last.stride, last.groups) != ((1, 1), (1, 1), 1):
        return None
    return last

"""For Captum's tools that want attributions of another form."""

from torch import Tensor

__all__ = ["expand_to_channels"]


def expand_to_channels(
    attributions: Tensor | tuple[Tensor, ...], inputs: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    """Repeat maps over the channels of their images, for metrics that want the shape of the inputs.

    ``captum.metrics.infidelity`` multiplies attributions with perturbations of the inputs, element by element: with
    maps ``(N, 1, H, W)`` it fails.

    Args:
        attributions: ``(N, 1, H, W)``, or a tuple of them, from ``attribute``.
        inputs: ``(N, C, H, W)``, or a tuple, as they were given to ``attribute``.

    Returns:
        Views of the maps with the shapes of the inputs.

    Raises:
        TypeError: if one of the two is a tuple and the other is not.
        ValueError: if a map does not have the size of its input, or there are not as many maps as inputs.

    Examples::

        >>> attributions = expand_to_channels(dcs.attribute(x, target=1), x)
        >>> captum.metrics.infidelity(model, perturb, x, attributions, target=1)
    """
    if isinstance(attributions, Tensor) and isinstance(inputs, Tensor):
        return _expand_map(attributions, inputs)
    if isinstance(attributions, tuple) and isinstance(inputs, tuple):
        return tuple(_expand_map(a, x) for a, x in zip(attributions, inputs, strict=True))
    raise TypeError(
        f"attributions and inputs must both be tensors or both be tuples, got {type(attributions).__name__} and "
        f"{type(inputs).__name__}."
    )


def _expand_map(attribution: Tensor, x: Tensor) -> Tensor:
    if attribution.ndim != 4 or (attribution.shape[0], 1, *x.shape[2:]) != (len(x), *attribution.shape[1:]):
        raise ValueError(
            f"attributions must be maps (N, 1, H, W) of the inputs' size {tuple(x.shape)}; got "
            f"{tuple(attribution.shape)}."
        )
    return attribution.expand_as(x)

"""From what a user calls a layer to the points where gradients are read."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from dcsm_attr.attribution.gradients import LayerPoint

__all__ = ["Layer", "layer_points", "named_layers"]

Layer = nn.Module | str | Sequence[nn.Module | str]


def named_layers(forward_func: Callable[..., Any], layer: Layer) -> dict[str, nn.Module]:
    """Find the modules that the user means, and their names.

    Args:
        forward_func: the model; of a plain function no names are known, and modules are taken as they are.
        layer: a module, a name as in ``model.named_modules()``, or a sequence of them.

    Returns:
        Names and modules, in the order given.

    Raises:
        TypeError: if something is neither a module nor a name.
        ValueError: if nothing is named, something twice, or something that is not in the model.
    """
    wanted = [layer] if isinstance(layer, (nn.Module, str)) else list(layer)
    if not wanted:
        raise ValueError("layer is empty: name at least one layer, or pass None for the default layers.")
    found: dict[str, nn.Module] = {}
    for item in wanted:
        name, module = _find(forward_func, item, position=len(found))
        if name in found:
            raise ValueError(f"layer {name!r} is named twice.")
        found[name] = module
    return found


def _find(forward_func: Callable[..., Any], item: nn.Module | str, position: int) -> tuple[str, nn.Module]:
    if not isinstance(item, (nn.Module, str)):
        raise TypeError(f"layer must be a module, a name, or a sequence of them; got {type(item).__name__}.")
    if not isinstance(forward_func, nn.Module):
        if isinstance(item, str):
            raise ValueError(
                f"layer {item!r} is a name, but forward_func is a function, whose modules are not known: pass the "
                "module itself."
            )
        return f"{type(item).__name__}_{position}", item
    for name, module in forward_func.named_modules():
        if module is item or name == item:
            return name, module
    if isinstance(item, str):
        close = [name for name, _ in forward_func.named_modules() if name.endswith(item) or name.startswith(item)]
        hint = f" Near it: {', '.join(close[:5])}." if close else " dict(model.named_modules()) lists the names."
        raise ValueError(f"layer {item!r} is not in {type(forward_func).__name__}.{hint}")
    raise ValueError(
        f"layer {type(item).__name__} is not a module of {type(forward_func).__name__}: take it from the same model "
        "object, e.g. model.layer4."
    )


def layer_points(layers: dict[str, nn.Module], at_input: bool) -> list[LayerPoint]:
    """One point for each layer."""
    return [LayerPoint(name, module, at_input) for name, module in layers.items()]

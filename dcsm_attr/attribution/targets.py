"""Captum's target forms, read as classes, and the maps of a target in Captum's form."""

from typing import Any

import torch
from captum._utils.common import _select_targets
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps

__all__ = ["maps_of_target", "resolve_target"]


def resolve_target(target: Any, output_shape: torch.Size) -> tuple[Tensor, Tensor | None]:
    """Find the class, and where the target names one the position, that ``target`` selects from each image's output.

    Captum itself reads the target, applied to a tensor that holds class indices: every form that Captum accepts is
    accepted (an int, negative ints, tuples, tensors, a list with one entry an image), with its errors.

    Args:
        target: what Captum's ``attribute`` takes.
        output_shape: ``(N, C)`` or ``(N, C, h, w)``.

    Returns:
        Classes ``(N,)`` int64 and, where the target was ``(class, y, x)``, positions ``y * w + x`` ``(N,)`` int64;
        otherwise None: the class at all positions. Both on the CPU.

    Raises:
        AssertionError: where Captum does not accept the form.
        IndexError: if a class or position is out of range.
    """
    images, classes = output_shape[:2]
    # Class forms address the scores; Captum has no meaning for them on a map.
    addressed = output_shape if _names_position(target) else output_shape[:2]
    index = torch.arange(addressed.numel(), device="cpu").view(addressed)
    try:
        selected = _select_targets(index, target)
    except (IndexError, RuntimeError) as error:
        maps = "" if len(output_shape) == 2 else f" and score maps of {output_shape[2]} x {output_shape[3]} positions"
        raise IndexError(
            f"target {target!r} is out of range: the model has {classes} classes (0 to {classes - 1}){maps}."
        ) from error
    assert selected.shape == (images,), (
        f"target {target!r} does not select one score an image from an output of shape {tuple(output_shape)}: give a "
        "class, or a list with one class an image."
    )
    positions = addressed[2:].numel()
    return selected // positions % classes, selected % positions if len(addressed) == 4 else None


def _names_position(target: Any) -> bool:
    first = target[0] if isinstance(target, list) and target else target
    return isinstance(first, tuple) and len(first) > 1


def maps_of_target(maps: ClassMaps, target: Tensor | None, inputs: Any) -> Tensor | tuple[Tensor, ...]:
    """Pick the maps of the target.

    Args:
        maps: with the target among the candidates.
        target: ``(N,)`` int64; None: the best candidate of each image.
        inputs: as the user gave them.

    Returns:
        ``(N, 1, H, W)``; a tuple if the inputs are one, with a map for each.
    """
    attribution = maps.best() if target is None else maps.of(target.to(maps.maps.device))
    return tuple(attribution.clone() for _ in inputs) if isinstance(inputs, tuple) else attribution

"""Saliency of anything at all, whatever class it is: what is left of it is background."""

from typing import Any

import torch
from torch import Tensor, nn

from dcsm_attr.attribution.gradients import LayerPoint, record
from dcsm_attr.attribution.guided import plain_rectifiers
from dcsm_attr.attribution.layer_points import named_layers
from dcsm_attr.backbones.scores import scores_of
from dcsm_attr.guest import evaluation_mode, preserved_random_state, uncompiled, unwrapped
from dcsm_attr.maps import absolute_channel_maximum

__all__ = ["middle_layer_saliency"]


def middle_layer_saliency(model: nn.Module, images: Tensor, layer: nn.Module | str) -> Tensor:
    r"""Map where a network sees any class: :math:`\max_k |\partial \sum_c S_c / \partial x_k|` at a middle layer.

    The saliency of Simonyan et al. with all classes as one, which SEC takes at ``conv4_1`` of VGG-16 to find the
    background. Score maps are summed over positions too. The model is left as it is found.

    Args:
        model: gives scores ``(N, C)`` or score maps ``(N, C, h, w)`` before sigmoid or softmax.
        images: ``(N, 3, H, W)``, normalised as the model wants them.
        layer: a module of the model or its name; its output is looked at.

    Returns:
        ``(N, 1, h, w)``, not negative, of the size of the layer.

    Raises:
        RuntimeError: if the layer is not reached, or the scores do not depend on it.
        TypeError: if the layer is neither a module nor a name.
        ValueError: if it is not in the model.
    """
    model = unwrapped(model)
    ((name, module),) = named_layers(model, layer).items()

    def summed(x: Tensor) -> Any:
        return scores_of(model(x)).sum(dim=1, keepdim=True)

    with evaluation_mode(model), uncompiled(model), preserved_random_state(images.device), plain_rectifiers():
        recording = record(
            summed,
            (images,),
            (),
            [LayerPoint(name, module, at_input=False)],
            reduction=absolute_channel_maximum,
            guided=False,
        )
        all_as_one = torch.zeros(len(images), 1, dtype=torch.int64, device=images.device)
        (maps,) = recording.channel_maxima(all_as_one)
    return maps

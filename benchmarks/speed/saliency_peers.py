"""Guided gradients of several classes at several layers, as one would take them with other libraries, or by hand.

All implementations that give gradients are combined by the same equations; the class activation methods of
pytorch-grad-cam and torchcam give maps of their own (without the guided rule), over the same layers and classes.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import GuidedBackprop, LayerGradientXActivation
from torch import Tensor, nn

from benchmarks.peers.libraries import library
from dcsm_attr.attribution import maps as equations

__all__ = ["library_implementations"]


_ALPHA = 3.0
_MAX_PASSES = 30


def library_implementations(
    model: nn.Module, layers: Sequence[str], images: Tensor, classes: Sequence[int]
) -> dict[str, Callable[[], Any]]:
    """The implementations, by name.

    Args:
        model: in evaluation mode; its parameters require gradients, as torchvision gives it.
        layers: names, of modules with one output each.
        images: ``(1, 3, H, W)``.
        classes: K of them.

    Returns:
        Functions without arguments. Those of libraries that are not installed are left out, and, where it would take
        more than 30 forward passes, a call for each layer and class.
    """
    work = _Work(model, layers, images, classes)
    implementations: dict[str, Callable[[], Any]] = {
        "captum, all layers a call": work.captum_all_layers,
        "PyTorch loop, a forward pass a class": work.loop,
        "PyTorch loop, one forward pass": work.loop_of_one_forward_pass,
    }
    if len(layers) * len(classes) <= _MAX_PASSES:
        implementations["captum, one layer a call"] = work.captum_each_layer
    for name, needs, run in (
        ("pytorch-grad-cam", "pytorch_grad_cam", work.grad_cam),
        ("torchcam", "torchcam.methods", work.torchcam),
    ):
        try:
            library(needs)
        except ImportError:
            continue
        implementations[name] = run
    return implementations


class _Work:
    def __init__(self, model: nn.Module, layers: Sequence[str], images: Tensor, classes: Sequence[int]) -> None:
        self.model = model
        self.names = list(layers)
        self.layers = [model.get_submodule(name) for name in layers]
        self.images = images
        self.classes = list(classes)

    def captum_all_layers(self) -> Tensor:
        method = LayerGradientXActivation(self.model, self.layers, multiply_by_inputs=False)
        return self._with_captum(lambda c: method.attribute(self.images, target=c))

    def captum_each_layer(self) -> Tensor:
        methods = [LayerGradientXActivation(self.model, layer, multiply_by_inputs=False) for layer in self.layers]
        return self._with_captum(lambda c: [method.attribute(self.images, target=c) for method in methods])

    def _with_captum(self, gradients: Callable[[int], Sequence[Tensor]]) -> Tensor:
        guide = GuidedBackprop(self.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.apply(guide._register_hooks)
            try:
                reduced = [[_reduced(g) for g in gradients(c)] for c in self.classes]
            finally:
                guide._remove_hooks()
        return self._combined(reduced)

    def loop(self) -> Tensor:
        """What one writes first: for each class a forward and a backward pass, rectifiers guided by module hooks."""
        return self._combined([self._of_one_pass([c])[0] for c in self.classes])

    def loop_of_one_forward_pass(self) -> Tensor:
        """What one writes who knows autograd: one forward pass, and from it a backward pass a class."""
        return self._combined(self._of_one_pass(self.classes))

    def _of_one_pass(self, classes: Sequence[int]) -> list[list[Tensor]]:
        outputs: dict[nn.Module, Tensor] = {}
        handles = [layer.register_forward_hook(_keeping(outputs)) for layer in self.layers]
        handles += [m.register_full_backward_hook(_guided) for m in self.model.modules() if isinstance(m, nn.ReLU)]
        in_place = [m for m in self.model.modules() if isinstance(m, nn.ReLU) and m.inplace]
        for rectifier in in_place:
            rectifier.inplace = False
        try:
            logits = self.model(self.images)
            tapped = [outputs[layer] for layer in self.layers]
            return [
                [_reduced(g) for g in torch.autograd.grad(logits[:, c].sum(), tapped, retain_graph=True)]
                for c in classes
            ]
        finally:
            for handle in handles:
                handle.remove()
            for rectifier in in_place:
                rectifier.inplace = True

    def grad_cam(self) -> Any:
        target = library("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        with library("pytorch_grad_cam").GradCAM(model=self.model, target_layers=self.layers) as method:
            return [method(input_tensor=self.images, targets=[target(c)]) for c in self.classes]

    def torchcam(self) -> Any:
        with library("torchcam.methods").GradCAM(self.model, self.names) as method:
            scores = self.model(self.images)
            return [method(c, scores, retain_graph=c != self.classes[-1]) for c in self.classes]

    def _combined(self, reduced: list[list[Tensor]]) -> Tensor:
        """Eq. 3 to 5 of all layers, ``(1, K, H, W)``, from maps ``(1, 1, h, w)`` of each class and layer."""
        size = (self.images.shape[2], self.images.shape[3])
        with torch.no_grad():
            total = sum(
                equations.squash(equations.subtract(equations.upsample(torch.cat(of_layer, dim=1), size)), _ALPHA)
                for of_layer in zip(*reduced, strict=True)
            )
        assert isinstance(total, Tensor)
        return total / len(self.layers)


def _reduced(gradient: Tensor) -> Tensor:
    return equations.absolute_channel_maximum(gradient.detach())


def _keeping(outputs: dict[nn.Module, Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        outputs[module] = output
        # A copy, so that the rectifiers in place that may follow do not overwrite what gradients are taken of.
        return output.clone()

    return hook


def _guided(_: nn.Module, to_input: tuple[Tensor, ...], __: Any) -> tuple[Tensor, ...]:
    return tuple(gradient.clamp(min=0) for gradient in to_input)

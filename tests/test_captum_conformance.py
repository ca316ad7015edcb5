"""Captum's generic tests of targets and of hook removal, over the configuration that Captum ships, on this method.

Captum's configuration lists models and arguments for every attribution method. These tests run all cases for gradient
methods of layers (those that list ``LayerGradCam``). Vectors ``(N, F)`` are passed as images of one pixel
``(N, F, 1, 1)`` to a wrapper that flattens them.
"""

import copy

import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel
from torch import nn

from dcsm_attr import DistinctClassSaliency

pytest.importorskip("captum.testing", reason="Captum ships its test configuration since 0.9")
from captum.testing.attr.helpers.gen_test_utils import get_target_layer, parse_test_config
from captum.testing.attr.helpers.test_config import config
from captum.testing.helpers.basic import set_all_random_seeds

pytestmark = pytest.mark.filterwarnings(
    "ignore:no rectifier lies", "ignore:the gradient at", "ignore:an image has a single"
)


class _OnPixels(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*(x.flatten(1) if isinstance(x, torch.Tensor) and x.ndim == 4 else x for x in inputs))


def _as_images(value):
    if isinstance(value, tuple):
        return tuple(_as_images(x) for x in value)
    return value if value.ndim == 4 else value[:, :, None, None]


def _cases():
    for case in config:
        if LayerGradCam not in case["algorithms"]:
            continue
        _, model, arguments, layer, noise_tunnel, _ = parse_test_config(case)
        first = arguments["inputs"][0] if isinstance(arguments["inputs"], tuple) else arguments["inputs"]
        if first.ndim != 4:
            model = _OnPixels(model)
            layer = f"model.{layer}"
        arguments = {**arguments, "inputs": _as_images(arguments["inputs"])}
        yield pytest.param(model, layer, arguments, noise_tunnel, id=case["name"])


CASES = list(_cases())
LARGE_GRID = {"scales": (1.0,)}  # The networks of the configuration take one size only.


def _method(model, layer, noise_tunnel=False):
    method = DistinctClassSaliency(model, get_target_layer(model, layer), **LARGE_GRID)
    return NoiseTunnel(method) if noise_tunnel else method


def test_the_configuration_still_has_its_cases():
    names = {case.id for case in CASES}
    assert {"conv_layer_single_target", "basic_layer_in_place", "basic_layer_multiple_tuple_target"} <= names
    assert len(names) >= 7


def _with_targets():
    for case in CASES:
        model, layer, arguments, noise_tunnel = case.values
        count = len(arguments["inputs"][0] if isinstance(arguments["inputs"], tuple) else arguments["inputs"])
        if isinstance(arguments["target"], int):
            # The configuration has no convolutional case with one target an image: here it gets two.
            varied = [(arguments["target"] + i) % 2 for i in range(count)]
            for name, target in (("list", varied), ("tensor", torch.tensor(varied))):
                yield pytest.param(model, layer, {**arguments, "target": target}, noise_tunnel, id=f"{case.id}-{name}")
        else:
            yield case


def _row(value, i, count):
    if isinstance(value, tuple):
        return tuple(_row(x, i, count) for x in value)
    return value[i : i + 1] if isinstance(value, torch.Tensor) and len(value) == count else value


@pytest.mark.parametrize(("model", "layer", "arguments", "noise_tunnel"), list(_with_targets()))
def test_targets_of_a_batch_equal_single_runs(model, layer, arguments, noise_tunnel):
    model = copy.deepcopy(model)
    method = _method(model, layer, noise_tunnel)
    set_all_random_seeds(1234)
    together = method.attribute(**arguments)
    targets, count = arguments["target"], len(arguments["target"])
    for i in range(count):
        single = {name: _row(value, i, count) for name, value in arguments.items() if name != "target"}
        forms = [targets[i], targets[i : i + 1]]
        if isinstance(targets[i], int):
            forms.append(torch.tensor([targets[i]]))
        for target in forms:
            set_all_random_seeds(1234)
            alone = method.attribute(**single, target=target)
            parts = zip(together, alone, strict=True) if isinstance(together, tuple) else [(together, alone)]
            for whole, one in parts:
                torch.testing.assert_close(whole[i : i + 1], one, rtol=0, atol=1e-5)


class _ErrorModule(nn.Module):
    def forward(self, *inputs, **named):
        raise AssertionError("raised inside the model")


def _hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [(name, kind) for name, module in model.named_modules() for kind in names if len(getattr(module, kind))]


@pytest.mark.parametrize("mode", ["normal", "incorrect target", "failing module"])
@pytest.mark.parametrize(("model", "layer", "arguments", "noise_tunnel"), CASES)
def test_no_hook_remains(model, layer, arguments, noise_tunnel, mode):
    model = copy.deepcopy(model)
    arguments = dict(arguments)
    if mode == "incorrect target":
        arguments["target"] = (9999,) * 20
    if mode == "failing module":
        parent, _, name = layer.rpartition(".")
        setattr(model.get_submodule(parent), name, _ErrorModule())
    method = _method(model, layer, noise_tunnel)
    if mode == "normal":
        method.attribute(**arguments)
    else:
        with pytest.raises(AssertionError):
            method.attribute(**arguments)
    assert _hooks(model) == []

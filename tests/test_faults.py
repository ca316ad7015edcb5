"""Tests that a fault at any stage leaves the model, the inputs and the process unchanged, bit for bit."""

import inspect
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PooledCNN, TinyVGG
from untouched import untouched

import dcsm_attr
from dcsm_attr import (
    ClassActivationMaps,
    DenseCRF,
    DistinctClassSaliency,
    FusedSaliency,
    GuidedRectifiers,
    Segmenter,
    Simonyan,
)
from dcsm_attr.attribution import maps as eq
from dcsm_attr.attribution.cached_gradients import compute_gradients
from dcsm_attr.attribution.candidates import choose_candidates, class_scores, explicit_candidates, resolve_target
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.fusion import fuse_maps
from dcsm_attr.attribution.gradients import DetachedParameters, GradientTap, run_forward
from dcsm_attr.attribution.inputs import resize_images
from dcsm_attr.attribution.layers import default_layers
from dcsm_attr.attribution.linear_head import CamFeatures, _LinearLayerTracer
from dcsm_attr.crf.dense_crf import mean_field
from dcsm_attr.crf.permutohedral import PermutohedralLattice
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.segmentation.segmenter import restore_segmentation

PACKAGE = str(Path(dcsm_attr.__file__).parent)


class InjectedError(Exception):
    """No exception that anything could expect."""


@contextmanager
def _watched(on_call):
    """Within this context, every Python function that is called shows its frame first, and may be made to fail."""
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: on_call(frame) if event == "call" else None)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextmanager
def _fault(error, at, number=1):
    """Raise ``error`` where a frame of which ``at`` is true is entered for the ``number``-th time."""
    entered = []

    def on_call(frame):
        if at(frame):
            entered.append(frame.f_code.co_name)
            if len(entered) == number:
                raise error("injected")

    with _watched(on_call):
        yield
    assert len(entered) >= number, "the stage was not reached"


def _in(function):
    code = inspect.unwrap(function).__code__
    return lambda frame: frame.f_code is code


def _hurt(model):
    """A model in the middle of its user's work: flags, gradients and hooks of all kinds."""
    model.train()
    next(iter(model.children())).eval()
    parameters = list(model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], torch.nan)
    parameters[1].requires_grad_(False)
    parameters[2].register_hook(lambda gradient: gradient)
    last = list(model.modules())[-1]
    last.register_forward_hook(lambda module, inputs, output: None)
    last.register_forward_pre_hook(lambda module, inputs: None)
    last.register_full_backward_hook(lambda module, inputs, outputs: None)
    last.register_full_backward_pre_hook(lambda module, outputs: None)
    return model


@pytest.fixture
def image_array():
    return np.random.default_rng(0).integers(0, 255, (18, 24, 3), dtype=np.uint8)


@pytest.fixture
def segmenter():
    model = _hurt(TinyVGG())
    saliency = DistinctClassSaliency(model, ["features.5", "features.8"])
    return Segmenter(model, saliency=saliency, preprocess=Preprocess(size=24))


STAGES = {
    "reading": dcsm_attr.datasets.images.read_image,
    "canvas": Preprocess.__call__,
    "scale": resize_images,
    "forward pass": run_forward,
    "layer tap": GradientTap.forward,
    "rectifier": GuidedRectifiers.__torch_function__,
    "parameters": DetachedParameters.__torch_function__,
    "scores": class_scores,
    "candidate selection": choose_candidates,
    "backward": GradientTap.backward,
    "channel maximum": eq.absolute_channel_maximum,
    "upsampling": eq.upsample,
    "subtraction": eq.subtract,
    "normalization": eq.squash,
    "division": eq.divide_by_maximum,
    "averaging": ClassMaps.map_values,
    "joining": ClassMaps.concatenate,
    "background": eq.background,
    "label scores": eq.label_scores,
    "CRF": DenseCRF.__call__,
    "lattice": PermutohedralLattice.__init__,
    "filter": PermutohedralLattice.filter,
    "mean field": mean_field,
    "restoring": restore_segmentation,
}


@pytest.mark.parametrize("error", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_fault_at_each_stage_of_a_segmentation(segmenter, image_array, stage, error):
    pixels = image_array.copy()
    expected = segmenter.segment(image_array)
    with untouched(segmenter.model), pytest.raises(error, match="injected"), _fault(error, _in(stage)):
        segmenter.segment(image_array)
    assert np.array_equal(image_array, pixels)
    again = segmenter.segment(image_array)
    assert torch.equal(again.probabilities, expected.probabilities)
    assert torch.equal(again.labels, expected.labels)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["at 1.0", "at 0.8", "at 1.2"])
@pytest.mark.parametrize("name", [name for name, _ in PooledCNN().named_modules()])
def test_a_fault_in_the_forward_of_each_module(images, name, number):
    model = _hurt(PooledCNN())
    method = DistinctClassSaliency(model, ["conv2", "conv3"])
    images.requires_grad_()
    expected = method.attribute(images, 1)
    module = model.get_submodule(name)
    forward = _in(type(module).forward)
    with (
        untouched(model, images),
        pytest.raises(InjectedError, match="injected"),
        _fault(InjectedError, lambda frame: forward(frame) and frame.f_locals["self"] is module, number),
    ):
        method.attribute(images, 1)
    assert torch.equal(method.attribute(images, 1), expected)


OTHER_STAGES = {
    "default layers": (lambda m, x: DistinctClassSaliency(m).attribute(x, 1), default_layers),
    "target": (lambda m, x: DistinctClassSaliency(m, "conv2").attribute(x, 1), resolve_target),
    "given candidates": (
        lambda m, x: DistinctClassSaliency(m, "conv2").class_maps(x, None, [1, 2]),
        explicit_candidates,
    ),
    "signed maximum": (
        lambda m, x: DistinctClassSaliency(m, "conv2", variant="caffe").attribute(x, 1),
        eq.signed_channel_maximum,
    ),
    "kept gradients": (lambda m, x: compute_gradients(DistinctClassSaliency(m, "conv2"), x), GradientTap.backward),
    "the second part of a batch": (
        lambda m, x: DistinctClassSaliency(m, "conv2", scales=(1.0,), internal_batch_size=1).attribute(x, 1),
        class_scores,
    ),
    "images": (lambda m, x: Simonyan(m).attribute(x, 1), GradientTap.backward),
    "following a forward pass": (
        lambda m, x: ClassActivationMaps(m).attribute(x, 1),
        _LinearLayerTracer.__torch_function__,
    ),
    "what a score is made of": (lambda m, x: ClassActivationMaps(m).attribute(x, 1), CamFeatures.maps),
    "fusion": (lambda m, x: FusedSaliency(ClassActivationMaps(m), Simonyan(m)).class_maps(x, [1]), fuse_maps),
}


@pytest.mark.parametrize("error", [InjectedError, KeyboardInterrupt])
@pytest.mark.parametrize(("call", "stage"), OTHER_STAGES.values(), ids=OTHER_STAGES)
def test_a_fault_at_the_stages_of_other_calls(images, call, stage, error):
    model = _hurt(PooledCNN())
    images.requires_grad_()
    number = 2 if stage is class_scores else 1
    with untouched(model, images), pytest.raises(error, match="injected"), _fault(error, _in(stage), number):
        call(model, images)
    with untouched(model, images):
        call(model, images)


def _functions_entered(call):
    """How often each function of the package is entered; generators, which are entered again to clean up, left out."""
    counts = {}

    def on_call(frame):
        code = frame.f_code
        # A fault while a context is being left is out of anybody's reach: that is where the cleaning up is.
        if (
            code.co_filename.startswith(PACKAGE)
            and not code.co_flags & inspect.CO_GENERATOR
            and code.co_name != "__exit__"
        ):
            counts[code] = counts.get(code, 0) + 1

    with _watched(on_call):
        call()
    return counts


def test_a_fault_in_any_function_of_the_package(image_array):
    """Also one that the engine knows how to explain or to get around: a RuntimeError."""
    tested = set()
    for variant in ("paper", "matconvnet", "caffe"):
        model = _hurt(PooledCNN())
        saliency = DistinctClassSaliency(model, ["conv2"], variant=variant)
        segmenter = Segmenter(model, saliency=saliency, preprocess=Preprocess(size=24), crf=DenseCRF(iterations=1))
        expected = segmenter.segment(image_array).probabilities
        functions = _functions_entered(lambda segmenter=segmenter: segmenter.segment(image_array))
        assert len(functions) > 50
        assert not functions.keys() <= tested, variant
        for code in functions.keys() - tested:
            for number in {1, functions[code]}:
                # It is raised, explained, or got around.
                with (
                    untouched(model),
                    suppress(RuntimeError),
                    _fault(RuntimeError, lambda frame, code=code: frame.f_code is code, number),
                ):
                    segmenter.segment(image_array)
        assert torch.equal(segmenter.segment(image_array).probabilities, expected)
        tested |= functions.keys()

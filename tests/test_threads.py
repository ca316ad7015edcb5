"""Tests that calls in several threads give the same results as alone, and leave the model unchanged."""

import threading

import numpy as np
import pytest
import torch
from conftest import PooledCNN, TinyVGG
from untouched import untouched

from dcsm_attr import ClassActivationMaps, DenseCRF, DistinctClassSaliency, Segmenter, Simonyan
from dcsm_attr.datasets.preprocess import Preprocess


def _together(*calls, times=4):
    """What each call gives, in a thread of its own, over and over; a fault in one of them is raised."""
    results, begin = [[] for _ in calls], threading.Barrier(len(calls))

    def work(call, of_call):
        begin.wait(60)
        for _ in range(times):
            try:
                of_call.append(call())
            except Exception as error:
                of_call.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_one_method_on_one_model(images):
    model = PooledCNN().train()
    dcs = DistinctClassSaliency(model, ["conv2", "conv3"])
    batches = [torch.randn(2, 3, 16 + 4 * i, 20) for i in range(4)]
    expected = [dcs.attribute(x, 1) for x in batches]
    with untouched(model, *batches):
        results = _together(*(lambda x=x: dcs.attribute(x, 1) for x in batches))
    for of_call, alone in zip(results, expected, strict=True):
        assert all(torch.equal(result, alone) for result in of_call)


def test_different_methods_on_one_model(images):
    model = TinyVGG().train()
    methods = [
        DistinctClassSaliency(model, "features.5"),
        DistinctClassSaliency(model, "features.5", guided=False),
        DistinctClassSaliency(model, ["features.2", "features.5"], variant="caffe", subtract=False),
        Simonyan(model),
        ClassActivationMaps(model),
    ]
    expected = [method.class_maps(images) for method in methods]
    with untouched(model, images):
        results = _together(*(lambda method=method: method.class_maps(images) for method in methods))
    for of_call, alone in zip(results, expected, strict=True):
        for result in of_call:
            assert torch.equal(result.maps, alone.maps)
            assert torch.equal(result.classes, alone.classes)


def test_one_segmenter():
    model = TinyVGG().train()
    segmenter = Segmenter(model, preprocess=Preprocess(size=24), crf=DenseCRF(iterations=2))
    image_arrays = [np.random.default_rng(i).integers(0, 255, (12 + 6 * i, 24, 3), dtype=np.uint8) for i in range(3)]
    expected = [segmenter.segment(image_array).probabilities for image_array in image_arrays]
    with untouched(model):
        results = _together(*(lambda p=p: segmenter.segment(p).probabilities for p in image_arrays), times=2)
    for of_call, alone in zip(results, expected, strict=True):
        assert all(torch.equal(result, alone) for result in of_call)


class _Waits(PooledCNN):
    """In one thread, stands still in the middle of each forward pass until the others are done."""

    def __init__(self):
        super().__init__()
        self.thread, self.stands, self.others_are_done = [], threading.Event(), threading.Event()

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        if threading.get_ident() in self.thread:
            self.stands.set()
            assert self.others_are_done.wait(60)
        x = self.conv2(x).relu_()
        x = torch.nn.functional.relu(self.bn(self.conv3(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def _while_it_stands(model, call, meanwhile):
    """What both give, the second one called within a forward pass of the first."""
    results = []

    def work():
        model.thread.append(threading.get_ident())
        results.append(call())

    thread = threading.Thread(target=work)
    thread.start()
    assert model.stands.wait(60)
    results.append(meanwhile())
    model.others_are_done.set()
    thread.join()
    return results[1], results[0]


@pytest.mark.parametrize("layer", [None, ["conv2", "conv3"]], ids=["layers not yet chosen", "layers named"])
def test_another_thread_runs_the_model_in_the_middle_of_a_forward_pass(images, layer):
    model = _Waits().eval()
    alone = DistinctClassSaliency(model, layer)
    expected = alone.attribute(images, 1), model(images)
    method = DistinctClassSaliency(model, layer)
    results = _while_it_stands(model, lambda: method.attribute(images, 1), lambda: model(images))
    assert torch.equal(results[0], expected[0])
    assert torch.equal(results[1], expected[1])
    assert method.layers == alone.layers


def test_layers_are_chosen_from_the_probing_run_alone(images):
    model = _Waits().eval()
    expected = DistinctClassSaliency(model).layers

    def forward():
        with torch.no_grad():
            return model(images)

    output = forward()
    results = _while_it_stands(model, lambda: DistinctClassSaliency(model).layers, forward)
    assert results[0] == expected
    assert torch.equal(results[1], output)


def test_a_fault_in_one_thread_does_not_reach_the_others(images):
    model = PooledCNN().train()
    dcs = DistinctClassSaliency(model, ["conv2", "conv3"])
    expected = dcs.attribute(images, 1)
    with untouched(model, images):
        faults, results = _together(lambda: dcs.attribute(images, 99), lambda: dcs.attribute(images, 1))
    assert all(isinstance(fault, IndexError) for fault in faults)
    assert all(torch.equal(result, expected) for result in results)


class _Draws(PooledCNN):
    def forward(self, x):
        torch.rand(100)
        return super().forward(x)


def test_a_model_that_uses_random_numbers(images):
    model = _Draws()
    dcs = DistinctClassSaliency(model, ["conv2"])
    with untouched(model, images):
        _together(*[lambda: dcs.attribute(images, 1)] * 4, times=5)


def test_one_crf():
    crf = DenseCRF(iterations=3)
    probabilities = torch.rand(4, 1, 3, 15, 17).softmax(2)
    pictures = torch.randint(0, 256, (4, 1, 3, 15, 17), dtype=torch.uint8)
    expected = [crf(*pair) for pair in zip(probabilities, pictures, strict=True)]
    results = _together(*(lambda p=p, i=i: crf(p, i) for p, i in zip(probabilities, pictures, strict=True)))
    for of_call, alone in zip(results, expected, strict=True):
        assert all(torch.equal(result, alone) for result in of_call)

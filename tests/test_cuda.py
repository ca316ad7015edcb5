"""The same results on a GPU: every test here is skipped, with a reason, where there is none."""

import pytest
import torch
import torchvision
from conftest import PooledCNN, TinyVGG

from dcsm_attr import ClassActivationMaps, DenseCRF, DistinctClassSaliency, FusedSaliency, Segmenter, Simonyan
from dcsm_attr.attribution import gradients
from dcsm_attr.datasets.preprocess import Preprocess
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets
from dcsm_attr.models.fully_convolutional import fully_convolutional
from dcsm_attr.models.segmentation_net import SegmentationNet
from dcsm_attr.models.stochastic import StochasticSelection, use_generator
from dcsm_attr.wsss.ficklenet import stochastic_maps
from dcsm_attr.wsss.losses import OBJECTIVES
from dcsm_attr.wsss.network_segmenter import label_probabilities
from dcsm_attr.wsss.random_walk import random_walk
from dcsm_attr.wsss.region_growing import grow_seeds

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_maps_equal_those_of_the_cpu(variant):
    model, x = TinyVGG(6).eval(), torch.randn(3, 3, 40, 52)
    expected = DistinctClassSaliency(model, variant=variant).class_maps(x, candidates=[0, 2, 3, 5], raw=True)
    result = DistinctClassSaliency(model.cuda(), variant=variant).class_maps(
        x.cuda(), candidates=[0, 2, 3, 5], raw=True
    )
    assert result.maps.device.type == "cuda"
    torch.testing.assert_close(result.maps.cpu(), expected.maps, rtol=0, atol=2e-4)
    torch.testing.assert_close(result.raw.cpu(), expected.raw, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small", "densenet121", "squeezenet1_1"])
def test_batched_and_looped_backwards_agree(name):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval().cuda()
    x = torch.randn(2, 3, 96, 96, device="cuda")
    batched = DistinctClassSaliency(model).class_maps(x, candidates=[1, 2, 3, 4])
    looped = DistinctClassSaliency(model, internal_batch_size=1).class_maps(x, candidates=[1, 2, 3, 4])
    assert (batched.maps - looped.maps).abs().mean() < 1e-3
    assert batched.maps.amax() > 0.3


def test_internal_batch_size_bounds_the_classes_in_one_backward(monkeypatch):
    sizes = []
    original = torch.autograd.grad

    def noted(outputs, inputs, seeds, **options):
        sizes.append(len(seeds) if options["is_grads_batched"] else 1)
        return original(outputs, inputs, seeds, **options)

    monkeypatch.setattr(gradients.torch.autograd, "grad", noted)
    model, x = TinyVGG(8).cuda(), torch.randn(2, 3, 32, 32, device="cuda")
    DistinctClassSaliency(model, "features.5", scales=(1.0,), internal_batch_size=6).class_maps(x, candidates=range(8))
    assert sizes == [3, 3, 2]


def test_bf16_autocast_stays_near_float32():
    model, x = TinyVGG(6).eval().cuda(), torch.randn(2, 3, 64, 64, device="cuda")
    expected = DistinctClassSaliency(model).class_maps(x, candidates=[0, 1, 2]).maps
    with torch.autocast("cuda", torch.bfloat16):
        result = DistinctClassSaliency(model).class_maps(x, candidates=[0, 1, 2]).maps
    assert result.dtype == torch.float32
    assert (result - expected).abs().mean() < 0.03


@pytest.mark.parametrize("size", [None, 3])
def test_class_activation_maps_and_their_fusion_equal_those_of_the_cpu(size):
    model, x = PooledCNN(6).eval().double(), torch.randn(3, 3, 64, 80, dtype=torch.float64)

    def results(images):
        cam = ClassActivationMaps(model, internal_batch_size=size)
        product = FusedSaliency(cam, DistinctClassSaliency(model, "conv2")).class_maps(images, [[0], [1, 2], [4]])
        return cam.attribute(images, [1, 2, 3]), product.maps

    expected = results(x)
    model.cuda()
    for found, of_cpu in zip(results(x.cuda()), expected, strict=True):
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), of_cpu, rtol=0, atol=1e-6)


def test_the_same_input_gives_the_same_output():
    model, x = TinyVGG(6).eval().cuda(), torch.randn(2, 3, 64, 64, device="cuda")
    dcs = DistinctClassSaliency(model)
    assert torch.equal(dcs.attribute(x, 1), dcs.attribute(x, 1))
    crf, probabilities = DenseCRF(), torch.rand(2, 4, 60, 80, device="cuda").softmax(1)
    images = torch.randint(0, 256, (2, 3, 60, 80), dtype=torch.uint8, device="cuda")
    assert torch.equal(crf(probabilities, images), crf(probabilities, images))


@pytest.mark.parametrize("labels", [2, 4, 21])
@pytest.mark.parametrize(
    "widths", [{}, {"bilateral_weight": 10, "bilateral_xy": 80, "bilateral_rgb": 13, "gaussian_weight": 3}]
)
def test_the_crf_equals_that_of_the_cpu(labels, widths):
    coarse = torch.rand(2, 3, 6, 8)
    images = (torch.nn.functional.interpolate(coarse, (180, 240), mode="bilinear") * 255).to(torch.uint8)
    probabilities = torch.nn.functional.interpolate(
        torch.randn(2, labels, 7, 9) * 3, (180, 240), mode="bilinear"
    ).softmax(1)
    expected = DenseCRF(**widths)(probabilities, images)
    result = DenseCRF(**widths)(probabilities.cuda(), images.cuda()).cpu()
    assert (result - expected).abs().max() < 1e-3
    assert (result.argmax(1) == expected.argmax(1)).float().mean() >= 0.999


def test_images_stay_on_the_gpu_until_the_result():
    model = TinyVGG(4).eval()
    image_array = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    expected = Segmenter(model, preprocess=Preprocess(size=80)).segment(image_array, [0, 1])
    result = Segmenter(model.cuda(), preprocess=Preprocess(size=80)).segment(image_array, [0, 1])
    assert result.probabilities.device.type == "cpu"
    assert (result.labels == expected.labels).float().mean() > 0.99


def test_random_state_of_the_gpu_is_preserved():
    model, x = TinyVGG().cuda(), torch.randn(1, 3, 32, 32, device="cuda")
    before = torch.cuda.get_rng_state()
    Simonyan(model).attribute(x, 1)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_memory_of_the_gpu_does_not_grow():
    model, x = TinyVGG().eval().cuda(), torch.randn(2, 3, 64, 64, device="cuda")
    dcs = DistinctClassSaliency(model)
    dcs.attribute(x, 1)
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        dcs.attribute(x, 1)
    assert torch.cuda.memory_allocated() == before


def test_a_batch_on_two_devices_is_refused_by_the_model_itself():
    with pytest.raises(RuntimeError, match="device"):
        DistinctClassSaliency(TinyVGG().cuda()).attribute(torch.randn(1, 3, 32, 32), 1)


@pytest.mark.parametrize("labels", [2, 4, 21])
def test_triton_gives_what_the_plain_operations_give(labels):
    pytest.importorskip("triton")
    images = torch.randint(0, 256, (3, 3, 60, 80), dtype=torch.uint8, device="cuda")
    images[2] = 90
    probabilities = torch.rand(3, labels, 60, 80, device="cuda").softmax(1)
    plain, fused = (DenseCRF(backend=backend)(probabilities, images) for backend in ("torch", "triton"))
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-4)


def test_affinities_and_walks_equal_those_of_the_cpu():
    offsets = neighbor_offsets()
    on_cpu = torch.randn(3, 16, 20, 23, requires_grad=True)
    on_gpu = on_cpu.detach().cuda().requires_grad_()
    expected, result = affinities(on_cpu, offsets, "mean"), affinities(on_gpu, offsets, "mean")
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=0)
    expected.square().sum().backward()
    result.square().sum().backward()
    torch.testing.assert_close(on_gpu.grad.cpu(), on_cpu.grad, rtol=1e-4, atol=1e-6)
    maps = torch.rand(3, 4, 20, 23)
    for border in ("full", "released"):
        walked = random_walk(maps.cuda(), result, offsets, border=border)
        assert walked.device.type == "cuda"
        torch.testing.assert_close(walked.cpu(), random_walk(maps, expected, offsets, border=border), rtol=0, atol=1e-5)


def test_stochastic_selection_draws_and_computes_as_on_the_cpu():
    layer, x = StochasticSelection(8, 4, window=5, rate=0.9), torch.randn(2, 8, 11, 13)
    with use_generator(torch.Generator().manual_seed(0)):
        expected = layer(x)
    maps = list(stochastic_maps(layer, x[:1], [0, 3], 4))
    layer, x = layer.cuda(), x.cuda()
    with use_generator(torch.Generator().manual_seed(0)):
        scores = layer(x)
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(stochastic_maps(layer, x[:1], [0, 3], 4), maps, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-7)


def test_regions_grow_as_on_the_cpu():
    seeds, present = torch.rand(3, 4, 30, 40) < 0.05, torch.ones(3, 3, dtype=torch.bool)
    probabilities = (4 * torch.randn(3, 4, 30, 40)).softmax(dim=1)
    expected = grow_seeds(seeds, probabilities, present, 0.5, 0.5)
    assert torch.equal(grow_seeds(seeds.cuda(), probabilities.cuda(), present.cuda(), 0.5, 0.5).cpu(), expected)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_segmentation_networks_learn_by_what_they_do_on_the_cpu(name):
    logits, images = torch.randn(2, 4, 11, 13), torch.randint(0, 256, (2, 3, 88, 104), dtype=torch.uint8)
    labels, present = torch.randint(0, 4, (2, 11, 13)), torch.ones(2, 3, dtype=torch.bool)
    labels[torch.rand(labels.shape) < 0.7] = 255
    on_gpu = [tensor.cuda() for tensor in (logits, labels, present, images)]
    expected = OBJECTIVES[name](logits, labels, present, images)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = OBJECTIVES[name](*on_gpu)
    for term, value in expected.items():
        assert found[term].device.type == "cuda"
        torch.testing.assert_close(found[term].cpu(), value, rtol=1e-3, atol=1e-4)


def test_label_probabilities_of_a_network_as_on_the_cpu():
    network = SegmentationNet(
        fully_convolutional(torchvision.models.get_model("resnet18", weights=None), 3).backbone, 3, "fcn"
    ).eval()
    images = torch.rand(2, 3, 64, 48)
    expected = label_probabilities(network, images)
    found = label_probabilities(network.cuda(), images.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)

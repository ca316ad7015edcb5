"""Tests of DistinctClassSaliency: closed-form networks, float64 references of all variants, and its interface."""

import math
import warnings

import numpy as np
import pytest
import reference
import torch
from conftest import PooledCNN, TinyVGG
from torch import nn

from dcsm_attr import DistinctClassSaliency, Simonyan
from dcsm_attr.attribution import maps as eq

CONVOLUTIONS = ["features.5", "features.8"]


class GateNet(nn.Module):
    """Channel k is live only where the image is; class c reads channel c (and, with ``shared``, a channel of all)."""

    def __init__(self, shared: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Conv2d(3, 3, 1, bias=False)
        self.read = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.gate.weight.copy_(torch.eye(3)[:, :, None, None])
            self.read.weight.copy_(torch.tensor([[1.0, 0.0, shared], [0.0, 1.0, shared]])[:, :, None, None])

    def forward(self, x):
        return self.read(torch.relu(self.gate(x)))


def _regions():
    """Class 0 on the left, class 1 on the right; nothing between."""
    x = torch.full((1, 3, 4, 6), -1.0)
    x[0, 0, :, :2] = 1.0
    x[0, 1, :, 4:] = 1.0
    return x


@pytest.mark.parametrize("variant", ["paper", "matconvnet"])
def test_separate_classes_give_their_regions_in_closed_form(variant):
    dcs = DistinctClassSaliency(GateNet(), "gate", scales=(1.0,), variant=variant)
    maps = dcs.class_maps(_regions(), attribute_to_layer_input=True, classes=[0, 1]).maps
    expected = torch.zeros(1, 2, 4, 6)
    expected[0, 0, :, :2] = math.tanh(3)
    expected[0, 1, :, 4:] = math.tanh(3)
    torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-19)
    assert eq.background(maps, torch.ones(1, 2, dtype=torch.bool))[0, 0, 0].tolist() == pytest.approx(
        [1 - math.tanh(3)] * 2 + [1.0] * 2 + [1 - math.tanh(3)] * 2, abs=1e-6
    )


@pytest.mark.parametrize("shared", [0.5, 0.8])
def test_subtraction_removes_what_classes_share(shared):
    x = _regions()
    x[0, 2] = 1.0  # A channel that both classes read, live everywhere.
    layer = {"layer": "gate", "scales": (1.0,)}
    raw = DistinctClassSaliency(GateNet(shared), subtract=False, **layer).class_maps(
        x, [0, 1], attribute_to_layer_input=True
    )
    distinct = DistinctClassSaliency(GateNet(shared), **layer).class_maps(x, [0, 1], attribute_to_layer_input=True)
    # Raw: class 0 on the region of class 1 is the shared weight over its own; the own weight is 1.
    assert raw.maps[0, 0, 0, 5].item() == pytest.approx(math.tanh(3 * shared), rel=1e-5)
    assert distinct.maps[0, 0, :, 2:].count_nonzero() == 0
    assert distinct.maps[0, 0, 0, 0].item() == pytest.approx(math.tanh(3), rel=1e-6)
    assert not raw.subtracted.any()
    assert distinct.subtracted.all()


def _layers(model, names=CONVOLUTIONS):
    return [model.get_submodule(name) for name in names]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_paper_variant_equals_the_float64_reference(vgg, guided, subtract):
    x = torch.randn(3, 22, 26)
    candidates = [3, 0, 2]
    expected = reference.paper(vgg, _layers(vgg), x, candidates, guided=guided, subtract=subtract)
    dcs = DistinctClassSaliency(vgg.float(), CONVOLUTIONS, guided=guided, subtract=subtract)
    result = dcs.class_maps(x[None], candidates=candidates, attribute_to_layer_input=True)
    assert result.classes.tolist() == [candidates]
    for k, c in enumerate(candidates):
        np.testing.assert_allclose(result.maps[0, k].numpy(), expected[c], atol=2e-5)
        assert expected[c].max() > 0.1


def _confident_labels_of_batch(vgg):
    """Biases that put two classes above 0.5 and one at some scales only."""
    with torch.no_grad():
        vgg.classifier[2].bias.copy_(torch.tensor([0.4, -0.6, 0.3, -0.2, -0.5, -0.4]))
    return vgg


@pytest.mark.parametrize("seed", range(4))
def test_matconvnet_variant_equals_the_float64_reference(seed):
    torch.manual_seed(seed)
    vgg = _confident_labels_of_batch(TinyVGG(classes=6).eval())
    x = torch.randn(3, 24, 24)
    candidates, accumulated, pictures = reference.matconvnet(vgg, _layers(vgg), x)
    dcs = DistinctClassSaliency(vgg.float(), CONVOLUTIONS, variant="matconvnet")
    result = dcs.class_maps(x[None], attribute_to_layer_input=True)
    assert sorted(c for c in result.classes[0].tolist() if c >= 0) == sorted(candidates)
    assert len(candidates) >= 4
    detected = result.classes[0][result.detected[0]].tolist()
    assert sorted(detected) == sorted(accumulated)
    terms = 3 * len(CONVOLUTIONS) * (len(candidates) - 1)
    for k, c in enumerate(result.classes[0].tolist()):
        if c in accumulated:
            np.testing.assert_allclose(result.maps[0, k].numpy(), accumulated[c] / terms, atol=2e-5)
            picture = eq.squash(result.maps[:, k : k + 1], 3.0).clamp(min=1e-20)[0, 0]
            np.testing.assert_allclose(picture.numpy(), pictures[c], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_caffe_variant_equals_the_float64_reference(seed):
    torch.manual_seed(seed)
    vgg = TinyVGG(classes=6).eval()
    x = torch.randn(3, 24, 20)
    expected = reference.caffe(vgg, _layers(vgg), x)
    result = DistinctClassSaliency(vgg.float(), CONVOLUTIONS, variant="caffe").class_maps(
        x[None], attribute_to_layer_input=True
    )
    assert result.classes[0].tolist() == list(expected)
    assert result.detected.all()
    for k, c in enumerate(expected):
        np.testing.assert_allclose(result.maps[0, k].numpy(), expected[c], atol=5e-5)


def test_the_variants_differ(vgg, images):
    results = [
        DistinctClassSaliency(vgg, CONVOLUTIONS, variant=v).attribute(images, 1, attribute_to_layer_input=True)
        for v in ("paper", "matconvnet", "caffe")
    ]
    for i in range(3):
        for j in range(i):
            assert (results[i] - results[j]).abs().max() > 0.01


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_maps_do_not_depend_on_the_other_images_of_the_batch(vgg, variant):
    x = torch.randn(4, 3, 20, 24)
    dcs = DistinctClassSaliency(_confident_labels_of_batch(TinyVGG(6)).eval(), variant=variant)
    together = dcs.class_maps(x)
    for n in range(4):
        alone, one = dcs.class_maps(x[n : n + 1]), together[n]
        assert alone[0].classes.tolist() == one.classes.tolist()
        assert alone[0].detected.tolist() == one.detected.tolist()
        torch.testing.assert_close(alone[0].maps, one.maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("internal_batch_size", [1, 2, 3, 10])
def test_internal_batches_change_nothing(vgg, internal_batch_size):
    x = torch.randn(5, 3, 20, 24)
    whole = DistinctClassSaliency(vgg).class_maps(x, classes=[[0], [1, 2], [3], [0, 1, 2, 3], [2]])
    parts = DistinctClassSaliency(vgg, internal_batch_size=internal_batch_size).class_maps(
        x, classes=[[0], [1, 2], [3], [0, 1, 2, 3], [2]]
    )
    assert parts.classes.tolist() == whole.classes.tolist()
    torch.testing.assert_close(parts.maps, whole.maps, rtol=0, atol=1e-5)


def test_large_batches_without_arguments_are_computed_in_parts(vgg):
    seen = []
    x = torch.randn(5, 3, 400, 420)

    def forward(x, shift=0.0):
        seen.append(len(x))
        return vgg(x + shift)

    method = DistinctClassSaliency(forward, vgg.features[8], scales=(1.0,))
    parts = method.class_maps(x, candidates=[0, 1])
    # Three of them have just less than half a million pixels.
    assert seen == [3, 2]
    whole = method.class_maps(x, candidates=[0, 1], additional_forward_args=(0.0,))
    assert seen == [3, 2, 5]
    torch.testing.assert_close(parts.maps, whole.maps, rtol=0, atol=1e-5)


def test_internal_batches_slice_arguments_with_one_row_per_image(images):
    class Shifted(PooledCNN):
        def forward(self, x, shift, factor):
            return super().forward(x * factor + shift)

    model, shift = Shifted().eval(), torch.randn(2, 3, 1, 1)
    whole = DistinctClassSaliency(model, "conv2").attribute(images, 1, (shift, 2.0))
    parts = DistinctClassSaliency(model, "conv2", internal_batch_size=1).attribute(images, 1, (shift, 2.0))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    other = DistinctClassSaliency(model, "conv2").attribute(images, 1, (shift.flip(0), 2.0))
    assert (other - whole).abs().max() > 1e-3


def test_flipping_the_image_flips_the_maps(vgg):
    x = torch.randn(1, 3, 32, 32)
    # Convolution kernels made symmetric: the network itself then commutes with the flip.
    with torch.no_grad():
        for module in vgg.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(3)) / 2)
    dcs = DistinctClassSaliency(vgg, CONVOLUTIONS, scales=(1.0,))
    a = dcs.attribute(x, 1, attribute_to_layer_input=True)
    b = dcs.attribute(x.flip(3), 1, attribute_to_layer_input=True)
    torch.testing.assert_close(a, b.flip(3), rtol=0, atol=1e-4)


def test_target_is_always_a_candidate_and_none_is_the_best(vgg, images):
    dcs = DistinctClassSaliency(vgg)
    maps = dcs.class_maps(images)
    best = maps.scores.argmax(1)
    assert torch.equal(dcs.attribute(images), dcs.attribute(images, best))
    worst = maps.scores.argmin(1)
    assert dcs.attribute(images, worst).amax((1, 2, 3)).min() > 0.1


def test_given_candidates_are_subtracted_and_no_others(vgg, images):
    dcs = DistinctClassSaliency(vgg, min_candidates=4)
    two = dcs.class_maps(images, candidates=[0, 3])
    assert two.classes.tolist() == [[0, 3], [0, 3]]
    a = dcs.attribute(images, 3, candidates=[0, 3])
    torch.testing.assert_close(a, two.maps[:, 1:2])
    per_image = dcs.attribute(images, [3, 1], candidates=[[0, 3], [1, 2]])
    torch.testing.assert_close(per_image[:1], a[:1], rtol=0, atol=1e-6)
    # Without a target, the best of the candidates.
    best = torch.where(two.scores[:, 0] > two.scores[:, 3], 0, 3)
    assert torch.equal(dcs.attribute(images, candidates=[0, 3]), dcs.attribute(images, best, candidates=[0, 3]))


def test_known_classes_replace_detection_and_others_are_added(vgg, images):
    result = DistinctClassSaliency(vgg).class_maps(images, classes=[[2], [0, 1]])
    for n, known in enumerate(([2], [0, 1])):
        classes = result.classes[n].tolist()
        assert sorted(classes[: len(known)]) == known
        fillers = classes[len(known) :]
        rest = [c for c in result.scores[n].argsort(descending=True).tolist() if c not in known]
        assert fillers == rest[: 3 - len(known)]
        assert result.detected[n].tolist() == [True] * len(known) + [False] * len(fillers)


def test_a_single_candidate_gives_the_raw_map_with_a_warning(vgg, images):
    raw = DistinctClassSaliency(vgg, subtract=False).attribute(images, 1)
    with pytest.warns(UserWarning, match="nothing can be subtracted"):
        result = DistinctClassSaliency(vgg).class_maps(images, candidates=[1])
    assert not result.subtracted.any()
    torch.testing.assert_close(result.maps, raw)
    with pytest.warns(UserWarning, match="nothing can be subtracted"):
        one_class = DistinctClassSaliency(TinyVGG(classes=1).eval()).attribute(images)
    assert one_class.max() > 0.5


def test_only_images_with_one_candidate_have_raw_maps(vgg, images):
    with pytest.warns(UserWarning, match="nothing can be subtracted"):
        mixed = DistinctClassSaliency(vgg).class_maps(images, candidates=[[1, -1], [0, 2]])
    assert mixed.subtracted.tolist() == [False, True]
    raw = DistinctClassSaliency(vgg, subtract=False).attribute(images[:1], 1)
    distinct = DistinctClassSaliency(vgg).class_maps(images[1:], candidates=[0, 2])
    torch.testing.assert_close(mixed.maps[0, :1], raw[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.maps[1], distinct.maps[0], rtol=0, atol=1e-5)
    assert mixed.maps[0, 1].count_nonzero() == 0


def test_nothing_detected_uses_the_best_class_and_reports_it(vgg, images):
    with torch.no_grad():
        vgg.classifier[2].bias.fill_(-20.0)
    result = DistinctClassSaliency(vgg).class_maps(images)
    assert result.nothing_detected.all()
    assert not result.detected.any()
    best = result.scores.argmax(1, keepdim=True)
    assert torch.equal(result.foreground, result.classes == best)


@pytest.mark.parametrize("variant", ["paper", "matconvnet", "caffe"])
def test_raw_maps_are_returned_on_request(vgg, images, variant):
    result = DistinctClassSaliency(vgg, variant=variant).class_maps(images, classes=[0, 1, 2], raw=True)
    alone = DistinctClassSaliency(vgg, variant=variant, subtract=False).class_maps(images, classes=[0, 1, 2])
    torch.testing.assert_close(result.raw, alone.maps)
    assert DistinctClassSaliency(vgg).class_maps(images).raw is None


def test_settings_and_layers_are_readable(vgg):
    dcs = DistinctClassSaliency(vgg, variant="matconvnet")
    assert dcs.layers == ("features.2", "features.5", "features.8")
    assert dcs.scales == (0.8, 1.0, 1.2)
    assert dcs.min_candidates == 4
    assert DistinctClassSaliency(vgg, variant="caffe").scales == (1.0,)
    assert dcs.settings["layers"] == list(dcs.layers)
    assert dcs.settings["variant"] == "matconvnet"
    assert dcs.get_name() == "Distinct Class Saliency"


def test_modules_names_and_lists_of_them_are_layers(vgg, images):
    by_name = DistinctClassSaliency(vgg, ["features.5", "features.8"]).attribute(images, 1)
    by_module = DistinctClassSaliency(vgg, [vgg.features[5], vgg.features[8]]).attribute(images, 1)
    assert torch.equal(by_name, by_module)
    assert DistinctClassSaliency(vgg, vgg.features[5]).layers == ("features.5",)
    function = DistinctClassSaliency(lambda x: vgg(x), [vgg.features[5], vgg.features[8]]).attribute(images, 1)
    assert torch.equal(by_name, function)


def test_given_layers_use_outputs_and_default_layers_use_inputs(vgg, images):
    names = list(DistinctClassSaliency(vgg).layers)
    default = DistinctClassSaliency(vgg).attribute(images, 1)
    assert torch.equal(default, DistinctClassSaliency(vgg, names).attribute(images, 1, attribute_to_layer_input=True))
    output = DistinctClassSaliency(vgg, names).attribute(images, 1)
    assert torch.equal(output, DistinctClassSaliency(vgg).attribute(images, 1, attribute_to_layer_input=False))
    assert (output - default).abs().max() > 1e-3


def test_position_targets_seed_one_position(vgg, images):
    dcs = DistinctClassSaliency(vgg, CONVOLUTIONS, scales=(1.0,))
    corner = dcs.attribute(images, (1, 0, 0))
    assert corner[..., -6:, -6:].count_nonzero() == 0
    assert corner[..., :8, :8].max() > 0.5
    mixed = dcs.attribute(images, [(1, 0, 0), (2, 4, 5)])
    torch.testing.assert_close(mixed[:1], corner[:1])
    with pytest.raises(ValueError, match=r"scales=\(1.0,\)"):
        DistinctClassSaliency(vgg).attribute(images, (1, 0, 0))


def test_constant_layers_are_reported(cnn, images):
    with pytest.warns(UserWarning, match=r"bn is the same at every position"):
        DistinctClassSaliency(_LinearTail().eval(), ["conv", "bn"]).attribute(images, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DistinctClassSaliency(cnn).attribute(images, 1)


class _LinearTail(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.bn(torch.relu(self.conv(x))).mean((2, 3)))


def test_a_warning_is_issued_if_no_rectifier_is_guided(images):
    with pytest.warns(UserWarning) as caught:
        DistinctClassSaliency(_LinearTail().eval(), "bn").attribute(images, 1)
    said = [warning for warning in caught if "nothing was guided" in str(warning.message)]
    assert len(said) == 1
    assert said[0].filename == __file__


def test_score_maps_and_plain_classifiers_have_different_activations(vgg, cnn, images):
    maps, plain = DistinctClassSaliency(vgg).class_maps(images), DistinctClassSaliency(cnn).class_maps(images)
    torch.testing.assert_close(maps.scores, vgg(images).amax((2, 3)).sigmoid())
    torch.testing.assert_close(plain.scores, cnn(images).softmax(1))
    sigmoid = DistinctClassSaliency(cnn, activation="sigmoid").class_maps(images)
    torch.testing.assert_close(sigmoid.scores, cnn(images).sigmoid())


def test_the_same_input_gives_the_same_output(vgg, images):
    dcs = DistinctClassSaliency(vgg)
    assert torch.equal(dcs.attribute(images), dcs.attribute(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(vgg, images, dtype):
    expected = DistinctClassSaliency(vgg).class_maps(images, candidates=[0, 1, 2]).maps
    result = DistinctClassSaliency(vgg.to(dtype)).class_maps(images.to(dtype), candidates=[0, 1, 2]).maps
    assert result.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float64 else 0.25
    assert (result - expected).abs().max() < tolerance
    assert (result - expected).abs().mean() < tolerance / 10


def test_autocast(vgg, images):
    expected = DistinctClassSaliency(vgg).class_maps(images, candidates=[0, 1, 2]).maps
    with torch.autocast("cpu", torch.bfloat16):
        result = DistinctClassSaliency(vgg).class_maps(images, candidates=[0, 1, 2]).maps
    assert result.dtype == torch.float32
    assert (result - expected).abs().mean() < 0.03


def test_simonyan_is_the_squashed_input_gradient(vgg, images):
    result = Simonyan(vgg).class_maps(images, classes=[0, 2])
    for n in range(2):
        x = images[n : n + 1].clone().requires_grad_()
        for k, c in enumerate(result.classes[n].tolist()):
            (gradient,) = torch.autograd.grad(vgg(x)[0, c].sum(), x)
            m = gradient.abs().amax(1)[0]
            torch.testing.assert_close(result.maps[n, k], torch.tanh(8 * m / m.max()), rtol=1e-4, atol=1e-5)
    assert not result.subtracted.any()
    assert torch.equal(Simonyan(vgg).attribute(images, [0, 2])[0, 0], result.select(torch.tensor([0, 2]))[0, 0])
    assert Simonyan(vgg, alpha=2.0).attribute(images, 0).mean() < Simonyan(vgg).attribute(images, 0).mean()


def test_classes_are_detected_with_the_given_pooling(vgg, images):
    """The bias of each class is set so that its maximum is above zero and its average below."""
    with torch.no_grad():
        maps = vgg(images[:1])
        vgg.classifier[-1].bias -= (maps.amax((0, 2, 3)) + maps.mean((0, 2, 3))) / 2
        maps = vgg(images[:1])
    by_maximum = DistinctClassSaliency(vgg, scales=(1.0,)).class_maps(images[:1])
    by_average = DistinctClassSaliency(vgg, scales=(1.0,), pooling="average").class_maps(images[:1])
    assert by_maximum.detected.all()
    assert by_average.nothing_detected.all()
    assert torch.allclose(by_average.scores, maps.mean((2, 3)).sigmoid(), atol=1e-6)
    assert by_maximum.classes.shape[1] == 4
    assert by_average.classes.shape[1] == 3
    with pytest.raises(ValueError, match="pooling must be one of 'max', 'average', 'logsumexp'; got 'median'"):
        DistinctClassSaliency(vgg, pooling="median")

"""Tests of class activation maps: values by hand, a float64 reference, torchcam and Grad-CAM."""

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
import torchvision
from captum.attr import Attribution, LayerGradCam, NoiseTunnel
from conftest import PooledCNN, TinyVGG
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from untouched import untouched

from dcsm_attr import ClassActivationMaps, Segmenter
from dcsm_attr.attribution.candidates import class_scores
from dcsm_attr.attribution.inputs import default_batch_size
from dcsm_attr.attribution.linear_head import find_cam_features
from dcsm_attr.attribution.maps import divide_by_maximum, upsample
from dcsm_attr.datasets.preprocess import Preprocess

PLAIN = {"scales": (1.0,), "mirrored": False}


class _ByHand(nn.Module):
    """Features are the image's first two colors, pooled; three classes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, -1], [-1, 2], [-1, -1]]))
            self.fc.bias.copy_(torch.tensor([0.5, -1, 4]))

    def forward(self, images):
        return self.fc(images[:, :2].mean((2, 3)))


IMAGE = torch.tensor([[[[1.0, 2], [0, 3]], [[2, 0], [1, 0]], [[9, 9], [9, 9]]]])


def test_plain_by_hand():
    result = ClassActivationMaps(_ByHand(), **PLAIN).class_maps(IMAGE, [0, 1, 2])
    # A - B, 2 B - A, and -A - B, which nothing is left of; the biases belong to no position.
    expected = {0: [[0, 2 / 3], [0, 1]], 1: [[1, 0], [2 / 3, 0]], 2: [[0, 0], [0, 0]]}
    # Means 1.5 and 0.75 give scores 1.25, -1 and 1.75.
    assert result.classes.tolist() == [[2, 0, 1]]
    torch.testing.assert_close(result.scores, torch.tensor([[1.25, -1, 1.75]]).softmax(1))
    for slot, c in enumerate([2, 0, 1]):
        torch.testing.assert_close(result.maps[0, slot], torch.tensor(expected[c], dtype=torch.float32))
    assert result.detected.all()
    assert not result.subtracted.any()
    assert result.raw is None


def test_the_sum_over_scales_by_hand():
    """Constant rows resize to constant rows: of two columns one is left at half size, their mean before rectification.

    At scale 1 class 0 has (-2, 4) in its columns; at scale 1/2 it has 1 everywhere. The sum (1, 5), divided by 5.
    """
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([-2.0, 4])
    method = ClassActivationMaps(_ByHand(), scales=(1.0, 0.5), mirrored=False)
    torch.testing.assert_close(method.attribute(image, 0)[0, 0], torch.tensor([[0.2, 1], [0.2, 1]]))


def test_mirrored_images_by_hand():
    """A network that sees the left column alone sees the right one in the mirror."""

    class OneEyed(_ByHand):
        def forward(self, images):
            return super().forward(images * torch.tensor([1.0, 0.5]))

    image = torch.zeros(1, 3, 1, 2)
    image[0, 0] = torch.tensor([3.0, 4])
    # 3 and 4/2 as it is; in the mirror 4 and 3/2, which belong right and left.
    plain = ClassActivationMaps(OneEyed(), **PLAIN).attribute(image, 0)
    torch.testing.assert_close(plain.flatten(), torch.tensor([1, 2 / 3]))
    mirrored = ClassActivationMaps(OneEyed(), scales=(1.0,)).attribute(image, 0)
    torch.testing.assert_close(mirrored.flatten(), torch.tensor([4.5 / 6, 1]))


def _features_of_vgg(model):
    layers = [*model.features, *model.classifier[:2]]

    def features(image):
        x = image[None].double()
        for layer in layers:
            x = layer(x)
        return x[0].detach().numpy()

    return features, model.classifier[2].weight.detach().double().numpy()[:, :, 0, 0]


def _features_of_cnn(model):
    def features(image):
        x = model.conv1(image[None].double()).clamp(min=0)
        x = model.conv2(x).clamp(min=0)
        return model.bn(model.conv3(x)).clamp(min=0)[0].detach().numpy()

    return features, model.fc.weight.detach().double().numpy()


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5, 1.5, 2.0), (1.3, 0.8)])
@pytest.mark.parametrize("kind", ["score maps", "pooled"])
def test_equals_the_float64_reference(images, kind, scales, mirrored):
    model, of = (TinyVGG(in_place=False), _features_of_vgg) if kind == "score maps" else (PooledCNN(), _features_of_cnn)
    model = model.eval().double()
    result = ClassActivationMaps(model, scales=scales, mirrored=mirrored).class_maps(images.double(), [0, 1, 3])
    found = ClassActivationMaps(model.float(), scales=scales, mirrored=mirrored).class_maps(images, [0, 1, 3])
    model.double()
    for i, image in enumerate(images.double()):
        expected = reference.class_activation_maps(*of(model), image, [0, 1, 3], scales, mirrored)
        assert sum(value.max() == 1 for value in expected.values()) >= 1
        for slot, c in enumerate(result.classes[i].tolist()):
            np.testing.assert_allclose(result.maps[i, slot].numpy(), expected[c], rtol=0, atol=1e-6)
            np.testing.assert_allclose(found.select(torch.tensor([c, c]))[i, 0].numpy(), expected[c], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_plain_cam_equals_torchcam(name):
    torchcam = pytest.importorskip("torchcam.methods", reason="an extra: pip install 'dcsm_attr[peers]'")
    model = getattr(torchvision.models, name)(weights=None, num_classes=6).eval().double()
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    # The pool of the one is a module, that of the other a mean in its forward.
    with torchcam.CAM(model, {"resnet18": "layer4", "shufflenet_v2_x0_5": "conv5"}[name], "fc") as extractor:
        model(image)
        raw = torch.cat([extractor(c, normalized=False)[0] for c in range(6)])
    result = ClassActivationMaps(model, **PLAIN).class_maps(image, range(6))
    expected = divide_by_maximum(upsample(raw[None].clamp(min=0), (96, 64)))
    assert (expected.amax((2, 3)) == 1).sum() >= 2
    torch.testing.assert_close(result.maps, expected[:, result.classes[0]].float(), rtol=0, atol=1e-6)


def test_grad_cam_before_average_pooling_is_cam_divided_by_positions():
    model = torchvision.models.resnet18(weights=None, num_classes=6).eval().double()
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        maps = find_cam_features(model, (images,)).maps(torch.arange(6).expand(2, -1))
    assert maps.shape == (2, 6, 3, 2)
    for c in range(6):
        grad_cam = LayerGradCam(model, model.layer4).attribute(images, c, relu_attributions=True)
        torch.testing.assert_close(grad_cam[:, 0], maps[:, c].relu() / 6)


def test_the_mirrored_maps_of_a_mirrored_image_are_the_mirrored_maps(cnn, images):
    def difference(method, c):
        return (method.attribute(images.flip(-1), c) - method.attribute(images, c).flip(-1)).abs().max()

    for c in range(3):
        assert difference(ClassActivationMaps(cnn), c) < 1e-5
    assert difference(ClassActivationMaps(cnn, mirrored=False), 0) > 0.05, "symmetric anyhow"


@pytest.mark.parametrize("scales", [(1.0, 0.5), (0.5, 1.0), (0.5, 1.2)])
def test_scores_are_those_of_the_images_at_the_scale_nearest_to_one(vgg, images, scales):
    vgg.classifier[2].bias.data += torch.tensor([3.0, -3, 3, -3])
    result = ClassActivationMaps(vgg, scales=scales, pooling="average").class_maps(images)
    nearest = images
    if 1.0 not in scales:
        nearest = F.interpolate(images, (24, 29), mode="bicubic", antialias=True)
    expected = class_scores(vgg(nearest).detach(), "auto", "average")
    torch.testing.assert_close(result.scores, expected)
    assert sorted(result.classes[0].tolist()) == [0, 2]
    assert result.detected.all()
    assert torch.equal(result.maps, ClassActivationMaps(vgg, scales=scales).class_maps(images, [0, 2]).maps)


def test_the_best_class_is_used_if_nothing_is_detected(vgg, images):
    result = ClassActivationMaps(vgg, threshold=1.0).class_maps(images)
    assert result.classes.tolist() == result.scores.argmax(1, keepdim=True).tolist()
    assert result.nothing_detected.all()
    assert torch.equal(ClassActivationMaps(vgg, threshold=1.0).attribute(images), result.maps)


def test_images_may_have_different_classes(vgg, images):
    method = ClassActivationMaps(vgg)
    result = method.class_maps(images, [[3], [0, 2]], raw=True)
    assert sorted(result.classes.tolist()[0]) == [-1, 3]
    assert result.maps[0, 1].count_nonzero() == 0
    assert torch.equal(result.raw, result.maps)
    for i, known in enumerate([[3], [0, 2]]):
        alone = method.class_maps(images[i : i + 1], known)
        assert torch.equal(alone.classes, result[i].classes)
        torch.testing.assert_close(alone.maps, result[i].maps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mirrored", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_of_a_batch(vgg, size, mirrored):
    sizes = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vgg

        def forward(self, x):
            sizes.append(len(x))
            return self.net(x)

    images = torch.randn(4, 3, 20, 24)
    expected = ClassActivationMaps(vgg, mirrored=mirrored).class_maps(images, [0, 1])
    result = ClassActivationMaps(Counted(), mirrored=mirrored, internal_batch_size=size).class_maps(images, [0, 1])
    torch.testing.assert_close(result.maps, expected.maps, rtol=0, atol=1e-5)
    assert max(sizes) == min(size, 8 if mirrored else 4)
    assert sum(sizes) == 4 * 4 * (2 if mirrored else 1)


def test_a_large_batch_is_run_in_parts(cnn):
    sizes = []
    handle = cnn.fc.register_forward_hook(lambda _, inputs, output: sizes.append(len(output)))
    images = torch.randn(3, 3, 512, 512)
    assert default_batch_size((images,), ()) == 2
    ClassActivationMaps(cnn, scales=(1.0, 2.0)).attribute(images, 1)
    handle.remove()
    assert sizes == [2, 2, 1, 1, 1, 1, 2, 1, 1]


class _Shifted(nn.Module):
    """Takes a row for each image, something that is not, and a second image."""

    def __init__(self):
        super().__init__()
        self.net = PooledCNN()

    def forward(self, x, y, shift, factor, name):
        assert name == "whole"
        assert len(shift) == len(x) == len(y)
        assert factor.shape == (3,)
        return self.net(factor[:, None, None] * (x + y) + shift[:, None, None, None])


@pytest.mark.parametrize("size", [None, 1, 3])
def test_further_inputs_and_arguments(size):
    model, (x, y) = _Shifted().eval(), torch.randn(2, 2, 3, 20, 24)
    shift, factor = torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 1.0, 1.5])
    method = ClassActivationMaps(model, internal_batch_size=size)
    result = method.attribute((x, y), [1, 2], (shift, factor, "whole"))
    assert len(result) == 2
    assert torch.equal(result[0], result[1])
    assert result[0].data_ptr() != result[1].data_ptr()
    for i in range(2):
        expected = _on_sum(model.net, x[i], y[i], lambda s, i=i: factor[:, None, None] * s + shift[i], [1, 2][i])
        torch.testing.assert_close(result[0][i], expected, rtol=0, atol=1e-5)


def _on_sum(net, x, y, change, c):
    class Changed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z):
            return self.net(change(z))

    return ClassActivationMaps(Changed()).attribute((x + y)[None], c)[0]


@pytest.mark.parametrize(
    "target", [0, -1, (3,), [1, 2], torch.tensor([1, 2]), torch.tensor(2), torch.tensor([2]), [(1,), (2,)]]
)
def test_captums_target_forms(cnn, images, target):
    method = ClassActivationMaps(cnn, scales=(1.0,))
    maps = method.class_maps(images, range(5))
    plain = {0: [0, 0], -1: [4, 4], (3,): [3, 3]}.get(target if isinstance(target, (int, tuple)) else None)
    if plain is None:
        plain = [2, 2] if isinstance(target, torch.Tensor) and target.numel() == 1 else [1, 2]
    torch.testing.assert_close(method.attribute(images, target), maps.select(torch.tensor(plain)), rtol=0, atol=1e-6)


def test_it_is_a_captum_attribution(cnn, images):
    method = ClassActivationMaps(cnn)
    assert isinstance(method, Attribution)
    assert method.get_name() == "Class Activation Maps"
    assert not method.has_convergence_delta()
    assert callable(ClassActivationMaps.attribute.__wrapped__)
    with pytest.raises(NotImplementedError):
        method.attribute_future()
    single = method.attribute(images.requires_grad_(), 1)
    assert (single.shape, single.dtype) == ((2, 1, 20, 24), torch.float32)
    assert single.is_contiguous()
    assert not single.requires_grad
    (in_tuple,) = method.attribute((images,), 1)
    assert torch.equal(in_tuple, single)
    torch.manual_seed(5)
    smooth = NoiseTunnel(method).attribute(images, nt_samples=3, stdevs=0.1, target=[1, 2])
    torch.manual_seed(5)
    noisy = torch.normal(torch.repeat_interleave(images, 3, dim=0), 0.1)
    expected = method.attribute(noisy, [1, 1, 1, 2, 2, 2]).view(2, 3, 1, 20, 24).mean(1)
    torch.testing.assert_close(smooth, expected, rtol=0, atol=1e-5)


def test_a_function_that_calls_the_model(cnn, images):
    expected = ClassActivationMaps(cnn).attribute(images, 1)
    assert torch.equal(ClassActivationMaps(lambda x: cnn(x)).attribute(images, 1), expected)


def test_inference_mode_is_supported(cnn, images):
    expected = ClassActivationMaps(cnn).attribute(images, 1)
    with torch.inference_mode():
        found = ClassActivationMaps(cnn).attribute(images.clone(), 1)
    assert torch.equal(found, expected)


class _Failing(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.net, self.at, self.calls = PooledCNN(), at, []

    def forward(self, x):
        self.calls.append(x.shape)
        if len(self.calls) == self.at:
            raise KeyError("a fault of the model")
        return self.net(x)


@pytest.mark.parametrize("at", [1, 4])
def test_nothing_is_left_behind_after_a_fault_of_the_model(at, images):
    model = _Failing(at).train()
    with untouched(model, images), pytest.raises(KeyError, match="a fault of the model"):
        ClassActivationMaps(model).attribute(images, 1)
    assert len(model.calls) == at
    assert ClassActivationMaps(model).attribute(images, 1).max() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must be ratios"),
        ({"scales": (1.0, 0.0)}, "scales must be ratios"),
        ({"scales": (9.0,)}, "scales must be ratios"),
        ({"activation": "relu"}, "activation must be"),
        ({"pooling": "median"}, "pooling must be"),
        ({"threshold": 1.5}, "threshold must be between"),
        ({"internal_batch_size": 0}, "internal_batch_size must be at least 1"),
    ],
)
def test_settings_out_of_range(cnn, options, message):
    with pytest.raises(ValueError, match=message):
        ClassActivationMaps(cnn, **options)


def test_the_settings_contain_everything_that_maps_depend_on(cnn):
    assert ClassActivationMaps(cnn, threshold=0.4, pooling="average").settings == {
        "method": "Class Activation Maps",
        "scales": [1.0, 0.5, 1.5, 2.0],
        "mirrored": True,
        "activation": "auto",
        "pooling": "average",
        "threshold": 0.4,
    }


def test_target_positions_raise(vgg, images):
    with pytest.raises(ValueError, match="names a position of the score map, but a class activation map"):
        ClassActivationMaps(vgg).attribute(images, (1, 0, 0))


def test_known_classes_out_of_range(vgg, images):
    with pytest.raises(ValueError, match="classes must lie between 0 and 3"):
        ClassActivationMaps(vgg).class_maps(images, [7])


class _OneSize(PooledCNN):
    def forward(self, x):
        if x.shape[2:] != (20, 24):
            raise RuntimeError("20 x 24 alone")
        return super().forward(x)


def test_errors_of_a_fixed_size_model_mention_the_scales(images):
    model = _OneSize().eval()
    with pytest.raises(RuntimeError, match=r"failed on the images at another scale.*pass scales=\(1.0,\)"):
        ClassActivationMaps(model).attribute(images, 1)
    assert ClassActivationMaps(model, scales=(1.0,)).attribute(images, 1).max() == 1
    with pytest.raises(RuntimeError, match="^20 x 24 alone"):
        ClassActivationMaps(model, scales=(1.0,)).attribute(images[:, :, 1:], 1)


def test_scores_that_are_not_finite(cnn, images):
    overflowing = PooledCNN().eval()
    with torch.no_grad():
        cnn.fc.weight[1] = torch.nan
        overflowing.fc.weight.fill_(3e38)
    with pytest.raises(ValueError, match="scores contain NaN"):
        ClassActivationMaps(cnn).attribute(images, 1)
    with pytest.raises(ValueError, match="(scores|maps) contain NaN or infinite"):
        ClassActivationMaps(overflowing).attribute(images, 1)


class _OverflowsLarge(PooledCNN):
    """At other sizes than the first, its features are infinite."""

    def forward(self, x):
        return super().forward(x if x.shape[2] == 20 else x * 1e38)


def test_infinite_maps_at_another_scale(images):
    model = _OverflowsLarge().eval()
    with pytest.raises(ValueError, match="maps contain NaN or infinite values"):
        ClassActivationMaps(model, scales=(1.0, 2.0)).attribute(images, 1)
    assert ClassActivationMaps(model, scales=(1.0,)).attribute(images, 1).max() == 1


def test_models_that_cannot_be_explained():
    with pytest.raises(TypeError, match="DataParallel runs the model in threads"):
        ClassActivationMaps(nn.DataParallel(PooledCNN()))
    with pytest.raises(TypeError, match="must be a module or a function"):
        ClassActivationMaps("resnet18")


@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 3), st.integers(2, 19), st.integers(2, 19)),
    st.sampled_from([(1.0,), (0.5, 1.7), (1.0, 0.1)]),
    st.booleans(),
    st.sampled_from([0.0, 1e-30, 1.0, 1e4]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_every_map_is_in_its_range(seed, shape, scales, mirrored, scale, dtype, threshold):
    torch.manual_seed(seed)
    count, height, width = shape
    model = PooledCNN().to(dtype)
    with torch.no_grad():
        model.fc.weight *= scale
    images = torch.randn(count, 3, height, width).to(dtype)
    method = ClassActivationMaps(model, scales=scales, mirrored=mirrored, activation="sigmoid", threshold=threshold)
    result = method.class_maps(images)
    assert result.maps.shape == (count, result.classes.shape[1], height, width)
    assert result.maps.dtype == result.scores.dtype == torch.float32
    assert ((result.maps >= 0) & (result.maps <= 1)).all(), "NaN is neither"
    assert result.maps[result.classes < 0].count_nonzero() == 0
    # Divided by the maximum, or nothing at all.
    assert set(result.maps.amax((2, 3)).flatten().tolist()) <= {0.0, 1.0}
    # What a map says does not depend on the unit of the scores.
    with torch.no_grad():
        model.fc.weight *= 4
    again = method.class_maps(images, [[c for c in row if c >= 0] for row in result.classes.tolist()])
    for i in range(count):
        for c in again[i].classes[0].tolist():
            (slot,) = (result[i].classes[0] == c).nonzero()[:, 0].tolist()
            (same,) = (again[i].classes[0] == c).nonzero()[:, 0].tolist()
            if scale != 1e-30:
                torch.testing.assert_close(again[i].maps[0, same], result[i].maps[0, slot], rtol=0, atol=1e-5)


def test_a_low_precision_model_gives_float32_maps(cnn, images):
    expected = ClassActivationMaps(cnn).class_maps(images, [0, 1]).maps
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            evidence = find_cam_features(cnn, (images,))
        assert evidence.maps(torch.tensor([[0], [1]])).dtype == torch.float32
        result = ClassActivationMaps(cnn).class_maps(images, [0, 1])
    assert 0 < (result.maps - expected).abs().mean() < 0.03


def test_a_segmenter_accepts_it(cnn):
    image_array = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    segmenter = Segmenter(cnn, saliency=ClassActivationMaps(cnn), preprocess=Preprocess(size=40), crf=None)
    result = segmenter.segment(image_array, [1, 2], raw=True)
    assert result.settings["saliency"]["method"] == "Class Activation Maps"
    canvas = Preprocess(size=40)(Image.fromarray(image_array))
    maps = ClassActivationMaps(cnn).class_maps(canvas.tensor[None], [1, 2])
    foreground = canvas.crop(maps.maps[0])
    background = 1 - foreground.amax(0, keepdim=True)
    expected = torch.cat([background, foreground])
    assert result.classes == tuple(maps.classes[0].tolist())
    torch.testing.assert_close(result.probabilities, expected / expected.sum(0), rtol=1e-5, atol=1e-6)
    assert segmenter.segment(image_array).class_maps.maps.shape[1] >= 1

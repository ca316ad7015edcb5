"""Tests of the methods with the tools of Captum: metrics, visualization and NoiseTunnel."""

import numpy as np
import pytest
import torch
from captum.attr import GradientAttribution, LayerAttribution, NoiseTunnel
from captum.attr import visualization as captum_visualization
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max

from dcsm_attr import DistinctClassSaliency, Simonyan
from dcsm_attr.segmentation.visualization import visualize_attribution


@pytest.fixture
def dcs(vgg):
    return DistinctClassSaliency(vgg)


def test_it_is_a_layer_and_a_gradient_attribution(dcs):
    assert isinstance(dcs, LayerAttribution)
    assert isinstance(dcs, GradientAttribution)
    assert not dcs.has_convergence_delta()
    assert not dcs.multiplies_by_inputs
    assert callable(DistinctClassSaliency.attribute.__wrapped__)
    assert callable(Simonyan.attribute.__wrapped__)
    for method in (dcs, Simonyan(dcs.forward_func)):
        with pytest.raises(NotImplementedError):
            method.attribute_future()


def test_results_have_captums_form(dcs, images):
    single = dcs.attribute(images.requires_grad_(), 1)
    assert (single.shape, single.dtype) == ((2, 1, 20, 24), torch.float32)
    assert single.is_contiguous()
    assert not single.requires_grad
    assert single.grad_fn is None
    assert 0 <= single.min() < single.max() <= 1
    (in_tuple,) = dcs.attribute((images,), 1)
    assert torch.equal(in_tuple, single)


def test_several_image_inputs_give_one_map_per_input(vgg):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vgg

        def forward(self, a, b):
            return self.net(a + b)

    a, b = torch.randn(2, 3, 20, 24), torch.randn(2, 3, 20, 24)
    result = DistinctClassSaliency(Two(), "net.features.5").attribute((a, b), 1)
    assert len(result) == 2
    expected = DistinctClassSaliency(vgg, "features.5").attribute(a + b, 1)
    for part in result:
        torch.testing.assert_close(part, expected, rtol=0, atol=1e-4)
    assert result[0].data_ptr() != result[1].data_ptr()


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("target", [1, [1, 2]])
def test_noise_tunnel(dcs, images, kind, target):
    result = NoiseTunnel(dcs).attribute(images, nt_type=kind, nt_samples=3, stdevs=0.1, target=target)
    assert result.shape == (2, 1, 20, 24)
    torch.manual_seed(1)
    samples = torch.repeat_interleave(images, 3, dim=0)
    torch.manual_seed(5)
    tunnel = NoiseTunnel(dcs).attribute(images, nt_type=kind, nt_samples=3, stdevs=0.1, target=target)
    torch.manual_seed(5)
    noisy = torch.normal(samples, 0.1)
    rows = target if isinstance(target, int) else [t for t in target for _ in range(3)]
    maps = dcs.attribute(noisy, rows).view(2, 3, 1, 20, 24)
    expected = {
        "smoothgrad": maps.mean(1),
        "smoothgrad_sq": maps.square().mean(1),
        "vargrad": maps.square().mean(1) - maps.mean(1).square(),
    }
    torch.testing.assert_close(tunnel, expected[kind], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_sensitivity_max_equals_its_definition(dcs, images, count):
    x = images[:count]
    offsets = [torch.full_like(x, 0.01 * (i + 1)) for i in range(3)]
    queue = iter(offsets)
    # With one perturbation at a time, Captum asks for the samples one after the other.
    result = sensitivity_max(
        dcs.attribute,
        x,
        perturb_func=lambda inputs: inputs + next(queue),
        n_perturb_samples=3,
        max_examples_per_batch=count,
        target=1,
    )
    clean = dcs.attribute(x, 1)
    distances = [(dcs.attribute(x + offset, 1) - clean).flatten(1).norm(dim=1) for offset in offsets]
    expected = torch.stack(distances).amax(0) / clean.flatten(1).norm(dim=1)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_infidelity_of_maps_expanded_over_the_channels(dcs, images):
    def score(x):
        return dcs.forward_func(x).sum((2, 3))

    noise = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(3)) * 0.01

    @infidelity_perturb_func_decorator(False)
    def perturb(x):
        return x - noise

    attribution = dcs.attribute(images, 1).expand_as(images)
    assert attribution.shape == images.shape
    result = infidelity(score, perturb, images, attribution, target=1, n_perturb_samples=1)
    predicted = (noise * attribution).flatten(1).sum(1)
    actual = (score(images) - score(images - noise))[:, 1]
    torch.testing.assert_close(result, (predicted - actual).square(), rtol=1e-3, atol=1e-5)


def test_captums_own_visualization_draws_a_map(dcs, images):
    values = dcs.attribute(images, 1)[0].permute(1, 2, 0).numpy()
    _, axes = captum_visualization.visualize_image_attr(values, method="heat_map", sign="positive", use_pyplot=False)
    drawn = axes.images[0].get_array()
    assert drawn.shape == (20, 24)
    # Captum clips the largest 2 % of the mass and scales the rest.
    correlation = np.corrcoef(drawn.flatten(), values.flatten())[0, 1]
    assert correlation > 0.95


@pytest.mark.parametrize("shape", [(20, 24), (1, 20, 24), (1, 1, 20, 24)])
def test_visualize_attribution_accepts_every_shape_of_one_map(dcs, images, shape):
    attribution = dcs.attribute(images[:1], 1).view(shape)
    _, axes = visualize_attribution(attribution, method="heat_map")
    (drawn,) = (image.get_array() for image in axes.images)
    assert np.corrcoef(drawn.flatten(), attribution.flatten())[0, 1] > 0.95
    image_array = np.full((20, 24, 3), 128, dtype=np.uint8)
    _, axes = visualize_attribution(attribution, image_array)
    below, above = (image.get_array() for image in axes.images)
    assert len(np.unique(below)) == 1
    assert np.array_equal(above, drawn)


@pytest.mark.parametrize("image_array", [None, np.full((20, 24, 3), 128, dtype=np.uint8)])
def test_a_map_of_zeros_is_drawn_and_named(image_array):
    zeros = torch.zeros(1, 1, 20, 24)
    with pytest.raises(AssertionError, match="scale factor"):
        captum_visualization.visualize_image_attr(
            zeros[0].permute(1, 2, 0).numpy(), method="heat_map", use_pyplot=False
        )
    figure, axes = visualize_attribution(zeros, image_array)
    figure.canvas.draw()
    assert "zero everywhere" in axes.get_title()


def test_a_batch_of_maps_raises():
    with pytest.raises(ValueError, match="one map"):
        visualize_attribution(torch.rand(2, 1, 4, 4))

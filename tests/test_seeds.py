"""Seeds from maps and saliency, compared with values by hand and slow implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from untouched import untouched

from dcsm_attr.attribution.guided import GuidedRectifiers
from dcsm_attr.wsss.seeds import (
    above_fraction_of_maximum,
    bottom_fraction,
    labels_to_seeds,
    median_filter_3x3,
    middle_layer_saliency,
    seed_labels,
    top_fraction,
)


def row(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


def test_above_a_share_of_the_maximum_by_hand():
    assert above_fraction_of_maximum(row(0.2, 0.5, 0.1, 1.0, 0.21)).flatten().tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    # Relative to the maximum of each map; a map without a positive value has no seeds.
    maps = torch.tensor([[[[4.0, 1.0]], [[0.4, 0.1]], [[0.0, 0.0]], [[-1.0, -2.0]]]])
    assert above_fraction_of_maximum(maps, 0.3).tolist() == [[[[True, False]]] * 2 + [[[False, False]]] * 2]
    assert above_fraction_of_maximum(maps, 0.0)[0, 2:].count_nonzero() == 0


def test_the_highest_and_lowest_share_by_hand():
    values = row(0.5, 0.1, 0.9, 0.3, 0.7, 0.0, 0.2, 0.4, 0.6, 0.8)
    assert top_fraction(values).nonzero()[:, 3].tolist() == [2, 9]
    assert bottom_fraction(values).nonzero()[:, 3].tolist() == [5]
    assert bottom_fraction(values, 0.3).nonzero()[:, 3].tolist() == [1, 5, 6]
    # 0.29 * 100 lies below 29 in binary.
    assert bottom_fraction(torch.arange(100.0).view(1, 1, 10, 10), 0.29).sum() == 29


def test_of_equal_values_the_first_are_taken_and_zero_is_no_foreground():
    assert bottom_fraction(row(0.0, 0.0, 0.0, 1.0, 0.0), 0.4).flatten().tolist() == [True, True, False, False, False]
    assert top_fraction(row(0.0, 0.0, 0.0, 1.0, 0.0), 0.4).flatten().tolist() == [False, False, False, True, False]


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_the_number_of_seeds_and_that_no_other_pixel_is_better(seed, height, width, share):
    maps = torch.rand(2, 2, height, width, generator=torch.Generator().manual_seed(seed)) + 0.1
    low, high = bottom_fraction(maps, share), top_fraction(maps, share)
    for seeds in (low, high):
        assert (seeds.sum(dim=(2, 3)) == int(share * height * width + 1e-6)).all()
    outside = maps.masked_fill(low, torch.inf).amin(dim=(2, 3))
    assert (maps.masked_fill(~low, -torch.inf).amax(dim=(2, 3)) <= outside).all()
    assert torch.equal(high, bottom_fraction(-maps, share))


def test_the_median_by_hand():
    # A single bright pixel is removed; at the corner the edge is replicated.
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 0, 1, 1] = 9.0
    maps[0, 1] = torch.arange(12.0).view(3, 4)
    result = median_filter_3x3(maps)
    assert result[0, 0].count_nonzero() == 0
    # Around the top left corner: 0 four times, 1 twice, 4 twice, 5.
    assert result[0, 1, 0, 0] == 1.0
    assert result[0, 1, 1, 1:3].tolist() == [5.0, 6.0]


def test_the_median_equals_scipy_s():
    median_filter = pytest.importorskip("scipy.ndimage", reason="SciPy is what medians are compared with").median_filter
    maps = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    expected = np.stack([[median_filter(one, size=3) for one in of_image] for of_image in maps.numpy()])
    assert np.array_equal(median_filter_3x3(maps).numpy(), expected)


def test_labels_by_hand():
    foreground = torch.tensor([[[[1, 1, 0, 0, 1]], [[0, 1, 0, 0, 0]], [[1, 1, 1, 1, 1]]]]).bool()
    background = torch.tensor([[[[0, 0, 1, 0, 1]]]]).bool()
    maps = torch.tensor([[[[0.5, 0.6, 0.0, 0.0, 0.1]], [[0.9, 0.8, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, 1.0, 1.0]]]])
    # The last slot holds no class. Class 4 alone; classes 4 and 1, of which 1 is higher; background; nothing; class 4
    # before the background.
    labels = seed_labels(foreground, background, maps, torch.tensor([[4, 1, -1]]))
    assert labels.tolist() == [[[5, 2, 0, 255, 5]]]


def test_a_higher_map_without_a_seed_does_not_count():
    foreground = torch.tensor([[[[True]], [[False]]]])
    maps = torch.tensor([[[[0.1]], [[0.9]]]])
    background = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    assert seed_labels(foreground, background, maps, torch.tensor([[0, 1]])).item() == 1


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_labels_and_the_seeds_of_them(seed):
    generator = torch.Generator().manual_seed(seed)
    foreground = torch.rand(2, 3, 4, 5, generator=generator) < 0.3
    background = torch.rand(2, 1, 4, 5, generator=generator) < 0.3
    maps = torch.rand(2, 3, 4, 5, generator=generator)
    classes = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in range(2)])
    classes[1, 2] = -1
    labels = seed_labels(foreground, background, maps, classes)
    seeds = labels_to_seeds(labels, 7)
    for n in range(2):
        for y in range(4):
            for x in range(5):
                there = [k for k in range(3) if foreground[n, k, y, x] and classes[n, k] >= 0]
                expected = (
                    int(classes[n, max(there, key=lambda k: maps[n, k, y, x])]) + 1
                    if there
                    else 0
                    if background[n, 0, y, x]
                    else 255
                )
                assert labels[n, y, x] == expected
                assert seeds[n, :, y, x].nonzero().flatten().tolist() == ([] if expected == 255 else [expected])


# Saliency at a middle layer.


def test_saliency_by_hand(vgg):
    """The gradient of all scores together, layer by layer as autograd gives it."""
    images = torch.randn(2, 3, 20, 24)
    for layer in (vgg.features[2], vgg.features[6]):
        kept = []
        handle = layer.register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(output) or output.clone())
        scores = vgg(images)
        handle.remove()
        (gradient,) = torch.autograd.grad(scores.sum(), kept[0])
        expected = gradient.abs().amax(dim=1, keepdim=True)
        torch.testing.assert_close(middle_layer_saliency(vgg, images, layer), expected, rtol=1e-5, atol=1e-9)


def test_saliency_of_a_plain_classifier_by_name(cnn):
    images = torch.randn(2, 3, 20, 24)
    result = middle_layer_saliency(cnn, images, "conv2")
    x = torch.relu(cnn.conv1(images))
    x = cnn.conv2(x).detach().requires_grad_()
    scores = cnn.fc(torch.relu(cnn.bn(cnn.conv3(x.relu()))).mean((2, 3)))
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    torch.testing.assert_close(result, gradient.abs().amax(dim=1, keepdim=True), rtol=1e-4, atol=1e-8)


def test_the_model_is_left_unchanged(cnn):
    cnn.train()
    cnn.bn.eval()
    images = torch.randn(1, 3, 20, 24)
    with untouched(cnn, images):
        middle_layer_saliency(cnn, images, "conv2")
    with untouched(cnn, images), pytest.raises(ValueError, match="'conv9' is not in PooledCNN"):
        middle_layer_saliency(cnn, images, "conv9")
    broken = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
    with untouched(broken, images), pytest.raises(RuntimeError, match="channels"):
        middle_layer_saliency(broken, images, "0")


def test_neither_the_mode_nor_guidance_around_it_changes_the_saliency(cnn):
    images = torch.randn(2, 3, 20, 24)
    expected = middle_layer_saliency(cnn, images, "conv2")
    cnn.train()
    with GuidedRectifiers():
        assert torch.equal(middle_layer_saliency(cnn, images, "conv2"), expected)


def test_all_steps_of_sec_on_an_image(vgg):
    """Low saliency is background, high maps are seeds of their class, and the rest has none."""
    images = torch.randn(1, 3, 20, 24)
    saliency = median_filter_3x3(middle_layer_saliency(vgg, images, vgg.features[5]))
    maps = vgg(images).detach().relu()[:, [2, 0]]
    background = nn.functional.interpolate(bottom_fraction(saliency).float(), maps.shape[2:]) > 0
    labels = seed_labels(above_fraction_of_maximum(maps), background, maps, torch.tensor([[2, 0]]))
    assert labels.shape == (1, 5, 6)
    assert set(labels.unique().tolist()) <= {0, 1, 3, 255}


def test_bad_arguments():
    maps = torch.ones(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), so that .*; got 1.0"):
        above_fraction_of_maximum(maps, 1.0)
    for function in (top_fraction, bottom_fraction):
        with pytest.raises(ValueError, match=r"share is a share of the pixels and must lie in \[0, 1\], got 20"):
            function(maps, 20)
    with pytest.raises(ValueError, match=r"must have the shapes.*\(1, 1, 3, 3\).*got \[\(1, 2, 3, 3\)"):
        seed_labels(maps > 0, maps > 0, maps, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels must be in 0 to 2, or 255 for none; got 7"):
        labels_to_seeds(torch.tensor([[[0, 7, 255]]]), 3)

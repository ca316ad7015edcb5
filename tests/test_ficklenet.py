"""FickleNet: maps of stochastic inference, compared with autograd, and their aggregation, by hand."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from untouched import untouched

from dcsm_attr.attribution.guided import GuidedRectifiers
from dcsm_attr.attribution.maps import divide_by_maximum
from dcsm_attr.models.fully_convolutional import ScoreMapNetwork
from dcsm_attr.models.stochastic import StochasticSelection, gathered_convolution, use_generator
from dcsm_attr.wsss.ficklenet import aggregate_maps, fickle_maps, grad_cam, stochastic_maps


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return {"map": self.body(x)}


def selection(rate=0.7, **options):
    return StochasticSelection(6, 4, window=5, rate=rate, **options)


def features_of_one():
    return torch.rand(1, 6, 7, 8, generator=torch.Generator().manual_seed(1))


def by_autograd(head, x, classes, form, seed, count):
    """Map by map and class by class, with the score written out."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        x = x.detach().requires_grad_()
        with use_generator(generator):
            maps = head(x)[0]
        one = []
        for c in classes:
            (gradient,) = torch.autograd.grad(maps[c].mean(), x, retain_graph=True)
            weights = gradient[0] if form == "elementwise" else gradient[0].mean(dim=(1, 2))[:, None, None]
            one.append((x[0].detach() * weights).sum(dim=0).clamp(min=0))
        result.append(torch.stack(one))
    return torch.stack(result)


@pytest.mark.parametrize("form", ["elementwise", "pooled"])
@pytest.mark.parametrize(
    "make",
    [
        selection,
        lambda: nn.Sequential(selection(keep_center=False)),
        lambda: nn.Sequential(selection(), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1)),
    ],
    ids=["layer", "ordinary dropout", "deeper head"],
)
def test_maps_equal_those_of_autograd(form, make):
    head = make().double()
    # Some scores must be above zero, so that rectifiers pass a gradient.
    for layer in head.modules():
        if isinstance(layer, StochasticSelection):
            nn.init.normal_(layer.weight)
    x = features_of_one().double()
    expected = by_autograd(head, x, [2, 0], form, seed=3, count=5)
    got = torch.stack(list(stochastic_maps(head, x, [2, 0], 5, form=form, seed=3)))
    assert expected.count_nonzero()
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-14)


def test_elementwise_by_hand():
    # One channel, one row of two pixels, a window of three: weights 1 for the left cell, 2 for the center, 4 for the
    # right. The window at the left keeps everything, that at the right its center alone.
    x = torch.tensor([[[[3.0, 5.0]]]], requires_grad=True)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = torch.tensor([1.0, 2.0, 4.0])
    masks = torch.zeros(1, 9, 1, 2, dtype=torch.bool)
    masks[0, :, 0, 0] = True
    masks[0, 4, 0, 1] = True

    class Head(nn.Module):
        def forward(self, x):
            return gathered_convolution(x, weight, masks)

    # The score is the mean of 2 * 3 + 4 * 5 and 2 * 5; gradients 2 / 2 at the left, (4 + 2) / 2 at the right.
    assert grad_cam(Head(), x, [0]).flatten().tolist() == [3.0, 15.0]
    # Pooled: their mean is 2.
    assert grad_cam(Head(), x, [0], "pooled").flatten().tolist() == [6.0, 10.0]


@pytest.mark.parametrize("make", [selection, lambda: nn.Sequential(selection(), nn.Conv2d(4, 3, 1))])
@pytest.mark.parametrize("form", ["elementwise", "pooled"])
def test_the_chunk_size_changes_nothing(make, form):
    head, x = make().double(), features_of_one().double()
    runs = [
        torch.stack(list(stochastic_maps(head, x, [0, 1], 7, form=form, chunk_size=chunk_size, seed=2)))
        for chunk_size in (1, 3, 100)
    ]
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=1e-12, atol=1e-15)


def test_maps_differ_between_samples_and_seeds_but_not_without_dropout():
    x = features_of_one()
    head = selection()
    first, second = stochastic_maps(head, x, [0], 2)
    assert not torch.equal(first, second)
    assert torch.equal(first, next(stochastic_maps(head, x, [0], 1)))
    assert not torch.equal(first, next(stochastic_maps(head, x, [0], 1, seed=1)))
    always = list(stochastic_maps(selection(rate=0.0), x, [0, 3], 4))
    assert all(torch.equal(one, always[0]) for one in always)


def test_the_mean_map_converges_with_the_square_root_of_the_number_of_samples():
    head, x = selection().double(), features_of_one().double()
    maps = torch.stack(list(stochastic_maps(head, x, [0, 1, 2, 3], 3200)))
    truth = maps.mean(dim=0)
    errors = [
        (maps[: 64 * count].view(64, count, -1).mean(dim=1) - truth.flatten()).square().mean().sqrt().item()
        for count in (2, 8, 32)
    ]
    for few, many in pairwise(errors):
        assert few / many == pytest.approx(2, rel=0.2)


def test_the_backbone_runs_once_when_the_first_map_is_requested():
    network = ScoreMapNetwork(Backbone(), nn.Sequential(selection()))
    maps = fickle_maps(network, torch.randn(1, 3, 14, 16), [0, 1], 60)
    assert network.backbone.runs == 0
    next(maps)
    assert network.backbone.runs == 1
    assert len(list(maps)) == 59
    assert network.backbone.runs == 1


@pytest.mark.parametrize("deeper", [[], [nn.Dropout(0.5), nn.Conv2d(4, 3, 1)]])
def test_the_network_is_left_unchanged_also_between_two_maps(deeper):
    network = ScoreMapNetwork(Backbone(), nn.Sequential(selection(), *deeper)).train()
    network.backbone.body.eval()
    network.head[0].weight.grad = torch.ones_like(network.head[0].weight)
    image = torch.randn(1, 3, 14, 16)
    list(fickle_maps(network, image, [0], 1))
    network.backbone.runs = 1
    with untouched(network, image):
        maps = fickle_maps(network, image, [0, 1], 4, chunk_size=2)
        network.backbone.runs = 0
        next(maps)
    with untouched(network, image):
        next(maps)
        maps.close()


def test_neither_the_mode_nor_guidance_around_it_changes_the_maps():
    head = nn.Sequential(selection(), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 3, 1)).eval()
    nn.init.normal_(head[0].weight)
    x = features_of_one()
    expected = torch.stack(list(stochastic_maps(head, x, [0, 1], 3)))
    head.train()
    with GuidedRectifiers():
        got = torch.stack(list(stochastic_maps(head, x, [0, 1], 3)))
    assert expected.count_nonzero()
    assert torch.equal(got, expected)


def test_the_network_is_left_unchanged_after_an_exception():
    class Failing(nn.Module):
        def forward(self, x):
            raise KeyError("of the user's own")

    network = ScoreMapNetwork(Backbone(), nn.Sequential(selection(), Failing())).train()
    x = features_of_one()
    with untouched(network, x), pytest.raises(KeyError):
        next(stochastic_maps(network.head, x, [0]))


def test_maps_are_resized_to_the_given_size():
    network = ScoreMapNetwork(Backbone(), nn.Sequential(selection(rate=0.0)))
    image = torch.randn(1, 3, 14, 16)
    (small,) = fickle_maps(network, image, [0, 1], 1)
    (large,) = fickle_maps(network, image, [0, 1], 1, size=(14, 16))
    assert small.shape == (2, 7, 8)
    expected = nn.functional.interpolate(small[None], (14, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(large, expected)


def test_a_progress_bar_counts_maps(capsys):
    list(stochastic_maps(selection(), features_of_one(), [0], 3, progress=True))
    assert "/3" in capsys.readouterr().err
    list(stochastic_maps(selection(), features_of_one(), [0], 3))
    assert capsys.readouterr().err == ""


def test_a_network_that_reads_regions_localizes_them_exactly():
    """Channel c is one in the region of class c, whose weights read only that channel."""
    regions = torch.zeros(2, 9, 9)
    regions[0, 1:4, 1:7], regions[1, 5:8, 3:9] = 1, 1
    head = StochasticSelection(2, 2, window=3, rate=0.9)
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.weight[0, 0], head.weight[1, 1] = 1.0, 1.0
    labels = aggregate_maps(stochastic_maps(head, regions[None], [0, 1], 200)).labels([0, 1])
    assert torch.equal(labels == 1, regions[0] > 0)
    assert torch.equal(labels == 2, regions[1] > 0)


# Aggregation.


def test_aggregation_by_hand():
    # Two classes, four pixels, two maps. The maxima are 1, or made so: the second map of the first class is doubled.
    first = torch.tensor([[[1.0, 0.4, 0.0, 0.1]], [[0.2, 0.5, 1.0, 0.1]]])
    second = torch.tensor([[[0.3, 0.5, 0.0, 0.1]], [[0.0, 0.3, 1.0, 0.3]]])
    result = aggregate_maps(iter([first, second]))
    assert result.count == 2
    torch.testing.assert_close(result.highest, torch.tensor([[[1.0, 1.0, 0.0, 0.2]], [[0.2, 0.5, 1.0, 0.3]]]))
    torch.testing.assert_close(result.mean, torch.tensor([[[0.8, 0.7, 0.0, 0.15]], [[0.1, 0.4, 1.0, 0.2]]]))
    # At the second pixel both classes are above 0.35 in some map, and the first has the higher mean; at the last none
    # is.
    assert result.labels([14, 7]).tolist() == [[15, 15, 8, 255]]
    assert result.labels([14, 7], threshold=0.25).tolist() == [[15, 15, 8, 8]]
    assert result.labels([14, 7], threshold=1.0).tolist() == [[255] * 4]


def test_a_pixel_gets_the_class_with_the_highest_mean_among_those_above_the_threshold():
    # The second class is above the threshold once; the first never, though its mean is higher.
    first = torch.tensor([[[0.3, 1.0]], [[0.4, 1.0]]])
    second = torch.tensor([[[0.3, 1.0]], [[0.0, 1.0]]])
    assert aggregate_maps([first, second]).labels([0, 1])[0, 0] == 2


def test_maps_are_left_unchanged_and_an_empty_map_counts_as_zero():
    maps = [torch.zeros(1, 2, 2), torch.tensor([[[2.0, 1.0], [0.0, 0.0]]])]
    copies = [one.clone() for one in maps]
    result = aggregate_maps(maps)
    assert result.mean.tolist() == [[[0.5, 0.25], [0.0, 0.0]]]
    assert all(torch.equal(one, was) for one, was in zip(maps, copies, strict=True))


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_labeled_pixels_increase_with_the_number_of_maps_and_decrease_with_the_threshold(seed, fewer, more, low, high):
    low, high = sorted((low, high))
    maps = list(torch.rand(fewer + more, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) ** 3)
    labeled = {
        (count, threshold): aggregate_maps(maps[:count]).labels([0, 1, 2], threshold) != 255
        for count in (fewer, fewer + more)
        for threshold in (low, high)
    }
    assert not (labeled[fewer, low] & ~labeled[fewer + more, low]).any()
    assert not (labeled[fewer, high] & ~labeled[fewer, low]).any()


@given(st.integers(0, 10_000), st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_the_running_aggregate_equals_all_maps_at_once(seed, count):
    maps = torch.rand(count, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    result = aggregate_maps(maps)
    normalized = divide_by_maximum(maps)
    torch.testing.assert_close(result.mean, normalized.mean(dim=0), rtol=1e-12, atol=0)
    assert torch.equal(result.highest, normalized.amax(dim=0))
    labels = torch.full((3, 4), 255)
    for y in range(3):
        for x in range(4):
            sure = [c for c in range(2) if normalized[:, c, y, x].max() > 0.35]
            if sure:
                labels[y, x] = 1 + max(sure, key=lambda c: normalized[:, c, y, x].mean())
    assert torch.equal(result.labels([0, 1]), labels)


def test_bad_arguments():
    head, x = selection(), features_of_one()
    with pytest.raises(ValueError, match="classes must be in 0 to 3, at least one; got 4"):
        next(stochastic_maps(head, x, [0, 4]))
    with pytest.raises(ValueError, match="at least one; got none"):
        next(stochastic_maps(nn.Sequential(head, nn.Identity()), x, []))
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        next(stochastic_maps(head, x, [0], 0))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        next(stochastic_maps(head, x, [0], chunk_size=0))
    with pytest.raises(ValueError, match="form must be 'elementwise' or 'pooled', got 'mean'"):
        next(stochastic_maps(head, x, [0], form="mean"))
    with pytest.raises(ValueError, match="form must be 'elementwise' or 'pooled', got 'mean'"):
        grad_cam(head, x, [0], form="mean")
    with pytest.raises(ValueError, match=r"features must be of one image.*got \(2, 6, 7, 8\)"):
        next(stochastic_maps(head, x.expand(2, -1, -1, -1), [0]))
    with pytest.raises(ValueError, match=r"image must be one image.*got \(2, 3, 14, 16\)"):
        next(fickle_maps(ScoreMapNetwork(Backbone(), nn.Sequential(head)), torch.zeros(2, 3, 14, 16), [0]))
    with pytest.raises(ValueError, match="no maps to aggregate"):
        aggregate_maps([])
    with pytest.raises(ValueError, match=r"one shape \(K, H, W\); got \(1, 2, 3\) after \(1, 2, 2\)"):
        aggregate_maps([torch.ones(1, 2, 2), torch.ones(1, 2, 3)])
    result = aggregate_maps([torch.ones(2, 2, 2)])
    with pytest.raises(ValueError, match="must name each of the 2 slots; got 1"):
        result.labels([0])
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 35"):
        result.labels([0, 1], threshold=35)

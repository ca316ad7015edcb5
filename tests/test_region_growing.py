"""Seeded region growing, compared with growth pixel by pixel, and connected components, with a flood fill."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.wsss.region_growing import connected_components, grow_seeds, threshold_labels

SETTINGS = settings(max_examples=60, deadline=None)


def around(y, x, height, width):
    for v in range(max(0, y - 1), min(height, y + 2)):
        for w in range(max(0, x - 1), min(width, x + 2)):
            if (v, w) != (y, x):
                yield v, w


def flooded(mask):
    """Numbers of components, of one image, by a flood fill from each pixel."""
    height, width = mask.shape
    numbers = np.zeros((height, width), dtype=int)
    count = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if numbers[start]:
            continue
        count += 1
        numbers[start] = count
        waiting = [start]
        while waiting:
            for place in around(*waiting.pop(), height, width):
                if mask[place] and not numbers[place]:
                    numbers[place] = count
                    waiting.append(place)
    return numbers


def pixel_by_pixel(seeds, probabilities, present, foreground=0.85, background=0.99):
    """Add one neighbor after the other until nothing changes; one image, arrays of (L, h, w)."""
    labels, height, width = seeds.shape
    there = [0] + [c + 1 for c in range(labels - 1) if present[c]]
    region = np.zeros_like(seeds)
    for y in range(height):
        for x in range(width):
            best = max(there, key=lambda label: probabilities[label, y, x])
            if probabilities[best, y, x] > (background if best == 0 else foreground):
                region[best, y, x] = True
            else:
                region[:, y, x] = seeds[:, y, x]
    grown = seeds.copy()
    for label in there:
        reached = seeds[label] & region[label]
        changed = True
        while changed:
            changed = False
            for y in range(height):
                for x in range(width):
                    near = [reached[place] for place in around(y, x, height, width)]
                    if region[label, y, x] and not reached[y, x] and any(near):
                        reached[y, x] = changed = True
        of_another = (seeds.sum(0) == 1) & ~seeds[label]
        grown[label] |= reached & ~of_another
    return grown


def problem(seed, count=2, labels=4, size=(6, 7), agreeing=False):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, labels, *size, generator=generator)
    seeds = torch.rand(count, labels, *size, generator=generator) < 0.06
    present = torch.rand(count, labels - 1, generator=generator) < 0.7
    if agreeing:
        # At each seed the network's best label is the seed's.
        seeds &= seeds.cumsum(dim=1) == 1
        logits = torch.where(seeds.any(dim=1, keepdim=True), 8.0 * seeds, logits)
        seeds[:, 1:] &= present[:, :, None, None]
    return seeds, logits.softmax(dim=1), present


def test_components_by_hand():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    numbers = connected_components(mask[None])[0]
    # Corners connect.
    assert numbers[0, 0] == numbers[1, 1]
    assert numbers[0, 3] == numbers[1, 3]
    assert numbers[3, 0] == numbers[3, 1]
    assert len(numbers.unique()) == 4
    assert torch.equal(numbers > 0, mask)


def assert_same_components(numbers, expected):
    assert np.array_equal(numbers > 0, expected > 0)
    pairs = set(zip(numbers.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(numbers)) == len(np.unique(expected))


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 0.9))
@SETTINGS
def test_components_equal_a_flood_fill_and_no_two_masks_share_one(seed, height, width, share):
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) < share
    numbers = connected_components(masks)
    for mask, one in zip(masks.numpy(), numbers.numpy(), strict=True):
        assert_same_components(one, flooded(mask))
    held = [set(one[one > 0].tolist()) for one in numbers]
    assert sum(map(len, held)) == len(set.union(*held))
    assert numbers.max() <= masks.numel()


def test_components_of_no_masks():
    assert connected_components(torch.zeros(0, 9, 8, dtype=torch.bool)).shape == (0, 9, 8)


def test_growing_by_hand():
    """One row, two classes, of which the second is absent."""
    p = torch.full((1, 3, 1, 7), 0.05)
    # Background, unsure, first class (3 pixels), unsure, first class again.
    p[0, 0, 0, 0], p[0, 1, 0, 2:5], p[0, 1, 0, 6], p[0, 2, 0, 5] = 0.995, 0.9, 0.9, 0.95
    seeds = torch.zeros(1, 3, 1, 7, dtype=torch.bool)
    seeds[0, 1, 0, 3] = True
    present = torch.tensor([[True, False]])
    grown = grow_seeds(seeds, p, present)
    assert grown[0, 1, 0].tolist() == [False, False, True, True, True, False, False]
    # The background has no seed, the absent class neither.
    assert grown.sum() == 3
    # With the background seeded and the other class present: that one has no seed either.
    seeds[0, 0, 0, 0] = True
    assert grow_seeds(seeds, p, torch.tensor([[True, True]]))[0, 0, 0].tolist() == [True] + [False] * 6
    # Seeds bridge what the network is not sure of.
    seeds[0, 1, 0, 5] = True
    assert grow_seeds(seeds, p, present)[0, 1, 0].tolist() == [False, False, True, True, True, True, True]


def test_the_thresholds_are_exceeded_not_met():
    p = torch.tensor([[0.85, 0.99, 0.86, 0.5], [0.1, 0.01, 0.14, 0.5]], dtype=torch.float64)
    maps = torch.stack([p, p.flip(0)])[:, :, None]
    labels = threshold_labels(maps, torch.ones(2, 1, dtype=torch.bool))
    assert labels.tolist() == [[[-1, -1, -1, -1]], [[-1, 1, 1, -1]]]
    labels = threshold_labels(maps, torch.ones(2, 1, dtype=torch.bool), background_threshold=0.5)
    assert labels[0].tolist() == [[0, 0, 0, -1]]


def test_the_best_label_is_one_of_those_in_the_image():
    p = torch.tensor([0.0, 0.4, 0.6]).view(1, 3, 1, 1)
    for present, expected in (([True, True], 2), ([True, False], 1), ([False, False], -1)):
        assert threshold_labels(p, torch.tensor([present]), 0.3).item() == expected


def test_pixels_where_seeds_and_network_contradict_each_other():
    """The network is sure of the first class everywhere, also where others have seeds."""
    p = torch.zeros(1, 4, 1, 6)
    p[0, 1] = 1.0
    seeds = torch.zeros(1, 4, 1, 6, dtype=torch.bool)
    seeds[0, 1, 0, 0] = True
    seeds[0, 2, 0, 2] = True
    seeds[0, 2, 0, 4] = seeds[0, 3, 0, 4] = True
    grown = grow_seeds(seeds, p, torch.ones(1, 3, dtype=torch.bool))
    # Not where exactly one seed of another class lies, though growth continues behind it; also where two do.
    assert grown[0, 1, 0].tolist() == [True, True, False, True, True, True]
    assert grown[0, 2, 0].tolist() == [False, False, True, False, True, False]
    assert grown[0, 3, 0].tolist() == [False, False, False, False, True, False]


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.floats(0.2, 0.95), st.floats(0.2, 0.99))
@SETTINGS
def test_growing_equals_growth_pixel_by_pixel(seed, height, width, foreground, background):
    seeds, probabilities, present = problem(seed, size=(height, width))
    grown = grow_seeds(seeds, probabilities, present, foreground, background)
    for n in range(len(seeds)):
        expected = pixel_by_pixel(
            seeds[n].numpy(), probabilities[n].double().numpy(), present[n].tolist(), foreground, background
        )
        assert np.array_equal(grown[n].numpy(), expected)


@given(st.integers(0, 10_000))
@SETTINGS
def test_growing_again_adds_nothing_and_seeds_are_never_lost(seed):
    seeds, probabilities, present = problem(seed)
    before = seeds.clone()
    grown = grow_seeds(seeds, probabilities, present, 0.5, 0.6)
    assert torch.equal(grow_seeds(grown, probabilities, present, 0.5, 0.6), grown)
    assert not (seeds & ~grown).any()
    assert torch.equal(seeds, before)
    absent = ~present[:, :, None, None].expand_as(seeds[:, 1:])
    assert torch.equal(grown[:, 1:][absent], seeds[:, 1:][absent])


@given(st.integers(0, 10_000), st.floats(0.2, 1), st.floats(0.2, 1))
@SETTINGS
def test_lower_thresholds_grow_more_where_the_network_agrees_with_the_seeds(seed, low, high):
    low, high = sorted((low, high))
    seeds, probabilities, present = problem(seed, agreeing=True)
    less = grow_seeds(seeds, probabilities, present, high, high)
    more = grow_seeds(seeds, probabilities, present, low, low)
    assert not (less & ~more).any()


def test_a_lower_threshold_may_grow_less_where_the_network_contradicts_a_seed():
    """Follows from the published order, network over seeds: a seed overwritten is no bridge any more."""
    p = torch.tensor([[0.0, 0.0], [0.95, 0.4], [0.05, 0.6]]).view(1, 3, 1, 2)
    seeds = torch.zeros(1, 3, 1, 2, dtype=torch.bool)
    seeds[0, 1, 0, 1] = True
    present = torch.ones(1, 2, dtype=torch.bool)
    assert grow_seeds(seeds, p, present, 0.85)[0, 1, 0].tolist() == [True, True]
    assert grow_seeds(seeds, p, present, 0.55)[0, 1, 0].tolist() == [False, True]


def test_images_of_a_batch_are_independent():
    seeds, probabilities, present = problem(5, count=3)
    together = grow_seeds(seeds, probabilities, present, 0.4, 0.4)
    for n in range(3):
        part = slice(n, n + 1)
        assert torch.equal(together[part], grow_seeds(seeds[part], probabilities[part], present[part], 0.4, 0.4))


def test_bad_arguments():
    seeds, probabilities, present = problem(0)
    with pytest.raises(ValueError, match=r"same shape \(N, L, h, w\); got \(2, 3, 6, 7\) and \(2, 4, 6, 7\)"):
        grow_seeds(seeds[:, :3], probabilities, present)
    with pytest.raises(ValueError, match=r"present must have shape \(N, L - 1\) = \(2, 3\).*got \(2, 2\)"):
        grow_seeds(seeds, probabilities, present[:, :2])
    with pytest.raises(TypeError, match="seeds must be bool, got torch.float32"):
        grow_seeds(seeds.float(), probabilities, present)
    with pytest.raises(TypeError, match="present must be bool, got torch.int64"):
        grow_seeds(seeds, probabilities, present.long())

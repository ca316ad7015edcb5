"""Pairs of neighbors: offsets, pairs inside the map, and pairs that the released code omits."""

import pytest
import torch
from affinity_reference import offsets_within
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.models.affinity_net import neighbor_offsets, overlap_slices, pair_mask

FIVE = neighbor_offsets(5)


def test_the_half_disc():
    assert neighbor_offsets(1) == ()
    assert neighbor_offsets(2) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert len(FIVE) == 34
    assert (3, 4) not in FIVE, "at a distance of exactly 5"
    assert neighbor_offsets() == FIVE


@pytest.mark.parametrize("radius", range(1, 9))
def test_every_neighbor_once(radius):
    offsets = neighbor_offsets(radius)
    assert sorted(offsets) == sorted(offsets_within(radius))
    both = {*offsets, *((-dy, -dx) for dy, dx in offsets)}
    assert len(both) == 2 * len(offsets)


@pytest.mark.parametrize("radius", [0, -3])
def test_a_radius_without_a_disc(radius):
    with pytest.raises(ValueError, match=f"at least 1.*got {radius}"):
        neighbor_offsets(radius)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(-11, 11), st.integers(-11, 11))
def test_overlapping_parts_are_the_ends_of_pairs(height, width, dy, dx):
    positions = torch.arange(height * width).view(height, width)
    source, target = overlap_slices(height, width, (dy, dx))
    expected = [
        (y * width + x, (y + dy) * width + x + dx)
        for y in range(height)
        for x in range(width)
        if 0 <= y + dy < height and 0 <= x + dx < width
    ]
    assert list(zip(positions[source].flatten(), positions[target].flatten(), strict=True)) == expected


def degrees(mask, offsets):
    """Count the neighbors of each position, itself included."""
    _, height, width = mask.shape
    count = torch.ones(height, width, dtype=torch.int64)
    for pairs, (dy, dx) in zip(mask, offsets, strict=True):
        for y, x in pairs.nonzero().tolist():
            count[y, x] += 1
            count[y + dy, x + dx] += 1
    return count


def test_pairs_of_the_released_code():
    mask = pair_mask(56, 56, FIVE, "released")
    assert mask.shape == (34, 56, 56)
    assert mask.flatten(1).sum(dim=1).tolist() == [2496] * 34
    sources = torch.zeros(56, 56, dtype=torch.bool)
    sources[:52, 4:52] = True
    assert all(torch.equal(pairs, sources) for pairs in mask)


def test_degrees_at_the_released_border():
    count = degrees(pair_mask(12, 14, FIVE, "released"), FIVE)
    assert (count == 1).sum() == 10
    assert count[0, 0] == 1
    # Where all positions around are sources: four rows from the upper border, eight columns from the left and right.
    larger = degrees(pair_mask(24, 26, FIVE, "released"), FIVE)
    assert (larger[4:20, 8:18] == 69).all()
    assert (larger == 69).sum() == 16 * 10


def test_degrees_at_the_full_border():
    """A corner has a quarter of the disc: itself, four in its row, 4 + 1 in the next two, 4 and 3 in those after."""
    count = degrees(pair_mask(12, 14, FIVE), FIVE)
    assert count[0, 0] == 5 + 5 + 5 + 4 + 3
    assert torch.equal(count, count.flip(0))
    assert torch.equal(count, count.flip(1))
    assert count[6, 7] == 69


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 5))
@settings(max_examples=50)
def test_released_pairs_are_some_of_all_pairs(height, width, radius):
    offsets = neighbor_offsets(radius)
    full, released = pair_mask(height, width, offsets), pair_mask(height, width, offsets, "released")
    assert not (released & ~full).any()
    reach = radius - 1
    sources = max(0, height - reach) * max(0, width - 2 * reach)
    assert released.sum() == len(offsets) * sources


def test_no_such_border():
    with pytest.raises(ValueError, match="'full', 'released'; got 'psa'"):
        pair_mask(4, 4, FIVE, "psa")

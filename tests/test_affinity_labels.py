"""Confident labels, labels of pairs and the loss, compared with truth tables, values by hand and float64 references."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsm_attr.crf import DenseCRF
from dcsm_attr.models.affinity_net import affinities, neighbor_offsets, pair_mask
from dcsm_attr.training.data import downsample_labels
from dcsm_attr.wsss.affinity import (
    RELEASED_CRF,
    AffinityLabels,
    affinity_labels,
    affinity_loss,
    confident_labels,
)


def gray(height, width):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        # (1 - m)^4 < m from m = 0.2755 on, (1 - m)^32 < m from m = 0.0770 on.
        ((0.30, 0.00), 4),
        ((0.00, 0.30), 7),
        ((0.27, 0.00), 255),
        ((0.08, 0.03), 255),
        ((0.06, 0.06), 0),
        ((0.90, 0.91), 7),
        ((0.00, 0.00), 0),
    ],
)
def test_labels_are_confident_where_both_backgrounds_agree(values, label):
    maps = torch.tensor(values)[:, None, None].expand(2, 3, 4)
    found = confident_labels(maps, torch.tensor([3, 6]), gray(3, 4), crf=None)
    assert found.dtype == torch.uint8
    assert found.tolist() == [[label] * 4] * 3


def test_the_threshold_is_where_the_background_equals_the_map():
    at = torch.tensor([0.27550, 0.27552, 0.07695, 0.07705])
    # The roots of m = (1 - m)^4 and m = (1 - m)^32, by bisection.
    roots = []
    for exponent in (4, 32):
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if middle < (1 - middle) ** exponent else (low, middle)
        roots.append(low)
    assert at[0] < roots[0] < at[1]
    assert at[2] < roots[1] < at[3]
    found = confident_labels(at[None, None], torch.tensor([0]), gray(1, 4), crf=None)
    assert found.tolist() == [[255, 1, 0, 255]]


def test_both_labelings_are_refined_like_single_ones():
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (3, 20, 24), generator=generator).to(torch.uint8)
    maps = torch.rand(2, 20, 24, generator=generator) * 0.5
    crf = DenseCRF(bilateral_weight=0.3, bilateral_xy=10, gaussian_weight=0.3)
    found = confident_labels(maps, torch.tensor([1, 5]), image, low=2.0, high=8.0, crf=crf)
    of_exponent = []
    for exponent in (2.0, 8.0):
        background = (1 - maps.amax(dim=0)) ** exponent
        labels = torch.cat([background[None], maps])
        of_exponent.append(crf((labels / labels.sum(dim=0))[None], image[None])[0].argmax(dim=0))
    expected = [
        [(0, 2, 6)[low] if low else (0 if not high else 255) for low, high in zip(*rows, strict=True)]
        for rows in zip(of_exponent[0].tolist(), of_exponent[1].tolist(), strict=True)
    ]
    assert found.tolist() == expected
    assert set(found.flatten().tolist()) == {0, 2, 6, 255}


def test_the_released_crf():
    assert DenseCRF(10, 80, 13, 3, 3, 10) == RELEASED_CRF


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (32.0, 4.0), (0.0, 4.0)])
def test_exponents_that_do_not_ascend(low, high):
    with pytest.raises(ValueError, match="ascending"):
        confident_labels(torch.rand(1, 2, 2), torch.tensor([0]), gray(2, 2), low=low, high=high)


def test_classes_that_do_not_fit_into_eight_bits():
    with pytest.raises(ValueError, match="below 254, got 254"):
        confident_labels(torch.rand(1, 2, 2), torch.tensor([254]), gray(2, 2), crf=None)


def test_the_most_frequent_label_of_each_cell():
    labels = torch.tensor(
        [
            [1, 1, 2, 2, 255],
            [1, 0, 2, 255, 255],
            [0, 0, 3, 3, 3],
        ]
    )
    # Rows 0 1 | 2, columns 0 1 2 | 3 4: cells of 6, 4, 3 and 2 pixels.
    assert downsample_labels(labels[None].to(torch.uint8), (2, 2)).tolist() == [[[1, 255], [0, 3]]]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_cells_equal_counts_one_by_one(height, width, data):
    size = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    values = data.draw(
        st.lists(st.sampled_from([0, 1, 5, 20, 255]), min_size=2 * height * width, max_size=2 * height * width)
    )
    labels = torch.tensor(values).view(2, height, width)
    found = downsample_labels(labels, size)
    for image in range(2):
        for row in range(size[0]):
            for column in range(size[1]):
                cell = [
                    int(labels[image, y, x])
                    for y in range(height)
                    for x in range(width)
                    if y * size[0] // height == row and x * size[1] // width == column
                ]
                most = max(cell.count(label) for label in cell)
                assert int(found[image, row, column]) == min(label for label in cell if cell.count(label) == most)


def test_a_grid_that_is_finer_than_the_labels():
    with pytest.raises(ValueError, match="finer"):
        downsample_labels(torch.zeros(1, 4, 4, dtype=torch.uint8), (5, 4))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(2, 4), st.sampled_from(["full", "released"]), st.integers(0, 99)
)
def test_pairs_equal_those_of_all_pairs_of_positions(height, width, radius, border, seed):
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor([0, 0, 1, 2, 255])
    labels = choices[torch.randint(0, 5, (2, height, width), generator=generator)]
    offsets = neighbor_offsets(radius)
    found = affinity_labels(labels, offsets, pair_mask(height, width, offsets, border))
    for image in range(2):
        for number, (dy, dx) in enumerate(offsets):
            for y in range(height):
                for x in range(width):
                    inside = y + dy < height and 0 <= x + dx < width
                    if border == "released":
                        reach = radius - 1
                        inside = inside and y + reach < height and reach <= x < width - reach
                    here = int(labels[image, y, x])
                    there = int(labels[image, y + dy, x + dx]) if inside else 255
                    known = inside and 255 not in (here, there)
                    at = (image, number, y, x)
                    assert bool(found.background[at]) == (known and here == there == 0)
                    assert bool(found.foreground[at]) == (known and here == there > 0)
                    assert bool(found.different[at]) == (known and here != there)


def kinds(*rows):
    """Labels of pairs from rows of letters: f, b, d, and - for unknown."""
    letters = np.array([[list(row)] for row in rows])[None]
    return AffinityLabels(*(torch.from_numpy(letters == letter)[:, :, 0] for letter in "fbd"))


def test_the_loss_by_hand():
    known = kinds("ffb", "dd-")
    values = torch.tensor([[[[0.5, 0.25, 0.8]], [[0.1, 0.6, 0.9]]]])[:, :, 0]
    foreground = -(math.log(0.5 + 1e-5) + math.log(0.25 + 1e-5)) / (2 + 1e-5)
    background = -math.log(0.8 + 1e-5) / (1 + 1e-5)
    different = -(math.log(1 + 1e-5 - 0.1) + math.log(1 + 1e-5 - 0.6)) / (2 + 1e-5)
    expected = foreground / 4 + background / 4 + different / 2
    assert float(affinity_loss(values, known)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_without_pairs_and_at_the_ends():
    nothing = kinds("---")
    values = torch.tensor([[[0.0, 1.0, 0.5]]], requires_grad=True)
    loss = affinity_loss(values, nothing)
    loss.backward()
    assert float(loss) == 0.0
    assert values.grad.tolist() == [[[0.0, 0.0, 0.0]]]
    worst = affinity_loss(torch.tensor([[[0.0, 0.0, 1.0]]]), kinds("fbd"))
    assert float(worst) == pytest.approx(-math.log(1e-5), rel=1e-4)


def test_the_loss_of_features_equals_float64():
    generator = torch.Generator().manual_seed(5)
    features = torch.rand(2, 6, 5, 7, generator=generator) / 6
    labels = torch.tensor([0, 1, 255])[torch.randint(0, 3, (2, 5, 7), generator=generator)]
    offsets = neighbor_offsets(3)
    known = affinity_labels(labels, offsets, pair_mask(5, 7, offsets))
    f = features.double().numpy()
    sums = {"fg": [], "bg": [], "neg": []}
    for image in range(2):
        for dy, dx in offsets:
            for y in range(5 - dy):
                for x in range(max(0, -dx), min(7, 7 - dx)):
                    here, there = int(labels[image, y, x]), int(labels[image, y + dy, x + dx])
                    if 255 in (here, there):
                        continue
                    affinity = math.exp(-np.abs(f[image, :, y, x] - f[image, :, y + dy, x + dx]).sum())
                    if here != there:
                        sums["neg"].append(-math.log(1 + 1e-5 - affinity))
                    else:
                        sums["fg" if here else "bg"].append(-math.log(affinity + 1e-5))
    mean = {kind: sum(values) / (len(values) + 1e-5) for kind, values in sums.items()}
    expected = mean["fg"] / 4 + mean["bg"] / 4 + mean["neg"] / 2
    assert float(affinity_loss(affinities(features, offsets), known)) == pytest.approx(expected, rel=1e-5)


def test_only_known_pairs_have_gradients():
    features = torch.rand(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 255, 1], [255, 255, 255], [255, 255, 255]]])
    offsets = neighbor_offsets(3)
    known = affinity_labels(labels, offsets, pair_mask(3, 3, offsets))
    affinity_loss(affinities(features, offsets).float(), known).backward()
    touched = features.grad.abs().sum(dim=1)[0] > 0
    assert touched.tolist() == [[True, False, True], [False] * 3, [False] * 3]

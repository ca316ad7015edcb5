"""Tests of the global pooling of score maps, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcsm_attr.attribution.model import pool_score_maps

MAPS = torch.tensor([[[[1.0, -2.0], [0.5, 3.0]]]])


def test_by_hand():
    assert pool_score_maps(MAPS, "max").tolist() == [[3.0]]
    assert pool_score_maps(MAPS, "average").tolist() == [[0.625]]
    expected = math.log(sum(math.exp(5 * v) for v in (1.0, -2.0, 0.5, 3.0)) / 4) / 5
    assert pool_score_maps(MAPS, "logsumexp").item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_logsumexp_lies_between_average_and_maximum(seed, shift):
    maps = 10 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) + shift
    low, middle, high = (pool_score_maps(maps, name) for name in ("average", "logsumexp", "max"))
    assert (low <= middle + 1e-4).all()
    assert (middle <= high + 1e-4).all()


@pytest.mark.parametrize("name", ["max", "average", "logsumexp"])
def test_a_constant_map_is_pooled_to_its_value(name):
    assert torch.allclose(pool_score_maps(torch.full((1, 2, 3, 3), -1.5), name), torch.tensor(-1.5))


def test_bad_arguments():
    with pytest.raises(ValueError, match="pooling must be 'max', 'average' or 'logsumexp', got 'median'"):
        pool_score_maps(MAPS, "median")
    with pytest.raises(ValueError, match=r"must have shape \(N, C, h, w\), none of them 0; got \(1, 2\)"):
        pool_score_maps(torch.zeros(1, 2))

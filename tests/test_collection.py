"""Photographs at equal distances from a collection."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsm_attr.datasets.collection import Collection, LabeledImage


def collection(total):
    return Collection(("a",), tuple(LabeledImage(str(i), Path(f"{i}.png"), (0,)) for i in range(total)))


def chosen(total, count):
    return [int(photograph.name) for photograph in collection(total).evenly_spaced(count)]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (7, 3, [0, 2, 4]),
        (10, 4, [0, 2, 5, 7]),
        (4, 4, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (4, 0, [0, 1, 2, 3]),
        (5, 1, [0]),
        (0, 0, []),
        (0, 3, []),
    ],
)
def test_by_hand(total, count, expected):
    assert chosen(total, count) == expected


@given(st.integers(1, 200), st.integers(1, 200))
def test_gaps_differ_by_one_at_most(total, count):
    found = chosen(total, count)
    assert len(found) == min(count, total)
    gaps = [b - a for a, b in zip(found, [*found[1:], total], strict=True)]
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_the_classes_stay():
    assert collection(3).evenly_spaced(2).class_names == ("a",)

"""Nested settings laid flat, and what differs between two of them."""

from dcsm_attr.io import differences, flattened


def test_flattened_names_what_is_inside():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flattened(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_differences_are_named_with_both_values():
    before = {"seed": 0, "preset": {"steps": 8, "rate": 0.1}, "old": None}
    now = {"seed": 0, "preset": {"steps": 9, "rate": 0.1}, "new": "x"}
    expected = ["preset.steps (8 before, 9 now)", "old (None before, nothing now)", "new (nothing before, x now)"]
    assert differences(before, now) == expected
    assert differences(now, now) == []

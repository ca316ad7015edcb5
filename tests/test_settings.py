"""Nested settings: flattening them, and listing the differences of two of them."""

from dcsm_attr.io import diff_settings, flatten_settings


def test_flattening_names_nested_settings():
    nested = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}
    assert flatten_settings(nested) == {"a": 1, "b.c": [1, 2], "b.d.e": None}


def test_differences_are_named_with_both_values():
    before = {"seed": 0, "preset": {"steps": 8, "rate": 0.1}, "old": None}
    now = {"seed": 0, "preset": {"steps": 9, "rate": 0.1}, "new": "x"}
    expected = ["preset.steps (8 before, 9 now)", "old (None before, nothing now)", "new (nothing before, x now)"]
    assert diff_settings(before, now) == expected
    assert diff_settings(now, now) == []

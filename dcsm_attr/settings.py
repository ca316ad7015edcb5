"""Nested settings laid flat: for tables, and to say in what two of them differ."""

from collections.abc import Mapping
from typing import Any

__all__ = ["differences", "flattened"]


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with names such as ``"crf.iterations"``; lists stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": held for inner, held in flattened(value).items()}
        else:
            flat[name] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two nested settings, a phrase each: ``"crf.iterations (10 before, 5 now)"``."""
    old, new = flattened(before), flattened(now)
    return [
        f"{name} ({old.get(name, 'nothing')} before, {new.get(name, 'nothing')} now)"
        for name in {**old, **new}
        if name not in old or name not in new or old[name] != new[name]
    ]

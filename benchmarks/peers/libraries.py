"""The libraries of the peers, which nothing else in this package needs."""

from importlib import import_module
from typing import Any

__all__ = ["library"]


def library(module: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: its full name.

    Returns:
        The module.

    Raises:
        ImportError: if it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this method is that of another library, whose module {module} cannot be imported ({error}): pip install "
            '"dcsm_attr[peers]".'
        ) from error

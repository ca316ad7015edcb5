"""Photographs that were left out: named at the end, and told by the exit status."""

from collections.abc import Mapping

import typer

__all__ = ["report_skipped"]


def report_skipped(skipped: Mapping[str, str]) -> None:
    """Name what was skipped, and end with status 1; nothing happens where nothing was.

    Args:
        skipped: the reason, by the name of the photograph.
    """
    if not skipped:
        return
    typer.echo(f"{len(skipped)} photographs were left out:", err=True)
    for name, reason in skipped.items():
        typer.echo(f"  {name}: {reason}", err=True)
    raise typer.Exit(1)

"""The command line, one file a command."""

import io
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import dcsm_attr
from dcsm_attr.cli.evaluate import evaluate, miou
from dcsm_attr.cli.explain import attribute, demo, segment
from dcsm_attr.cli.pseudo_label import pseudo_label, report
from dcsm_attr.cli.seeds import affinity, ficklenet, seeds
from dcsm_attr.cli.train import labels, scenes, train, train_seg

__all__ = ["app", "main", "run_command"]

app = typer.Typer(
    name="dcsm-attr",
    help="Where a CNN sees each of several classes, and segmentation masks without a pixel label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(segment)
app.command()(attribute)
app.command()(labels)
app.command()(train)
app.command()(evaluate)
app.command()(affinity)
app.command()(seeds)
app.command()(ficklenet)
app.command(name="train-seg")(train_seg)
app.command(name="pseudo-label")(pseudo_label)
app.command()(miou)
app.command()(report)
app.command()(scenes)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dcsm_attr {dcsm_attr.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Where a CNN sees each of several classes, and segmentation masks without a pixel label."""


def main() -> None:
    """Run the command line."""
    run_command(app, "dcsm-attr")


def run_command(command: Callable[[], None], name: str) -> None:
    """Run a command line application; report user errors in one line, without a traceback.

    Args:
        command: the application.
        name: begins the line of an error.
    """
    for stream in (sys.stdout, sys.stderr):
        # The name of an image may hold what the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"{name}: {error}", err=True)
        sys.exit(1)

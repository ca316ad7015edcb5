"""The command line, one file per group of commands."""

import inspect
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

_GROUPS: dict[str, list[Callable[..., None]]] = {
    "Explain and segment": [segment, attribute, demo],
    "Train": [labels, train, train_seg, scenes],
    "Pseudo-labels": [seeds, affinity, ficklenet, pseudo_label, report],
    "Evaluate": [evaluate, miou],
}


def _join_lines(text: str) -> str:
    """Join the lines of each paragraph, because Typer keeps line breaks; examples keep their indentation."""
    paragraphs, heading, examples = inspect.cleandoc(text).partition("Examples:\n")
    joined = [" ".join(paragraph.split()) for paragraph in paragraphs.split("\n\n")]
    lines = ["  " + " ".join(example.split()) for example in examples.split("\n\n")]
    return "\n\n".join(joined) + heading + "\n\n".join(lines)


app = typer.Typer(
    name="dcsm-attr",
    help="Explain CNNs by class-specific saliency maps, and segment images without pixel labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _group, _commands in _GROUPS.items():
    for _command in _commands:
        _name = _command.__name__.replace("_", "-")
        app.command(_name, help=_join_lines(_command.__doc__ or ""), rich_help_panel=_group)(_command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dcsm_attr {dcsm_attr.__version__}")
        raise typer.Exit


@app.callback()
def _common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Explain CNNs by class-specific saliency maps, and segment images without pixel labels."""


def main() -> None:
    """Run the command line."""
    run_command(app, "dcsm-attr")


def run_command(command: Callable[[], None], name: str) -> None:
    """Run a command line application; report user errors in one line, without a traceback.

    Args:
        command: the application.
        name: prefix of error messages.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names may contain characters that the terminal's encoding lacks.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"{name}: {error}", err=True)
        sys.exit(1)

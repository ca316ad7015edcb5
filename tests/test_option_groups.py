"""Groups of options: dataclass parameters of a command."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from dcsm_attr.cli.options import with_option_groups


@dataclass(frozen=True)
class Paint:
    color: Annotated[str, typer.Option(help="Color of the wall.")] = "white"
    two_coats: Annotated[bool, typer.Option("--two-coats")] = False

    def __post_init__(self):
        if self.color == "plaid":
            raise ValueError("plaid is not a color")


@dataclass(frozen=True)
class Wall:
    side: Annotated[str, typer.Option()]


def runner(command):
    app = typer.Typer()
    app.command()(with_option_groups(command))
    return lambda *arguments: CliRunner().invoke(app, arguments)


@pytest.fixture
def paint():
    """Runs the command ``paint``; returns the result and what the function received in all calls."""
    received = []

    def command(wall: str, paint: Paint, hours: int = 3) -> None:
        """Paint a wall."""
        received.append((wall, paint, hours))

    run = runner(command)
    return lambda *arguments: (run(*arguments), received)


def test_a_command_receives_the_dataclass(paint):
    paint("north", "--color", "blue", "--two-coats", "--hours", "2")
    _, received = paint("south")
    assert received == [("north", Paint("blue", two_coats=True), 2), ("south", Paint(), 3)]


def test_a_default_of_the_parameter_gives_other_defaults():
    received = []

    def command(paint: Paint = Paint("red")) -> None:
        received.append(paint)

    run = runner(command)
    run()
    run("--two-coats")
    assert received == [Paint("red"), Paint("red", two_coats=True)]
    assert "[default: red]" in run("--help").output


def test_a_field_without_a_default_is_required():
    received = []

    def command(wall: Wall) -> None:
        received.append(wall)

    run = runner(command)
    assert run().exit_code == 2
    assert run("--side", "north").exit_code == 0
    assert received == [Wall("north")]


def test_the_help_has_the_fields_and_not_the_group(paint):
    text = paint("--help")[0].output
    assert "Paint a wall." in text
    assert "--color" in text
    assert "Color of the wall." in text
    assert "--paint" not in text


def test_an_error_of_the_dataclass_ends_the_command(paint):
    result, received = paint("north", "--color", "plaid")
    assert str(result.exception) == "plaid is not a color"
    assert not received

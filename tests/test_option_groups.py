"""Options that are told once, in a dataclass: what a command is given, and what a user is told."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from dcsm_attr.cli.options import with_option_groups


@dataclass(frozen=True)
class Paint:
    color: Annotated[str, typer.Option(help="Of the wall.")] = "white"
    two_coats: Annotated[bool, typer.Option("--two-coats")] = False

    def __post_init__(self):
        if self.color == "plaid":
            raise ValueError("plaid is no color")


@pytest.fixture
def painted():
    """What the command ``paint`` is given: a function of its arguments."""
    given = []

    @with_option_groups
    def paint(wall: str, paint: Paint, hours: int = 3) -> None:
        """Paint a wall."""
        given.append((wall, paint, hours))

    app = typer.Typer()
    app.command()(paint)

    def run(*arguments):
        result = CliRunner().invoke(app, arguments)
        return result, given

    return run


def test_a_command_is_given_the_dataclass(painted):
    painted("north", "--color", "blue", "--two-coats", "--hours", "2")
    _, given = painted("south")
    assert given == [("north", Paint("blue", two_coats=True), 2), ("south", Paint(), 3)]


def test_the_help_names_the_fields_and_not_the_group(painted):
    text = painted("--help")[0].output
    assert "Paint a wall." in text
    assert "--color" in text
    assert "Of the wall." in text
    assert "--paint" not in text


def test_what_the_dataclass_refuses_ends_the_command(painted):
    result, given = painted("north", "--color", "plaid")
    assert str(result.exception) == "plaid is no color"
    assert not given

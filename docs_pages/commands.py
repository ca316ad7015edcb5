"""The page of the command line, generated from the commands."""

import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dcsm_attr.evaluation.report import markdown_table

__all__ = ["commands_page"]

_TYPES = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def commands_page(group: Any, name: str) -> str:
    """All commands of a click group with their help, arguments, options and defaults.

    Args:
        group: such as ``typer.main.get_command(app)``.
        name: of the program.
    """
    blocks = [
        f"# Command line: {name}",
        f"{inspect.cleandoc(group.help)} `{name} COMMAND --help` prints the same text.",
    ]
    for command in group.commands.items():
        blocks += _command_section(f"{name} {command[0]}", command[1])
    return "\n\n".join(blocks) + "\n"


def _command_section(called: str, command: Any) -> list[str]:
    # The types of click differ between versions of Typer; the annotations of the function do not.
    signature = inspect.signature(command.callback, eval_str=True)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    usage = " ".join([called, "[OPTIONS]", *(_argument(one) for one in arguments)])
    paragraphs, examples = _split_help(command.help)
    blocks = [f"## {called}", f"```text\n{usage}\n```", *paragraphs]
    if examples:
        blocks.append("```bash\n" + "\n".join(examples) + "\n```")
    if arguments:
        rows = [["argument", ""], *([f"`{_argument(one)}`", _help(one)] for one in arguments)]
        blocks.append(markdown_table(rows, numbers=False))
    for panel in dict.fromkeys(getattr(one, "rich_help_panel", None) for one in options):
        of_panel = [one for one in options if getattr(one, "rich_help_panel", None) == panel]
        rows = [["option" if panel is None else f"{panel.lower()} option", "default", ""]]
        rows += [[_names(one, hints[one.name]), _default(one), _help(one)] for one in of_panel]
        blocks.append(markdown_table(rows, numbers=False))
    return blocks


def _split_help(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and its examples, one line each."""
    about, _, examples = inspect.cleandoc(text).partition("Examples:\n")
    joined = [" ".join(block.split()) for block in examples.split("\n\n")]
    return [" ".join(block.split()) for block in about.split("\n\n") if block.strip()], [one for one in joined if one]


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _names(option: Any, hint: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    text = names if option.is_flag else f"{names} {option.metavar or _values(hint)}"
    # Not between backticks: there a table shows the backslash of an escaped bar.
    return f"<code>{text.replace('|', '&#124;')}</code>"


def _values(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    inner = [one for one in get_args(hint) if one is not type(None)]
    if inner:
        return _values(inner[0])
    return _TYPES[hint] if hint in _TYPES else "|".join(choice.value for choice in hint)


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return "required"
    if value is None or value == [] or value == () or option.is_flag or callable(value):
        return "-"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"`{getattr(one, 'value', one)}`" for one in values)


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split()).replace("<", "&lt;")

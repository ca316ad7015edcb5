"""The page of the command line, from the commands themselves."""

import inspect
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from dcsm_attr.evaluation.report import markdown_table
from docs_pages.layout import page

__all__ = ["command_section", "commands_page", "split_help"]

_KINDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}


def commands_page(group: Any, name: str) -> str:
    """Every command of a click group.

    Args:
        group: such as ``typer.main.get_command(app)``.
        name: that it is called by.
    """
    about = [
        f"{inspect.cleandoc(group.help)} `{name} COMMAND --help` tells what stands here.",
        *(block for command in group.commands.items() for block in command_section(f"{name} {command[0]}", command[1])),
    ]
    return page(f"Command line: {name}", about)


def command_section(called: str, command: Any) -> list[str]:
    """One command: heading, usage, help, examples, arguments and options."""
    # Not from click's types, which Typer's versions have in different places.
    signature = inspect.signature(command.callback, eval_str=True)
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name == "option"]
    usage = " ".join([called, "[OPTIONS]", *(_argument(one) for one in arguments)])
    paragraphs, examples = split_help(command.help)
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


def split_help(text: str) -> tuple[list[str], list[str]]:
    """The paragraphs of a command's help, and its examples, one line each."""
    told, _, examples = inspect.cleandoc(text).partition("Examples:\n")
    joined = [" ".join(block.split()) for block in examples.split("\n\n")]
    return [" ".join(block.split()) for block in told.split("\n\n") if block.strip()], [one for one in joined if one]


def _argument(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _names(option: Any, hint: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    told = names if option.is_flag else f"{names} {option.metavar or _values(hint)}"
    # Not between backticks, where a table's escaped bar would be shown with its backslash.
    return f"<code>{told.replace('|', '&#124;')}</code>"


def _values(hint: Any) -> str:
    inner = [one for one in get_args(hint) if one is not type(None)]
    if inner:
        return _values(inner[0])
    return "|".join(choice.value for choice in hint) if issubclass(hint, Enum) else _KINDS[hint]


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return "required"
    if value is None or value == [] or value == () or option.is_flag or callable(value):
        return "-"
    values = value if isinstance(value, (list, tuple)) else [value]
    return " ".join(f"`{one.value if isinstance(one, Enum) else one}`" for one in values)


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split()).replace("<", "&lt;")

"""What pages tell people to type: marked Python runs and prints what is shown; commands take their command lines."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from dcsm_attr.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
# With what is printed, where that is shown.
_MARKED = re.compile(r"^<!-- runs -->\n```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(dcsm-attr [^`]*)`")
_BEFORE = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:dcsm-attr|(?:torchrun \S+ \S+|python) -m dcsm_attr) ")


def blocks(page):
    """The marked Python of a page, each with what it prints, or nothing."""
    return _MARKED.findall(page.read_text(encoding="utf-8"))


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_marked_python_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page_wide = {"__name__": page.stem}
    for block, shown in blocks(page):
        exec(compile(block, name(page), "exec"), page_wide)
        printed = capsys.readouterr().out
        if shown:
            assert values(printed) == values(shown)


def values(text):
    """Words, and numbers that may differ by rounding."""
    return [pytest.approx(float(one), abs=0.02) if re.fullmatch(r"\d+\.\d+", one) else one for one in text.split()]


def test_the_tutorial_and_how_tos_have_python_that_runs():
    assert {page.stem for page in PAGES if blocks(page)} >= {"tutorial", "attribute", "segment", "train", "evaluate"}


def shell_lines(page):
    """The command lines of a page's shell blocks, each in one line."""
    for block in _SHELL.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.partition("#")[0].split("&&"))


def spoken_lines(page):
    """Command lines within sentences, where arguments may be left out."""
    return [" ".join(found.split()) for found in _INLINE.findall(page.read_text(encoding="utf-8"))]


def parsed(line, *, whole):
    """Have the command read a line; it is not run."""
    words = shlex.split(_BEFORE.sub("", line))
    group = get_command(app)
    assert words[0] in group.commands or words[0].startswith("-"), f"there is no command {words[0]}"
    if words[0] in group.commands:
        command = group.commands[words[0]]
        if whole:
            command.make_context(words[0], words[1:])
        else:
            context = typer.Context(command, resilient_parsing=True)
            command.make_parser(context).parse_args(words[1:])


def lines(kind):
    return [(name(page), line) for page in PAGES for line in dict.fromkeys(kind(page)) if _BEFORE.match(line)]


@pytest.mark.parametrize(("page", "line"), lines(shell_lines))
def test_a_command_line_is_taken(page, line):
    parsed(line, whole=True)


@pytest.mark.parametrize(("page", "line"), lines(spoken_lines))
def test_a_command_line_in_a_sentence_has_options_that_exist(page, line):
    parsed(line.replace("...", "").replace("…", ""), whole=False)


@pytest.mark.parametrize(
    "line", ["dcsm-attr segmnt a.jpg", "dcsm-attr segment a.jpg --wights demo", "dcsm-attr segment a.jpg --preset best"]
)
def test_the_check_can_fail(line):
    with pytest.raises(Exception, match="there is no command|No such option|is not one of"):
        parsed(line, whole=True)

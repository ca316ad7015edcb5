"""The documentation: Python on pages runs, commands parse, names and links exist, and generated pages are complete."""

import json
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from benchmarks.model_tables import report, tables
from dcsm_attr.cli import app
from docs_pages.commands import commands_page
from docs_pages.links import link_names, linked_files, relink, site_path
from docs_pages.modules import import_order, module_list, reference_page
from docs_pages.results import Results, accuracy_page, benchmarks_page
from docs_pages.results import tables as json_tables

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dcsm_attr"
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
COMMANDS = typer.main.get_command(app)

# Python that is run, with the output that is shown.
_PYTHON = re.compile(r"^<!-- runs -->\n```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(dcsm-attr [^`]*)`")
_PROGRAM = re.compile(r"^(?:[A-Z_]+=\S+ )*(?:dcsm-attr|(?:torchrun \S+ \S+|python) -m dcsm_attr) ")
# Not paths of files and folders.
_DOTTED = re.compile(r"(?<![\w./-])dcsm_attr(?:\.(?!md\b)[A-Za-z_]\w*)+(?![\w/-])")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if _PYTHON.search(text_of(page))], ids=name_of)
def test_python_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch, capsys):
    def comparable(text):
        """Words, and numbers that may differ by rounding."""
        return [pytest.approx(float(x), abs=0.02) if re.fullmatch(r"\d+\.\d+", x) else x for x in text.split()]

    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for block, shown in _PYTHON.findall(text_of(page)):
        exec(compile(block, name_of(page), "exec"), names)
        printed = capsys.readouterr().out
        if shown:
            assert comparable(printed) == comparable(shown)


def shell_lines(page):
    """The command lines in the shell blocks of a page."""
    for block in _SHELL.findall(text_of(page)):
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in line.partition("#")[0].split("&&"))


def parse(line, *, complete):
    """Have the command parse a line without running it; incomplete lines may lack required arguments."""
    words = shlex.split(_PROGRAM.sub("", line))
    if words[0].startswith("-"):
        return
    assert words[0] in COMMANDS.commands, f"there is no command {words[0]}"
    command = COMMANDS.commands[words[0]]
    if complete:
        command.make_context(words[0], words[1:])
    else:
        context = typer.Context(command, resilient_parsing=True)
        command.make_parser(context).parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_parse(page):
    for line in dict.fromkeys(shell_lines(page)):
        if _PROGRAM.match(line):
            parse(line, complete=True)
    for line in dict.fromkeys(_INLINE.findall(text_of(page))):
        parse(" ".join(line.replace("...", "").replace("…", "").split()), complete=False)


def exists(name):
    try:
        resolve_name(name)
    except AttributeError:
        # A field of a dataclass is not always an attribute of the class.
        owner, _, attribute = name.rpartition(".")
        try:
            cls = resolve_name(owner)
        except (AttributeError, ImportError):
            return False
        return is_dataclass(cls) and attribute in {field.name for field in fields(cls)}
    except ImportError as error:
        # A module that needs a package that is not installed exists.
        return error.name is not None and not error.name.startswith("dcsm_attr")
    return True


def test_names_exist():
    assert exists("dcsm_attr.Segmentation.labels")
    assert not exists("dcsm_attr.Segmentation.nonsense")
    wrong = [
        (name_of(page), name) for page in PAGES for name in set(_DOTTED.findall(text_of(page))) if not exists(name)
    ]
    # The changelog maps removed modules to their successors.
    assert [pair for pair in wrong if pair[0] != "CHANGELOG.md"] == []


def test_files_and_tests_exist():
    tests = {name for file in ROOT.glob("tests/*.py") for name in re.findall(r"^def (test_\w+)", text_of(file), re.M)}
    generated = {ROOT / "docs" / page for page in ("measured/accuracy.md", "measured/benchmarks.md", "command-line.md")}
    generated |= {ROOT / "docs/reference/attribution.md"}
    wrong = []
    for page in PAGES:
        text = text_of(page)
        named = {ROOT / path for path in re.findall(r"`((?:tests|benchmarks|examples|notebooks)/[\w./]+\.\w+)`", text)}
        outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        links = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", outside_code) if ":" not in link}
        files = named | {(page.parent / link).resolve() for link in links}
        wrong += [(name_of(page), path) for path in files if not path.exists() and path not in generated]
        wrong += [(name_of(page), name) for name in re.findall(r"(?<=[:`])test_\w+(?=`)", text) if name not in tests]
    assert wrong == []


def test_the_pages_of_results_show_every_result_with_its_command():
    results = Results(RESULTS)
    text = accuracy_page(results) + benchmarks_page(results)
    assert results.unused() == []
    for path in RESULTS.rglob("*.json"):
        assert f"`{json.loads(text_of(path))['measured']['command']}`" in text, path
    assert "| voc_squeezenet | known | 28.7 | 28.9 | 68.9 |" in text


def test_json_becomes_tables():
    content = {
        "measured": {"command": "a"},
        "images": 20,
        "by rate": {"0.3": {"1": {"mean IoU": 20.69}, "5": {"mean IoU": 21.96}}},
        "results": [{"seed": 0, "mean IoU": {"raw": 42.0}}, {"seed": 1, "mean IoU": {"raw": 0.123456}}],
        "samples": [[0, 1], [2, 3]],
    }
    facts, rates, seeds = json_tables(content)
    assert "| images | 20 |" in facts
    assert rates.splitlines()[2:] == ["| 1 | 20.69 |", "| 5 | 21.96 |"]
    assert seeds.splitlines()[0] == "|  | seed | mean IoU, raw |"
    assert seeds.splitlines()[2:] == ["|  | 0 | 42 |", "|  | 1 | 0.1235 |"]


def test_the_report_of_the_models_is_generated_from_its_result():
    content = json.loads((RESULTS / "models" / "models.json").read_text())
    assert report(content) == (RESULTS / "models" / "models.md").read_text()
    assert tables(content) in report(content)


def test_the_page_of_the_command_line_has_every_option():
    page = commands_page(COMMANDS, "dcsm-attr")
    headings = re.findall(r"^## dcsm-attr (.*)$", page, re.MULTILINE)
    parts = dict(zip(headings, re.split(r"^## .*$", page, flags=re.MULTILINE)[1:], strict=True))
    assert list(parts) == list(COMMANDS.commands)
    for name, part in parts.items():
        help_text = CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(app, [name, "--help"]).output
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text)) - {"--help"}
        assert options <= set(re.findall(r"--[a-z][a-z-]+", part)), name
    assert "| <code>--preset paper&#124;tuned</code> | `paper` |" in page
    assert "| <code>--model NAME</code> |" in page
    assert "| <code>--label-maps FOLDER</code> | required |" in page


def test_the_architecture_lists_every_package_and_module():
    page = text_of(ROOT / "docs" / "architecture.md")
    listed = re.findall(r"<!-- modules: (\S+?)(?:\.py)? -->", page)
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"io", "demo"}
    assert set(listed) == packages
    assert "- `maps`: " in module_list(PACKAGE / "attribution")
    assert "::: dcsm_attr.attribution.maps\n" in reference_page(PACKAGE / "attribution")
    assert "::: dcsm_attr.io\n" in reference_page(PACKAGE / "io.py")
    lines = import_order(ROOT / "setup.cfg").splitlines()
    assert set(re.findall(r"dcsm_attr\.(\w+)", " ".join(lines))) == packages
    assert lines[1] == "dcsm_attr.cli"


def test_links_to_files_of_the_repository_lead_into_the_site(tmp_path):
    for name in ("docs/how/a.md", "docs/b.md", "src/x.py", "res/r.md", "res/p.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("![p](p.png)\n")
    assert site_path("docs/b.md") == "b.md"
    text = "[x](../../src/x.py#L1) [r](../../res/r.md) [d](../../src) [b](../b.md#t) [w](https://a/b) [no](../../no.py)"
    assert relink(text, "docs/how/a.md", tmp_path) == (
        "[x](../repository/src/x.py.md#L1) [r](../repository/res/r.md) [d](../repository/src.md) [b](../b.md#t) "
        "[w](https://a/b) [no](../../no.py)"
    )
    assert linked_files({"docs/how/a.md": text}, tmp_path) == {"src/x.py", "res/r.md", "src", "res/p.png"}


def test_names_link_to_the_reference_outside_of_links_and_headings():
    code = "<code>dcsm_attr.io.FolderStorage</code>"
    closed = f'<h2 id="x">{code}</h2><a href="y">see {code}</a><pre>{code}</pre>'
    linked = f'<p><autoref identifier="dcsm_attr.io.FolderStorage" optional>{code}</autoref></p>'
    assert link_names(f"<p>{code}</p>{closed}<code>x</code>") == f"{linked}{closed}<code>x</code>"


def test_roles_and_formulas_of_docstrings_become_markdown():
    pytest.importorskip("griffe", reason="needs griffe: pip install 'dcsm_attr[docs]'")
    from docs_pages.docstring_roles import as_markdown

    known = {"a.b.c": "a.b.c", "Maps.raw": "a.Maps.raw"}
    text = "See :func:`~a.b.c`, :attr:`Maps.raw`, :meth:`gone`, :math:`x\n  + 1`."
    assert as_markdown(text, known.get) == (
        'See <autoref identifier="a.b.c" optional><code>c</code></autoref>, '
        '<autoref identifier="a.Maps.raw" optional><code>Maps.raw</code></autoref>, `gone`, $x + 1$.'
    )
    assert as_markdown("So:\n\n.. math::\n    a = b,\n    c\n\nThen.", known.get) == "So:\n\n$$ a = b, c $$\n\nThen."
    captum = (
        "Args:\n\n    x (int): One.\n\nReturns:\n    *Tensor* of **a**:\n    - **a**: it.\n\nExamples::\n\n    >>> f()"
    )
    assert as_markdown(captum, {}.get) == (
        "Args:\n    x (int): One.\n\nReturns:\n    *Tensor* of **a**:\n\n    - **a**: it.\n\nExamples:\n\n    >>> f()"
    )


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason="needs latex2mathml: pip install 'dcsm_attr[docs]'")
    from docs_pages.formulas import with_mathml

    page = with_mathml('<p>a <span class="arithmatex">\\(x &lt; 1\\)</span></p><div class="arithmatex">\\[ y \\]</div>')
    assert page.startswith('<p>a <math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert "<mi>x</mi><mo>&#x0003C;</mo><mn>1</mn>" in page
    assert '<div class="formula"><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page
    with pytest.raises(ValueError, match=r"does not support \\nonsense in the formula"):
        with_mathml('<span class="arithmatex">\\(\\nonsense x\\)</span>')

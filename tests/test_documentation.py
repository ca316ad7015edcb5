"""The pages of the documentation that are made: from results, commands, docstrings and the contract of the packages."""

import copy
import inspect
import json
import logging
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import typer.main
from docs_pages.comparisons import comparisons
from typer.testing import CliRunner

import dcsm_attr
from benchmarks.model_tables import report, tables
from dcsm_attr.cli import app
from docs_pages.ablations import ablation, by_title, sections
from docs_pages.accuracy import accuracy
from docs_pages.benchmarks import benchmarks
from docs_pages.commands import commands_page, split_help
from docs_pages.contract import file_tables, imports_of, layers, package_table, packages, picture, purpose
from docs_pages.evaluations import comparison, given_options, label_table, rows_per_class
from docs_pages.name_links import linked_names
from docs_pages.repository_links import linked_files, place, relinked, shown
from docs_pages.results import Results, origin
from docs_pages.single_results import crf_parity, demo_seeds, fickle_rates, pseudo_label_rates

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = ROOT / "dcsm_attr"
MEASURED = {
    "command": "dcsm-attr evaluate VOC --weights=w.safetensors --split=val --protocol=both --count=0 --preset=tuned",
    "commit": "abc1234",
    "processor": "AMD EPYC",
    "cores": 2,
    "gpu": None,
    "python": "3.11.7",
    "torch": "2.15.0",
}


def _pages(folder):
    results = Results(folder)
    pages = accuracy(results) + benchmarks(results) + tables(results.json("models/models.json"))
    return pages, results.not_shown()


@pytest.fixture(scope="module")
def copied_results(tmp_path_factory):
    return shutil.copytree(RESULTS, tmp_path_factory.mktemp("results") / "results")


@pytest.fixture(scope="module")
def pages(copied_results):
    return _pages(copied_results)[0]


def _other_numbers(content):
    if isinstance(content, dict):
        return {k: v if k == "measured" else _other_numbers(v) for k, v in content.items()}
    if isinstance(content, list):
        return [_other_numbers(one) for one in content]
    if isinstance(content, bool) or not isinstance(content, (int, float)):
        return content
    return 1.5 * content + 1 if isinstance(content, float) else content + 3


@pytest.mark.parametrize("name", [path.relative_to(RESULTS).as_posix() for path in sorted(RESULTS.rglob("*.json"))])
def test_another_number_in_a_result_is_another_number_on_a_page(copied_results, pages, name):
    file = copied_results / name
    written = file.read_text()
    file.write_text(json.dumps(_other_numbers(json.loads(written))))
    changed, _ = _pages(copied_results)
    file.write_text(written)
    assert changed != pages


def test_a_result_that_no_page_shows_is_named(copied_results):
    assert _pages(copied_results)[1] == []
    strange = copied_results / "speed" / "new.json"
    strange.write_text("{}")
    (copied_results / "speed" / "new.md").write_text("# New\n")
    left = _pages(copied_results)[1]
    strange.unlink()
    (copied_results / "speed" / "new.md").unlink()
    assert left == ["speed/new.json", "speed/new.md"]


def test_every_result_stands_with_its_command(pages):
    for path in RESULTS.rglob("*.json"):
        assert f"`{json.loads(path.read_text())['measured']['command']}`" in pages, path


def test_origin_tells_command_machine_and_commit():
    assert origin(MEASURED) == (
        f"`{MEASURED['command']}`; AMD EPYC, 2 cores, no GPU, Python 3.11.7, torch 2.15.0, commit abc1234."
    )
    assert "2 cores, NVIDIA H100, Python" in origin({**MEASURED, "gpu": "NVIDIA H100"})


def _evaluation(protocol, before, after):
    def overlap(share):
        return share and {"mean IoU": share, "IoU": {"background": 0.5, "cat": share, "dog": None}}

    return {
        "protocol": protocol,
        "photographs": 7,
        "before the CRF": overlap(before),
        "after the CRF": overlap(after),
        "mean average precision of the classifier": 0.6894,
    }


def test_evaluations_stand_side_by_side():
    both = {
        "measured": MEASURED,
        "evaluations": [_evaluation("detected", 0.2088, 0.2151), _evaluation("known", 0.2868, 0.2892)],
    }
    known = {
        "measured": {**MEASURED, "command": "dcsm-attr evaluate VOC"},
        "evaluations": [_evaluation("known", 0.3, None)],
    }
    rows = comparison({"a.json": both, "b.json": known}, {"a.json": "a.md", "b.json": "b.md"}).splitlines()
    assert rows[2] == "| [a](a.md) | `--preset tuned` | 28.7 | 28.9 | 20.9 | 21.5 | 68.9 | 7 |"
    assert rows[3] == "| [b](b.md) | none: `--preset paper` | 30.0 | - | - | - | 68.9 | 7 |"


def test_options_are_those_that_say_what_was_evaluated():
    assert (
        given_options("dcsm-attr evaluate V --weights=w --preset=tuned --walk=a.st") == "`--preset tuned --walk a.st`"
    )


def test_each_class_has_a_row_for_what_occurs_and_what_does_not():
    text = rows_per_class(
        "a", {"data": "Split.", "measured": MEASURED, "evaluations": [_evaluation("known", 0.25, None)]}
    )
    assert text.startswith('??? note "Each class: a"\n\n    Split.')
    assert "    | IoU in % | known, before the CRF |" in text
    assert "    | cat | 25.0 |\n    | dog | - |" in text


def test_label_maps_have_their_precision():
    content = {"photographs": 5, "mean IoU": 0.475, "unknown": 0.371, "precision of foreground": 0.575}
    table = label_table({"cam": {**content, "precision of background": 0.911}})
    assert table.splitlines()[-1] == "| cam | 47.5 | 37.1 | 57.5 | 91.1 | 5 |"


def _ablation(title="The steepness of tanh (Table 1 of the paper)"):
    steps = ("Eq. 7, before CRF", "Eq. 7, after CRF", "own background, before CRF", "own background, after CRF")
    row = {
        "series": "DCSM",
        "label": "alpha 3",
        "exponent": 4.0,
        "mean IoU": dict(zip(steps, (0.28678, 0.28921, 0.32611, 0.33431), strict=True)),
        "IoU": {step: {"background": 0.7, "cat": None} for step in steps},
        **{
            share: dict.fromkeys(steps, value)
            for share, value in (("coverage", 0.66), ("mistaken", 0.12), ("spilled", 0.5))
        },
    }
    grabcut = copy.deepcopy(row) | {"series": "Simonyan", "label": "with GrabCut", "exponent": None}
    for kind in ("mean IoU", "IoU", "coverage", "mistaken", "spilled"):
        grabcut[kind]["own background, before CRF"] = None
    grabcut["coverage"]["own background, after CRF"] = 0.32
    about = {"network": "squeezenet1_1", "head": "extended"}
    return {
        "title": title,
        "protocol": "known",
        "data": "Split.",
        "about": about,
        "measured": MEASURED,
        "rows": [row, grabcut],
    }


def test_an_ablation_has_its_figures_picture_and_origin():
    data, table, image, told = ablation(_ablation(), ["alpha.png"])
    assert data == "Split."
    assert table.splitlines()[2:] == [
        "| DCSM | alpha 3 | 4 | 28.7 | 28.9 | 32.6 | 33.4 | 66.0 | 12.0 | 50.0 |",
        "| Simonyan | with GrabCut | - | 28.7 | 28.9 | - | 33.4 | 32.0 | 12.0 | 50.0 |",
    ]
    assert image == "![The steepness of tanh (Table 1 of the paper)](alpha.png)"
    assert told == origin(MEASURED)


def test_classes_are_shown_where_the_title_promises_them():
    text = "\n".join(ablation(_ablation("With CRF, and each class (Table 6 of the paper)"), []))
    assert "    | background | 70.0 | 70.0 | 70.0 |" in text
    assert "Simonyan, with GrabCut, before CRF" not in text


def test_tables_of_the_paper_come_first_in_its_order_and_networks_are_tabs():
    ten, two, other = (_ablation(title) for title in ("T (Table 10 of the paper)", "T (Table 2 of the paper)", "A"))
    assert list(by_title({"x": other, "y": ten, "z": two})) == [two["title"], ten["title"], "A"]
    title, panes = sections({"x": other, "y": other | {"protocol": "detected"}}, {"x": [], "y": []})
    assert title == "### A"
    assert re.findall(r'^=== "(.*)"$', panes, re.MULTILINE) == [
        "squeezenet1_1, extended head, known classes",
        "squeezenet1_1, extended head, detected classes",
    ]


def test_comparisons_keep_median_fastest_slowest_and_memory():
    times = {"median": 1.2, "fastest": 1.1, "slowest": 2.0}
    comparison = {"title": "vgg16", "seconds": {"dcsm_attr": times, "other": {**times, "median": 1.8}}}
    content = {
        "comparisons": [comparison | {"peak memory in bytes": {"other": 2**21}}],
        "scaling": [],
        "measured": MEASURED,
    }
    _, table, _ = comparisons(content)
    assert table.splitlines()[2:] == [
        "| dcsm_attr | 1200 | 1100 | 2000 | 1.00 | - |",
        "| other | 1800 | 1100 | 2000 | 1.50 | 2 |",
    ]


def test_a_line_over_counts_is_drawn_again_from_its_seconds():
    scaling = {"title": "vgg16, by the number of images", "seconds": {"1": 1.0, "2": 3.0, "3": 5.0}}
    _, text, _ = comparisons({"comparisons": [], "scaling": [scaling], "measured": MEASURED})
    assert "| images | 1 | 2 | 3 |" in text
    assert "2000 ms for each of the images explains 1.0000 of the variance." in text


def test_single_results_show_their_values():
    demo = {"results": [{"network": 0, "scenes": 31, "mean IoU in %": {"raw maps": 42.04, "with the CRF": 71.03}}]}
    assert demo_seeds(demo).splitlines()[-1] == "| 0 | 31 | 42.0 | 71.0 |"
    rates = {"general, 0.3": {"1": {"mean IoU": 20.69}, "5": {"mean IoU": 21.96}}}
    assert (
        fickle_rates({"by rate, then by draws": rates}, "mean IoU").splitlines()[-1]
        == "| general | 0.3 | 20.7 | 22.0 |"
    )
    parity = {
        "largest difference": 5.9e-6,
        "labels equal": 0.9999994,
        "seconds": 0.168,
        "seconds of pydensecrf": 0.241,
        "ratio": 0.7,
    }
    table = crf_parity({"rows": {"deeplab (80/13, 3), 4 labels": parity}})
    assert table.splitlines()[-1] == "| deeplab (80/13, 3) | 4 | 99.99994 % | 6e-06 | 0.17 s | 0.24 s | 0.70 |"
    engine = {"by engine": {"Ray, two actors": {"photographs a second": 2.147, "samples": [[0, 0, 1]]}}}
    assert pseudo_label_rates(engine).splitlines()[-1] == "| Ray, two actors | 2.147 |"


def test_the_report_of_the_models_is_that_of_their_result():
    content = json.loads((RESULTS / "models" / "models.json").read_text())
    assert report(content) == (RESULTS / "models" / "models.md").read_text()
    content["models"]["vgg16"]["rectifiers"]["guided"] -= 1
    assert "67 of 68 pass" in report(content)


COMMANDS = typer.main.get_command(app)


def test_every_command_and_every_option_of_its_help_is_on_the_page():
    page = commands_page(COMMANDS, "dcsm-attr")
    parts = dict(
        zip(
            re.findall(r"^## dcsm-attr (.*)$", page, re.MULTILINE),
            re.split(r"^## .*$", page, flags=re.M)[1:],
            strict=True,
        )
    )
    assert list(parts) == list(COMMANDS.commands)
    for name, part in parts.items():
        help_text = CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(app, [name, "--help"]).output
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", help_text)) - {"--help"}
        assert options <= set(re.findall(r"--[a-z][a-z-]+", part)), name
        assert inspect.cleandoc(COMMANDS.commands[name].help).splitlines()[0] in part


def test_examples_of_a_command_are_its_help_s_examples():
    told, examples = split_help("Do it.\n\nIt is\ndone.\n\nExamples:\n  do it --now\n\n  do it\n  --later\n")
    assert (told, examples) == (["Do it.", "It is done."], ["do it --now", "do it --later"])


def test_options_have_their_values_and_defaults():
    page = commands_page(COMMANDS, "dcsm-attr")
    assert "| <code>--preset paper&#124;tuned</code> | `paper` |" in page
    assert "| <code>--model NAME</code> | `vgg16` |" in page
    assert "| <code>--no-subtract</code> | - |" in page
    assert "| <code>--labels-from FOLDER</code> | required |" in page


def test_a_command_may_have_other_parameters_than_its_function():
    def command(**given):
        """Do it."""

    count = inspect.Parameter("count", inspect.Parameter.KEYWORD_ONLY, default=3, annotation=int | None)
    command.__signature__ = inspect.Signature([count])
    tool = typer.Typer()
    tool.command()(command)
    tool.callback()(lambda: None)
    tool.info.help = "A tool."
    assert "| <code>--count INTEGER</code> | `3` |" in commands_page(typer.main.get_command(tool), "tool")


def _image_rows():
    rows = {}
    for y, name in re.findall(
        r'<text x="[\d.]+" y="(\d+)">(\w+)</text>', picture(layers(ROOT / "setup.cfg", "dcsm_attr"))
    ):
        rows.setdefault(int(y), []).append(name)
    return [rows[y] for y in sorted(rows)]


def test_contributing_tells_what_each_package_is_for_by_its_docstring():
    told = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert told == [(name, purpose(source)) for name, source in packages(PACKAGE).items()]


def test_the_picture_of_the_packages_is_the_contract_of_import_linter():
    contract = (ROOT / "setup.cfg").read_text().split("\nlayers =\n")[1].split("\n[")[0]
    assert _image_rows() == [re.findall(r"dcsm_attr\.(\w+)", line) for line in contract.splitlines() if line.strip()]


def test_every_package_is_in_the_picture_and_in_the_table_once():
    there = sorted(module.name for module in pkgutil.iter_modules(dcsm_attr.__path__) if module.name != "__main__")
    assert sorted(name for row in _image_rows() for name in row) == there
    assert re.findall(r'id="package-(\w+)"', package_table(PACKAGE)) == there


def test_every_file_has_its_line():
    text = file_tables(PACKAGE)
    files = {path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE and path.name != "__init__.py"}
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    assert set(re.findall(r"^    \| `(dcsm_attr\.[\w.]+)` \| [\w`]", text, re.MULTILINE)) == named
    assert "| `dcsm_attr.cli.explain` | `dcsm-attr segment`: photographs to label maps. |" in text


def test_packages_import_those_below_them_alone():
    rows = _image_rows()
    level = {name: number for number, row in enumerate(rows) for name in row}
    found = {name: imports_of(source, "dcsm_attr") for name, source in packages(PACKAGE).items()}
    assert "maps" in found["attribution"]
    assert [
        (name, used) for name, all_used in found.items() for used in all_used if level.get(used, 99) <= level[name]
    ] == []


def test_a_package_s_imports_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "__init__.py").write_text("from root.b.c import d\n")
    (tmp_path / "root" / "a" / "x.py").write_text(
        "import os\ndef f():\n    import root.e\n    from root import g\n    from root.a import y\n"
    )
    assert imports_of(tmp_path / "root" / "a" / "__init__.py", "root") == ["b", "e", "g"]


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("docs/measured/voc.md", "measured/voc.md"),
        ("benchmarks/results/a.md", "repository/benchmarks/results/a.md"),
        ("benchmarks/results/a.png", "repository/benchmarks/results/a.png"),
        ("dcsm_attr/attribution/maps.py", "repository/dcsm_attr/attribution/maps.py.md"),
        ("benchmarks/results", "repository/benchmarks/results.md"),
    ],
)
def test_each_file_of_the_repository_has_its_place_in_the_site(path, where):
    assert place(path) == where


@pytest.fixture
def repository(tmp_path):
    for name in ("docs/how/a.md", "docs/b.md", "src/x.py", "res/r.md", "res/p.png", "GUIDE.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "res/r.md").write_text("![p](p.png) [guide](../GUIDE.md)\n")
    (tmp_path / "GUIDE.md").write_text("[b](docs/b.md)\n")
    return tmp_path


def test_links_out_of_the_pages_lead_to_where_the_files_stand(repository):
    text = "[x](../../src/x.py#L1) [r](../../res/r.md) ![p](../../res/p.png) [d](../../src) [b](../b.md#t) [w](https://a/b)"
    assert relinked(text, "docs/how/a.md", repository) == (
        "[x](../repository/src/x.py.md#L1) [r](../repository/res/r.md) ![p](../repository/res/p.png) "
        "[d](../repository/src.md) [b](../b.md#t) [w](https://a/b)"
    )
    assert relinked("[b](docs/b.md)", "GUIDE.md", repository) == "[b](../b.md)"


def test_a_link_to_nothing_stays_for_the_strict_build_to_refuse(repository):
    assert relinked("[x](../../src/no.py)", "docs/how/a.md", repository) == "[x](../../src/no.py)"


def test_files_that_linked_files_link_to_come_too(repository):
    texts = {"docs/how/a.md": "[r](../../res/r.md) [no](../../no.py) [out](../../../secret)"}

    def text_of(page):
        return texts.get(page) or (repository / page).read_text()

    assert linked_files(texts, repository, text_of) == {"res/r.md", "res/p.png", "GUIDE.md"}


def test_code_and_folders_are_shown_as_pages_and_images_as_they_are(repository):
    assert "# src/x.py\n\n``````python\nsrc/x.py\n``````" in shown("src/x.py", repository)
    assert "- `p.png`\n- `r.md`\n" in shown("res", repository)
    assert shown("res/p.png", repository) is None


TYPED = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MADE = {ROOT / "docs" / page for page in ("measured/accuracy.md", "measured/benchmarks.md", "command-line.md")}


@pytest.mark.parametrize("page", TYPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_typed_pages_lead_to_files(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if ":" not in link}
    missing = [link for link in targets if not ((file := (page.parent / link).resolve()).exists() or file in MADE)]
    assert missing == []


def test_every_public_name_has_a_page_of_reference():
    documented = {
        line.removeprefix("::: ")
        for page in (ROOT / "docs" / "reference").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith("::: ")
    }
    for module in documented:
        assert pkgutil.resolve_name(module).__all__, module
    for package in ("dcsm_attr", "dcsm_attr.affinity", "benchmarks.peers"):
        home = pkgutil.resolve_name(package)
        names = [name for name in home.__all__ if name != "__version__"]
        assert {
            getattr(home, name).__module__ for name in names if hasattr(getattr(home, name), "__module__")
        } <= documented


def _roles():
    pytest.importorskip("griffe", reason="needs griffe, which the extra docs installs")
    from docs_pages import docstring_roles

    return docstring_roles


def test_roles_and_formulas_of_docstrings_become_markdown():
    as_markdown = _roles().as_markdown
    known = {"a.b.c": "a.b.c", "Maps.raw": "a.Maps.raw"}
    text = "See :func:`~a.b.c`, :attr:`Maps.raw`, :meth:`gone`, :math:`x\n  + 1`."
    assert as_markdown(text, known.get) == (
        'See <autoref identifier="a.b.c" optional><code>c</code></autoref>, '
        '<autoref identifier="a.Maps.raw" optional><code>Maps.raw</code></autoref>, `gone`, $x + 1$.'
    )
    assert as_markdown("So:\n\n.. math::\n    a = b,\n    c\n\nThen.", known.get) == "So:\n\n$$ a = b, c $$\n\nThen."
    assert as_markdown(".. math:: a = b\n\nThen.", known.get) == "$$ a = b $$\n\nThen."


def test_captum_s_layout_becomes_google_s():
    text = (
        "Args:\n\n    x (int): One.\n\nReturns:\n    *Tensor* of **a**:\n    - **a**: it.\n\nExamples::\n\n    >>> f()"
    )
    assert _roles().as_markdown(text, {}.get) == (
        "Args:\n    x (int): One.\n\nReturns:\n    *Tensor* of **a**:\n\n    - **a**: it.\n\nExamples:\n\n    >>> f()"
    )


def test_a_role_that_names_nothing_is_a_warning(tmp_path, caplog):
    roles = _roles()
    import griffe

    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(
        '"""Has :func:`f` and :func:`pack.g`."""\ndef f():\n    """:class:`pack`."""\n'
    )
    with caplog.at_level(logging.WARNING):
        pack = griffe.load("pack", search_paths=[tmp_path], extensions=griffe.load_extensions(roles.DocstringRoles))
    assert pack.docstring.value == 'Has <autoref identifier="pack.f" optional><code>f</code></autoref> and `pack.g`.'
    assert [record.getMessage() for record in caplog.records] == ["pack refers to pack.g, which does not exist."]


def test_names_in_the_text_lead_to_the_reference_but_not_within_links_and_headings():
    code = "<code>dcsm_attr.io.FolderStorage</code>"
    kept = f'<h2 id="x">{code}</h2><a href="y">see {code}</a><pre>{code}</pre>'
    assert linked_names(f"<p>{code}</p>{kept}<code>x</code>") == (
        f'<p><autoref identifier="dcsm_attr.io.FolderStorage" optional>{code}</autoref></p>{kept}<code>x</code>'
    )


def test_formulas_are_mathml_and_unknown_commands_are_refused():
    pytest.importorskip("latex2mathml", reason="needs latex2mathml, which the extra docs installs")
    from docs_pages.formulas import with_mathml

    page = with_mathml('<p>a <span class="arithmatex">\\(x &lt; 1\\)</span></p><div class="arithmatex">\\[ y \\]</div>')
    assert page.startswith('<p>a <math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert "<mi>x</mi><mo>&#x0003C;</mo><mn>1</mn>" in page
    assert '<div class="formula"><math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page
    logarithms = with_mathml('<span class="arithmatex">\\(\\log s + \\log(t)\\)</span>')
    assert '<mi>log</mi><mspace width="0.17em" /><mi>s</mi>' in logarithms
    assert '<mi>log</mi><mo stretchy="false">' in logarithms
    with pytest.raises(ValueError, match=r"\\nonsense in the formula .* is not known"):
        with_mathml('<span class="arithmatex">\\(\\nonsense x\\)</span>')

"""What the documentation site adds to MkDocs: the pages that are made, the repository's files, and formulas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

from benchmarks.model_tables import tables
from dcsm_attr.cli import app
from docs_pages.accuracy import accuracy
from docs_pages.benchmarks import benchmarks
from docs_pages.commands import commands_page
from docs_pages.contract import file_tables, layers, package_table, picture
from docs_pages.formulas import with_mathml
from docs_pages.name_links import linked_names
from docs_pages.repository_links import linked_files, place, relinked, shown
from docs_pages.results import Results

ROOT = Path(__file__).parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = ROOT / "dcsm_attr"


def generated_pages() -> dict[str, str]:
    """The pages that are made, by their path below ``docs/``.

    Raises:
        PluginError: naming the files, if a result is shown by no page.
    """
    results = Results(RESULTS)
    pages = {
        "measured/accuracy.md": accuracy(results),
        "measured/benchmarks.md": benchmarks(results),
        "command-line.md": commands_page(typer.main.get_command(app), "dcsm-attr"),
    }
    left = results.not_shown()
    if left:
        raise PluginError(f"no page shows these results: {', '.join(left)}. Add them to docs_pages/, or remove them.")
    return pages


#: What takes the place of the marks in typed pages.
MARKS: dict[str, Callable[[], str]] = {
    "<!-- table: models -->": lambda: tables(Results(RESULTS).json("models/models.json")),
    "<!-- picture: packages -->": lambda: picture(layers(ROOT / "setup.cfg", PACKAGE.name)),
    "<!-- table: packages -->": lambda: package_table(PACKAGE),
    "<!-- tables: files -->": lambda: file_tables(PACKAGE),
}


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are made, and the files of the repository that pages link to."""
    pages = generated_pages()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    typed = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for path in linked_files(typed, ROOT, lambda page: typed.get(page) or (ROOT / page).read_text(encoding="utf-8")):
        text = shown(path, ROOT)
        source = {"abs_src_path": str(ROOT / path)} if text is None else {"content": text}
        files.append(File.generated(config, place(path), inclusion=InclusionLevel.NOT_IN_NAV, **source))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill the marks, and lead links to files of the repository to where they stand in the site."""
    for mark, text in MARKS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    source = page.file.src_uri
    kept = source.removeprefix("repository/")
    path = f"docs/{source}" if kept == source else kept
    return relinked(markdown, path, ROOT)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Formulas as MathML, names of the package as links to the reference."""
    try:
        return linked_names(with_mathml(html))
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error

"""Hooks of MkDocs: generated pages and lists, files of the repository, and formulas."""

import re
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, InclusionLevel

from benchmarks.model_tables import tables
from dcsm_attr.cli import app
from docs_pages.commands import commands_page
from docs_pages.formulas import with_mathml
from docs_pages.links import link_names, linked_files, relink, site_path, source_page
from docs_pages.modules import import_order, module_list, reference_page
from docs_pages.results import Results, accuracy_page, benchmarks_page

ROOT = Path(__file__).parent
PACKAGE = ROOT / "dcsm_attr"
RESULTS = ROOT / "benchmarks" / "results"
#: Packages and modules with a page of reference.
REFERENCE = (
    "attribution",
    "crf",
    "segmentation",
    "datasets",
    "models",
    "training",
    "evaluation",
    "wsss",
    "pipelines",
    "io.py",
)


def generated_pages() -> dict[str, str]:
    """The generated pages by their paths below ``docs/``.

    Raises:
        PluginError: naming the files, if a result is on no page.
    """
    results = Results(RESULTS)
    pages = {
        "measured/accuracy.md": accuracy_page(results),
        "measured/benchmarks.md": benchmarks_page(results),
        "command-line.md": commands_page(typer.main.get_command(app), "dcsm-attr"),
        **{f"reference/{Path(name).stem}.md": reference_page(PACKAGE / name) for name in REFERENCE},
    }
    if results.unused():
        raise PluginError(
            f"no page shows these results: {', '.join(results.unused())}. Add them to docs_pages/results.py."
        )
    return pages


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages, and the files of the repository that pages link to."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    pages = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    for path in linked_files(pages, ROOT):
        text = source_page(path, ROOT)
        source = {"abs_src_path": str(ROOT / path)} if text is None else {"content": text}
        files.append(File.generated(config, site_path(path), inclusion=InclusionLevel.NOT_IN_NAV, **source))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in the generated lists and tables, and adapt links to files of the repository."""
    markdown = re.sub(r"<!-- modules: (\S+) -->", lambda mark: module_list(PACKAGE / mark[1]), markdown)
    if "<!-- import order -->" in markdown:
        markdown = markdown.replace("<!-- import order -->", import_order(ROOT / "setup.cfg"))
    if "<!-- table: models -->" in markdown:
        markdown = markdown.replace("<!-- table: models -->", tables(Results(RESULTS).json("models/models.json")))
    source = page.file.src_uri
    path = source.removeprefix("repository/") if source.startswith("repository/") else f"docs/{source}"
    return relink(markdown, path, ROOT)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Convert formulas to MathML, and link names of the package to the reference."""
    try:
        return link_names(with_mathml(html))
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error

"""``dcsm-attr report``: a run of ``dcsm-attr pseudo-label`` as one page for people."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="Where the run has written: a folder, or a URI of an object store.", show_default=False
        ),
    ],
    photographs: Annotated[
        int,
        typer.Option(
            min=0, help="So many get a thumbnail at most, evenly spread; counts and histograms are of all photographs."
        ),
    ] = 1000,
) -> None:
    """Write DIR/report.html: thumbnails, counts, histograms, doubtful labels and failures of a run.

    It is one file, which any browser shows without a network. The run may be unfinished.

    Examples:
      dcsm-attr report out/pseudo-labels

      dcsm-attr report out/pseudo-labels --photographs 200
    """
    from dcsm_attr.pipelines.report import write_report
    from dcsm_attr.storage import is_uri, opened_storage

    # To open a folder is to make it.
    if not is_uri(folder) and not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder. Give that which dcsm-attr pseudo-label wrote to.")
    # A scratch of its own, because the run may still be writing.
    storage = opened_storage(folder, scratch=".unfinished-report")
    try:
        name = write_report(storage, photographs=photographs)
    finally:
        storage.discard_scratch()
    typer.echo(f"{folder.rstrip('/')}/{name}")

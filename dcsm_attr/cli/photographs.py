"""A run over many photographs, of which one bad one does not end the run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from tqdm import tqdm

from dcsm_attr.datasets.folder import pictures_in
from dcsm_attr.files import writable_folder
from dcsm_attr.images import ImageReadError

__all__ = ["for_each_photograph"]


def for_each_photograph(
    paths: Sequence[Path], output: Path, work: Callable[[Path, Path], str], *, finished: str | None = None
) -> None:
    """Do ``work(photograph, folder)`` for each photograph, with progress, and report what could not be read.

    Args:
        paths: files and folders.
        output: each photograph gets a folder of its name in it.
        work: writes into the folder and returns a line to print.
        finished: the file that ``work`` writes last; photographs in whose folder it stands are left out. None: none is.

    Raises:
        ValueError: if there is no photograph.
        typer.Exit: with code 1 at the end, if a photograph could not be read.
    """
    photographs = _expanded(paths)
    output = writable_folder(output)
    failures = []
    pairs = list(zip(photographs, _folders(photographs, output), strict=True))
    left = [
        (photograph, folder) for photograph, folder in pairs if finished is None or not (folder / finished).exists()
    ]
    if len(left) < len(pairs):
        typer.echo(f"{len(pairs) - len(left)} of {len(pairs)} photographs are finished already.")
    progress = tqdm(left, unit="photo", disable=len(pairs) < 2)
    for photograph, folder in progress:
        try:
            progress.write(f"{photograph} -> {folder}: {work(photograph, folder)}")
        except ImageReadError as error:
            failures.append(str(error))
            progress.write(f"skipped: {error}")
    if failures:
        typer.echo(f"{len(failures)} of {len(photographs)} photographs could not be read:", err=True)
        for failure in failures:
            typer.echo(f"  {failure}", err=True)
        raise typer.Exit(1)


def _expanded(paths: Sequence[Path]) -> list[Path]:
    photographs: list[Path] = []
    for path in paths:
        photographs += pictures_in(path) if path.is_dir() else [path]
    return photographs


def _folders(photographs: Sequence[Path], output: Path) -> list[Path]:
    """One folder a photograph; equal names get a number, so that nothing is overwritten."""
    seen: dict[str, int] = {}
    folders = []
    for photograph in photographs:
        name = photograph.stem
        seen[name] = seen.get(name, 0) + 1
        folders.append(output / (name if seen[name] == 1 else f"{name}-{seen[name]}"))
    return folders

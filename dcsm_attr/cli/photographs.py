"""A run over many photographs, of which one bad one does not end the run."""

from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path

import typer
from tqdm import tqdm

from dcsm_attr.cli.run_manifest import RUN_MANIFEST, RunManifest
from dcsm_attr.datasets.folder import pictures_in
from dcsm_attr.files import writable_folder
from dcsm_attr.images import ImageReadError

__all__ = ["expanded", "for_each_photograph"]


def for_each_photograph(
    photographs: Sequence[Path], output: Path, work: Callable[[Path, Path], str], *, finished: str | None = None
) -> None:
    """Do ``work(photograph, folder)`` for each photograph, with progress, and report what could not be read.

    Writes ``run.json`` at the end, also where the run is broken off: see :class:`RunManifest`.

    Args:
        photographs: files.
        output: each photograph gets a folder of its name in it.
        work: writes into the folder and returns a line to print.
        finished: the file that ``work`` writes last; photographs in whose folder it stands are left out. None: none is.

    Raises:
        OSError: if the output cannot be written to.
        typer.Exit: with code 1 at the end, if a photograph could not be read.
    """
    output = writable_folder(output)
    pairs = list(zip(photographs, _folders(photographs, output), strict=True))
    done = [finished is not None and (folder / finished).exists() for _, folder in pairs]
    if any(done):
        typer.echo(f"{sum(done)} of {len(pairs)} photographs are finished already.")
    manifest = RunManifest(output, len(pairs))
    progress = tqdm(total=len(pairs) - sum(done), unit="photo", disable=len(pairs) < 2)
    try:
        with progress:
            for (photograph, folder), is_done in zip(pairs, done, strict=True):
                if not is_done:
                    try:
                        progress.write(f"{photograph} -> {folder}: {work(photograph, folder)}")
                    except ImageReadError as error:
                        manifest.failed(photograph, str(error))
                        progress.write(f"skipped: {error}")
                        continue
                    finally:
                        progress.update()
                manifest.finished(photograph, folder)
    finally:
        manifest.write()
    if manifest.failures:
        typer.echo(f"{len(manifest.failures)} of {len(photographs)} photographs could not be read:", err=True)
        for failure in manifest.failures:
            typer.echo(f"  {failure}", err=True)
        raise typer.Exit(1)


def expanded(paths: Sequence[Path]) -> list[Path]:
    """The photographs that a command is given, of folders all pictures in them.

    Args:
        paths: files and folders.

    Raises:
        ValueError: if a folder holds no pictures.
    """
    photographs: list[Path] = []
    for path in paths:
        photographs += pictures_in(path) if path.is_dir() else [path]
    return photographs


def _folders(photographs: Sequence[Path], output: Path) -> list[Path]:
    """One folder a photograph; equal names get a number, so that nothing is overwritten."""
    taken = {RUN_MANIFEST}
    folders = []
    for photograph in photographs:
        # The name of a file may be "...jpg", and ".." without the ending.
        name = photograph.stem if photograph.stem.strip(".") else photograph.name
        numbered = chain([name], (f"{name}-{number}" for number in count(2)))
        # Some file systems do not tell upper case from lower case.
        folder = next(one for one in numbered if one.casefold() not in taken)
        taken.add(folder.casefold())
        folders.append(output / folder)
    return folders

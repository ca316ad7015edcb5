"""Photographs that were left out: named at the end, and told by the exit status.

What became of each image of a run: ``run.json``, beside the folders of the images.

A run over many images, of which one bad one does not end the run.

The photographs that a command is given: a VOC folder, or images with a file of labels.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

import dcsm_attr
from dcsm_attr.datasets.collection import list_images
from dcsm_attr.datasets.images import ImageReadError
from dcsm_attr.io import make_writable_folder, write_json

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection

__all__ = [
    "RUN_MANIFEST",
    "RunManifest",
    "expanded",
    "for_each_image",
    "open_collection",
    "open_labeled_collection",
    "report_skipped_images",
]


def report_skipped_images(skipped: Mapping[str, str]) -> None:
    """Name what was skipped, and end with status 1; nothing happens where nothing was.

    Args:
        skipped: the reason, by the name of the image.
    """
    if not skipped:
        return
    typer.echo(f"{len(skipped)} photographs were left out:", err=True)
    for name, reason in skipped.items():
        typer.echo(f"  {name}: {reason}", err=True)
    raise typer.Exit(1)


#: Its name; no image gets a folder of this name.
RUN_MANIFEST = "run.json"


class RunManifest:
    """The images of a run, each once: where its results are, or why it could not be read."""

    def __init__(self, output: Path, photographs: int) -> None:
        """Name the file, and remove that of an earlier run, which must not describe this one.

        Args:
            output: the folder of the run.
            photographs: how many are to be done.

        Raises:
            OSError: if the old file cannot be removed.
        """
        self._path = output / RUN_MANIFEST
        self._path.unlink(missing_ok=True)
        self._images = photographs
        self._results: list[dict[str, str]] = []
        self._failures: list[dict[str, str]] = []

    @property
    def failures(self) -> list[str]:
        """Why images could not be read, in order."""
        return [failure["reason"] for failure in self._failures]

    def finished(self, photograph: Path, folder: Path) -> None:
        """Note that the results of an image stand in a folder."""
        self._results.append({"photograph": str(photograph), "folder": folder.name})

    def failed(self, photograph: Path, reason: str) -> None:
        """Note that an image could not be read."""
        self._failures.append({"photograph": str(photograph), "reason": reason})

    def write(self) -> None:
        """Write the file; photographs that a run did not come to are in neither list.

        Raises:
            OSError: if it cannot be written.
        """
        content: dict[str, Any] = {
            "dcsm_attr": dcsm_attr.__version__,
            "photographs": self._images,
            "results": self._results,
            "failures": self._failures,
        }
        write_json(self._path, content)


def for_each_image(
    photographs: Sequence[Path], output: Path, work: Callable[[Path, Path], str], *, finished: str | None = None
) -> None:
    """Do ``work(photograph, folder)`` for each image, with progress, and report what could not be read.

    Writes ``run.json`` at the end, also where the run is broken off: see :class:`RunManifest`.

    Args:
        photographs: files.
        output: each image gets a folder of its name in it.
        work: writes into the folder and returns a line to print.
        finished: the file that ``work`` writes last; photographs in whose folder it stands are left out. None: none is.

    Raises:
        OSError: if the output cannot be written to.
        typer.Exit: with code 1 at the end, if an image could not be read.
    """
    output = make_writable_folder(output)
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
    """The images that a command is given, of folders all pictures in them.

    Args:
        paths: files and folders.

    Raises:
        ValueError: if a folder holds no pictures.
    """
    photographs: list[Path] = []
    for path in paths:
        photographs += list_images(path) if path.is_dir() else [path]
    return photographs


def _folders(photographs: Sequence[Path], output: Path) -> list[Path]:
    """One folder an image; equal names get a number, so that nothing is overwritten."""
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


def open_labeled_collection(
    data: Path, labels: Path | None, split: str | None, class_names: Sequence[str]
) -> "Collection":
    """The images for a network that is there already, with its classes, of which they need not show each.

    Args:
        data: as in :func:`open_collection`.
        labels: as there.
        split: as there.
        class_names: of the network.

    Raises:
        ValueError: as :func:`open_collection`; and if the images have other classes.
    """
    collection = open_collection(data, labels, split, class_names)
    if collection.class_names != tuple(class_names):
        raise ValueError(
            f"the photographs of {data} have the classes {collection.class_names}, the network {tuple(class_names)}. "
            "Give the network that was trained on these classes, in this order."
        )
    return collection


def open_collection(
    data: Path, labels: Path | None, split: str | None, class_names: Sequence[str] | None = None
) -> "Collection":
    """The images of one split with their image-level labels; masks are not looked at.

    Args:
        data: a VOC folder, one of pictures, or a list of pictures.
        labels: a CSV file of labels, which a folder or a list of pictures needs.
        split: of the VOC folder (None: train), or of the file for a folder (None: all rows); a list says itself which
            photographs are meant.
        class_names: that the file may use, in their order. None: those that it uses, sorted. A VOC folder has its own.

    Raises:
        ValueError: if pictures come without labels, or something does not fit.
    """
    from dcsm_attr.datasets.collection import folder_collection, image_list_collection
    from dcsm_attr.datasets.voc import voc_collection

    if (data / "ImageSets").is_dir():
        return voc_collection(data, split or "train", labels=labels, masks=False)
    if labels is None:
        raise ValueError(
            f"{data}: has no ImageSets, so that it is no VOC folder; for other pictures pass --labels FILE.csv."
        )
    if data.is_file():
        return image_list_collection(data, labels, class_names=class_names)
    return folder_collection(data, labels, split=split, class_names=class_names)

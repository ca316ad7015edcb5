"""Runs over many images: which images, resuming, and reporting of images that could not be read."""

import glob
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import dcsm_attr
from dcsm_attr.io import open_run_folder, write_json

if TYPE_CHECKING:
    from dcsm_attr.datasets.collection import Collection

__all__ = [
    "RUN_MANIFEST",
    "RunManifest",
    "expand_paths",
    "open_collection",
    "open_labeled_collection",
    "process_images",
    "report_skipped_images",
]

#: The file that lists the images of a run. No image gets a folder of this name.
RUN_MANIFEST = "run.json"
_RUN_SETTINGS = "settings.json"


def process_images(
    images: Sequence[Path],
    output: Path,
    settings: Mapping[str, Any],
    process: Callable[[Path, Path], str],
    *,
    contents: str,
    manifest: str,
    overwrite: bool = False,
) -> None:
    """Call ``process(image, folder)`` for each image that has no results yet, and report unreadable images at the end.

    Each image gets a folder of its name in ``output``. An image is skipped if the manifest of such a folder names it
    and has the same settings. ``run.json`` is written at the end, also after an error: see :class:`RunManifest`.

    Args:
        images: image files.
        output: the folder of the run.
        settings: everything that the results depend on, JSON-serializable; included in the settings of each manifest.
        process: writes the results of an image and returns a line to print.
        contents: what the folder holds, such as ``"segmentations"``, for messages.
        manifest: the file that ``process`` writes last.
        overwrite: remove results with other settings.

    Raises:
        OSError: if the output cannot be written to.
        ValueError: if the folder contains results with other settings.
        typer.Exit: with code 1, after all other images, if an image could not be read.
    """
    from tqdm import tqdm

    from dcsm_attr.datasets.images import ImageReadError

    # Only folders with a manifest are removed: other folders may belong to the user.
    results = [RUN_MANIFEST, *(glob.escape(path.parent.name) for path in output.glob(f"*/{manifest}"))]
    output = open_run_folder(output, settings, contents, results=results, overwrite=overwrite)
    finished = _finished_folders(output, manifest, settings)
    folders = _assign_folders(images, output, finished)
    if finished:
        typer.echo(f"{sum(_identity(image) in finished for image in images)} of {len(images)} images are finished.")
    run = RunManifest(output, len(images))
    progress = tqdm(total=len(images), unit="image", disable=len(images) < 2)
    try:
        with progress:
            for image, folder in folders.items():
                try:
                    if _identity(image) not in finished:
                        progress.write(f"{image} -> {folder}: {process(image, folder)}")
                    run.add_result(image, folder)
                except ImageReadError as error:
                    run.add_failure(image, str(error))
                    progress.write(f"skipped: {error}")
                progress.update()
    finally:
        run.write()
    if run.failures:
        typer.echo(f"{len(run.failures)} of {len(images)} images could not be read:", err=True)
        for failure in run.failures:
            typer.echo(f"  {failure}", err=True)
        raise typer.Exit(1)


def _finished_folders(output: Path, manifest: str, settings: Mapping[str, Any]) -> dict[str, Path]:
    """The folders that contain complete results with these settings, by the identity of their image."""
    expected = json.loads(json.dumps(settings))
    folders = {}
    for path in sorted(output.glob(f"*/{manifest}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        source, found = content.get("image"), content.get("settings", {})
        if source is not None and all(found.get(name) == value for name, value in expected.items()):
            folders[_identity(source)] = path.parent
    return folders


def _identity(image: str | Path) -> str:
    return str(Path(image).absolute())


def _assign_folders(images: Sequence[Path], output: Path, finished: Mapping[str, Path]) -> dict[Path, Path]:
    """One folder per image; equal names get a number, so that nothing is overwritten."""
    # Some file systems do not distinguish upper case from lower case.
    taken = {RUN_MANIFEST, _RUN_SETTINGS, *(folder.name.casefold() for folder in finished.values())}
    folders = {}
    for image in images:
        folder = finished.get(_identity(image))
        if folder is None:
            # A file may be named "...jpg", whose stem is "..".
            name = image.stem if image.stem.strip(".") else image.name
            numbered = chain([name], (f"{name}-{number}" for number in count(2)))
            folder = output / next(one for one in numbered if one.casefold() not in taken)
            taken.add(folder.name.casefold())
        folders[image] = folder
    return folders


class RunManifest:
    """The images of a run: the folder of the results of each, or why it could not be read."""

    def __init__(self, output: Path, num_images: int) -> None:
        """Remove the manifest of an earlier run, which does not describe this one.

        Args:
            output: the folder of the run.
            num_images: number of images of the run.

        Raises:
            OSError: if the old file cannot be removed.
        """
        self._path = output / RUN_MANIFEST
        self._path.unlink(missing_ok=True)
        self._num_images = num_images
        self._results: list[dict[str, str]] = []
        self._failures: list[dict[str, str]] = []

    @property
    def failures(self) -> list[str]:
        """Why images could not be read, in order."""
        return [failure["reason"] for failure in self._failures]

    def add_result(self, image: Path, folder: Path) -> None:
        """Record the folder of an image's results."""
        self._results.append({"image": str(image), "folder": folder.name})

    def add_failure(self, image: Path, reason: str) -> None:
        """Record why an image could not be read."""
        self._failures.append({"image": str(image), "reason": reason})

    def write(self) -> None:
        """Write the file; images that the run did not reach are not listed.

        Raises:
            OSError: if it cannot be written.
        """
        content: dict[str, Any] = {
            "dcsm_attr": dcsm_attr.__version__,
            "images": self._num_images,
            "results": self._results,
            "failures": self._failures,
        }
        write_json(self._path, content)


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by the images in them, and drop repeated paths.

    Args:
        paths: files and folders.

    Raises:
        ValueError: if a folder contains no images.
    """
    from dcsm_attr.datasets.collection import list_images

    images = chain.from_iterable(list_images(path) if path.is_dir() else [path] for path in paths)
    return list({_identity(image): image for image in images}.values())


def report_skipped_images(skipped: Mapping[str, str]) -> None:
    """Print the images that were skipped and exit with status 1, if there are any.

    Args:
        skipped: the reasons, by the names of the images.

    Raises:
        typer.Exit: with code 1, if an image was skipped.
    """
    if not skipped:
        return
    typer.echo(f"{len(skipped)} images were skipped:", err=True)
    for name, reason in skipped.items():
        typer.echo(f"  {name}: {reason}", err=True)
    raise typer.Exit(1)


def open_labeled_collection(
    data: Path, image_labels: Path | None, split: str | None, class_names: Sequence[str]
) -> "Collection":
    """Open the images for a trained network, whose classes they must have.

    Args:
        data: as in :func:`open_collection`.
        image_labels: as in :func:`open_collection`.
        split: as in :func:`open_collection`.
        class_names: the classes of the network.

    Raises:
        ValueError: as :func:`open_collection`; and if the images have other classes.
    """
    collection = open_collection(data, image_labels, split, class_names)
    if collection.class_names != tuple(class_names):
        raise ValueError(
            f"the images of {data} have the classes {collection.class_names}, the network {tuple(class_names)}. Use a "
            "network that was trained on these classes in this order."
        )
    return collection


def open_collection(
    data: Path, image_labels: Path | None, split: str | None, class_names: Sequence[str] | None = None
) -> "Collection":
    """Open the images of one split with their image-level labels, without their masks.

    Args:
        data: a VOC folder, a folder of images, or a list of images.
        image_labels: a CSV file of labels; required except for a VOC folder.
        split: of a VOC folder (None: train), or of the rows of the CSV file for a folder of images (None: all rows). A
            list of images is used as a whole.
        class_names: the classes that the CSV file may use, in order. None: those that it uses, sorted. A VOC folder
            has its own.

    Raises:
        ValueError: if the labels are missing, or do not fit the images.
    """
    from dcsm_attr.datasets.collection import folder_collection, image_list_collection
    from dcsm_attr.datasets.voc import voc_collection

    if (data / "ImageSets").is_dir():
        return voc_collection(data, split or "train", labels=image_labels, masks=False)
    if image_labels is None:
        raise ValueError(
            f"{data}: is not a VOC folder, because it contains no folder ImageSets. For other images, pass "
            "--image-labels FILE.csv."
        )
    if data.is_file():
        return image_list_collection(data, image_labels, class_names=class_names)
    return folder_collection(data, image_labels, split=split, class_names=class_names)

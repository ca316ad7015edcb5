"""Generated scenes as files, in the folder layout of PASCAL VOC."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from dcsm_attr.datasets.image_labels import ImageLabels, LabelRow, write_image_labels
from dcsm_attr.datasets.masks import read_mask
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene, visible_classes
from dcsm_attr.datasets.voc import CLASS_LIST, LABEL_LIST
from dcsm_attr.datasets.voc_lists import LISTS
from dcsm_attr.files import atomic_buffer, atomic_path, writable_folder, write_json
from dcsm_attr.palette import label_picture
from dcsm_attr.settings import differences

__all__ = ["write_scene_folder"]

# Describes the series; its presence makes a folder one of scenes.
_DESCRIPTION = "scenes.json"

# Of so many scenes, the first is one of validation.
_VALIDATION_EVERY = 5
_JPEG_QUALITY = 95


def write_scene_folder(
    folder: str | Path, count: int, *, seed: int = 0, size: int = 128, progress: bool = True
) -> Path:
    """Draw scenes into a folder that training and evaluation read as they read PASCAL VOC.

    There are ``JPEGImages``, ``SegmentationClass`` (masks, without void), ``image_labels.csv``, ``classes.txt``,
    ``ImageSets/Segmentation`` with the lists ``train`` and ``val`` (every fifth scene), and ``scenes.json``. No file is
    ever half-written, and the lists are written last: where they stand, the rest is complete. A folder in which the
    same series was begun is completed.

    Args:
        folder: made if it is not there.
        count: number of scenes, of which every one shows a class; at least 2, so that no list is empty.
        seed: of the series, see :func:`~dcsm_attr.datasets.scenes.generate_scene`.
        size: side of the scenes in pixels.
        progress: whether to show a bar.

    Returns:
        The folder.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if an argument is out of its range, or the folder holds other files or another series.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, one scene to train and one to validate, got {count}.")
    # Checks seed and size before anything is written.
    generate_scene(0, seed, size)
    folder, series = Path(folder), {"count": count, "seed": seed, "size": size}
    _check_unused(folder, series)
    # First of all files: without it, a run that is cut off leaves a folder that belongs to nobody.
    write_json(writable_folder(folder) / _DESCRIPTION, series)
    for part in ("JPEGImages", "SegmentationClass"):
        writable_folder(folder / part)
    rows: dict[str, LabelRow] = {}
    number = 0
    with tqdm(total=count, unit="scene", disable=not progress) as bar:
        while len(rows) < count:
            classes = _written(folder, f"{number:06}", number, seed, size)
            if classes:
                rows[f"{number:06}"] = LabelRow("train" if len(rows) % _VALIDATION_EVERY else "val", classes)
                bar.update()
            number += 1
    write_image_labels(folder / LABEL_LIST, ImageLabels(CLASS_NAMES, rows))
    _write_lines(folder / CLASS_LIST, CLASS_NAMES)
    lists = writable_folder(folder / LISTS)
    for split in ("train", "val"):
        _write_lines(lists / f"{split}.txt", [name for name, row in rows.items() if row.split == split])
    return folder


def _check_unused(folder: Path, series: dict[str, int]) -> None:
    """Whether nothing stands there but what this series left."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        before = dict(json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder}: holds files, but no scenes ({_DESCRIPTION} would say which). Choose a folder that is empty or "
            "not there."
        ) from error
    different = differences(before, series)
    if different:
        raise ValueError(
            f"{folder}: holds another series of scenes, which differs in {'; '.join(different)}. Choose another folder."
        )


def _written(folder: Path, name: str, number: int, seed: int, size: int) -> tuple[int, ...]:
    """See that a scene's files are there, unless it shows no class, and tell its classes."""
    photograph, mask = folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"
    # The mask is written last.
    if mask.is_file():
        return visible_classes(read_mask(mask, (size, size), len(CLASS_NAMES)).numpy())
    scene = generate_scene(number, seed, size)
    classes = visible_classes(scene.labels.numpy())
    if classes:
        picture = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
        with atomic_buffer(photograph) as file:
            picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        with atomic_buffer(mask) as file:
            label_picture(scene.labels.numpy()).save(file, "PNG")
    return classes


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

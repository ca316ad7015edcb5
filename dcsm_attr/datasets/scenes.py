"""Generated scenes: images of several objects with image-level labels, and masks for evaluation.

A scene depends only on its seed and index. The objects vary in color, size, position and rotation, partly occlude each
other, and are surrounded by clutter on varied backdrops. Networks are trained on :class:`Scenes`, which yields
image-level labels only. :func:`write_scene_folder` writes scenes in the folder layout of PASCAL VOC.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from dcsm_attr.datasets.labels import ImageLabels, LabelRow, write_image_labels
from dcsm_attr.datasets.masks import label_image, read_mask
from dcsm_attr.datasets.scene_backdrops import CLUTTER, draw_backdrop
from dcsm_attr.datasets.scene_objects import DRAWINGS, CutOut, Floats, ObjectColors, Pen, gray_to_float, oklch
from dcsm_attr.datasets.voc import CLASS_FILE, LABEL_FILE, LIST_FOLDER
from dcsm_attr.io import FolderStorage, atomic_buffer, atomic_path, diff_settings, make_writable_folder, write_json

__all__ = [
    "CLASS_NAMES",
    "MIN_VISIBLE_SHARE",
    "Scene",
    "Scenes",
    "generate_scene",
    "visible_classes",
    "write_scene_folder",
]


CLASS_NAMES: tuple[str, ...] = tuple(kind.name for kind in DRAWINGS)

#: A class is present if it covers at least this share of the image.
MIN_VISIBLE_SHARE = 0.01

_MAX_OBJECTS = 4
_MIN_SIDE = 32
# Shadow of an object: blur and distance as shares of the side, depth as share of the light.
_SHADOW_BLUR, _SHADOW_DISTANCE, _SHADOW_DEPTH = 0.016, 0.02, 0.28
# Hues of objects relative to that of the scene, in turns: analogous, complementary and triadic color schemes.
_HARMONIES = ((-0.08, 0.0, 0.08, 0.5), (0.0, 0.42, 0.5, 0.58), (0.0, 0.33, 0.67, 0.08))


@dataclass(frozen=True)
class Scene:
    """One generated image.

    Attributes:
        image: ``(3, S, S)`` uint8 RGB.
        labels: ``(S, S)`` int64: 0 background, c + 1 for class c; the front object where objects overlap.
        present: ``(C,)`` bool, image-level labels: classes that cover at least :data:`MIN_VISIBLE_SHARE` of the image.
    """

    image: Tensor
    labels: Tensor
    present: Tensor


def generate_scene(index: int, seed: int = 0, size: int = 128) -> Scene:
    """Draws one scene, which depends on the arguments only.

    Args:
        index: index of the scene in its series, not negative.
        seed: seed of the series, not negative.
        size: side S in pixels, at least 32.

    Returns:
        The scene, with one to four objects of one or more classes.

    Raises:
        ValueError: if an argument is out of range.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must not be negative, got index={index}, seed={seed}.")
    if size < _MIN_SIDE:
        raise ValueError(f"size must be at least {_MIN_SIDE} pixels, got {size}.")
    rng = np.random.default_rng([seed, index])
    canvas = _Canvas(rng, size)
    canvas.scatter_clutter(int(rng.integers(2, 7)), (0.03, 0.1))
    number = rng.choice(_MAX_OBJECTS, p=(0.1, 0.25, 0.35, 0.3)) + 1
    for kind in rng.permutation(len(DRAWINGS))[:number]:
        canvas.add_object(int(kind))
    canvas.scatter_clutter(int(rng.integers(0, 4)), (0.02, 0.05))
    return canvas.scene()


def visible_classes(labels: npt.NDArray[np.integer]) -> tuple[int, ...]:
    """Returns the classes that cover at least :data:`MIN_VISIBLE_SHARE` of a scene, in ascending order.

    Args:
        labels: ``(S, S)``, 0 background, c + 1 for class c.
    """
    areas = np.bincount(labels.ravel(), minlength=len(DRAWINGS) + 1)[1:]
    return tuple(np.flatnonzero(areas >= MIN_VISIBLE_SHARE * labels.size).tolist())


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of scenes with image-level labels, for training.

    An item is ``(image, present)``: ``(3, S, S)`` uint8, and ``(C,)`` float32 with 1 for present classes. It contains
    no masks.
    """

    def __init__(self, count: int, seed: int = 0, size: int = 128) -> None:
        """Describes a series of scenes, which are drawn on access.

        Args:
            count: number of scenes.
            seed: seed of the series.
            size: side S in pixels.
        """
        self.count = count
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Draws a scene.

        Raises:
            IndexError: if the index is out of range.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = generate_scene(index, self.seed, self.size)
        return scene.image, scene.present.float()


class _Canvas:
    """A scene that is being drawn."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng = rng
        self._size = size
        self._hue = rng.random()
        self._harmony = _HARMONIES[rng.integers(len(_HARMONIES))]
        angle = rng.uniform(-0.9, -0.1) * np.pi
        self._light = (float(np.cos(angle)), float(np.sin(angle)))
        self._image = draw_backdrop(rng, size, self._hue + rng.choice([0.0, 0.5, rng.random()]))
        self._labels = np.zeros((size, size), dtype=np.int64)
        self._placed: list[tuple[float, float, float]] = []

    def add_object(self, number: int) -> None:
        """Draws an object of a class at a position where it occludes little of the previous objects."""
        rng = self._rng
        kind = DRAWINGS[number]
        radius = self._size * rng.uniform(0.15, 0.29)
        center = self._choose_center(radius)
        hue, second_hue = self._sample_hues()
        colors = ObjectColors.from_hues(hue, second_hue, rng.uniform(0.56, 0.76))
        pen = Pen(center, radius, rng.uniform(-kind.max_turn, kind.max_turn), bool(rng.random() < 0.5), colors.main)
        kind.draw(pen, colors)
        self._composite(pen.cut_out(self._light), number + 1)

    def scatter_clutter(self, count: int, shares: tuple[float, float]) -> None:
        """Draws clutter at random positions, with radii between two shares of the side."""
        rng = self._rng
        for _ in range(count):
            hue, second_hue = self._sample_hues()
            main = oklch(rng.uniform(0.4, 0.9), rng.uniform(0.03, 0.14), hue)
            other = oklch(rng.uniform(0.4, 0.9), 0.1, second_hue)
            x, y = rng.uniform(0, self._size, 2)
            pen = Pen((x, y), self._size * rng.uniform(*shares), rng.random(), False, main)
            CLUTTER[rng.integers(len(CLUTTER))](pen, main, other)
            self._composite(pen.cut_out(self._light), 0)

    def _sample_hues(self) -> tuple[float, float]:
        first, second = self._rng.choice(len(self._harmony), 2, replace=False)
        drift = self._rng.normal(0, 0.025)
        return self._hue + self._harmony[first] + drift, self._hue + self._harmony[second] + drift

    def _choose_center(self, radius: float) -> tuple[float, float]:
        """Chooses the position, of 16 random ones next to previous objects, that occludes them least."""
        rng, margin = self._rng, 0.75 * radius
        if not self._placed:
            x, y = rng.uniform(margin, self._size - margin, 2)
        else:
            best = -np.inf
            for _ in range(16):
                x0, y0, r0 = self._placed[rng.integers(len(self._placed))]
                angle, distance = rng.uniform(0, 2 * np.pi), (radius + r0) * rng.uniform(0.72, 1.0)
                px, py = np.clip(
                    [x0 + distance * np.cos(angle), y0 + distance * np.sin(angle)], margin, self._size - margin
                )
                room = min(np.hypot(px - x1, py - y1) / (radius + r1) for x1, y1, r1 in self._placed)
                if min(room, 0.8) > best:
                    best, x, y = min(room, 0.8), px, py
        self._placed.append((float(x), float(y), radius))
        return float(x), float(y)

    def _composite(self, cut_out: CutOut, label: int) -> None:
        rows, columns, color, alpha = _crop_to_image(cut_out, self._size)
        if not alpha.size:
            return
        self._cast_shadow(cut_out)
        region = self._image[rows, columns]
        region += (color - region) * alpha[..., None]
        self._labels[rows, columns][alpha >= 0.5] = label

    def _cast_shadow(self, cut_out: CutOut) -> None:
        silhouette = Image.fromarray((255 * cut_out.alpha).astype(np.uint8))
        soft = gray_to_float(silhouette.filter(ImageFilter.GaussianBlur(_SHADOW_BLUR * self._size)))
        left, top = (round(-_SHADOW_DISTANCE * self._size * toward) for toward in self._light)
        shadow = CutOut(cut_out.color, soft, cut_out.left + left, cut_out.top + top)
        rows, columns, _, alpha = _crop_to_image(shadow, self._size)
        self._image[rows, columns] *= 1 - _SHADOW_DEPTH * alpha[..., None]

    def scene(self) -> Scene:
        """Returns the finished scene."""
        image = torch.from_numpy(np.clip(self._image + 0.5, 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
        present = torch.zeros(len(DRAWINGS), dtype=torch.bool)
        present[list(visible_classes(self._labels))] = True
        return Scene(image, torch.from_numpy(self._labels), present)


def _crop_to_image(cut_out: CutOut, size: int) -> tuple[slice, slice, Floats, Floats]:
    """Returns the part of a cut-out inside the image: rows, columns, color, alpha."""
    side = len(cut_out.alpha)
    top, left = max(cut_out.top, 0), max(cut_out.left, 0)
    bottom, right = max(min(cut_out.top + side, size), top), max(min(cut_out.left + side, size), left)
    own = (slice(top - cut_out.top, bottom - cut_out.top), slice(left - cut_out.left, right - cut_out.left))
    return slice(top, bottom), slice(left, right), cut_out.color[own], cut_out.alpha[own]


# Describes the series of scenes in a folder.
_DESCRIPTION = "scenes.json"

# The first of every five scenes belongs to the split val.
_VALIDATION_EVERY = 5
_JPEG_QUALITY = 95


def write_scene_folder(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    size: int = 128,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Writes scenes into a folder in the layout of PASCAL VOC.

    Writes ``JPEGImages``, ``SegmentationClass`` (masks, without void), ``image_labels.csv``, ``classes.txt``, the lists
    ``train`` and ``val`` (every fifth scene) in ``ImageSets/Segmentation``, and ``scenes.json``. Files are written
    atomically and the lists last, so if they exist, the rest is complete. An interrupted series is resumed.

    Args:
        folder: created if missing.
        count: number of scenes, each of which shows a class; at least 2, so that no list is empty.
        seed: seed of the series, see :func:`generate_scene`.
        size: side of the scenes in pixels.
        overwrite: whether to start over if the folder contains a series of scenes.
        progress: whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if an argument is out of range, or the folder contains other files or another series.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, one scene to train and one to validate, got {count}.")
    # Validates seed and size before anything is written.
    generate_scene(0, seed, size)
    folder, series = Path(folder), {"count": count, "seed": seed, "size": size}
    _check_folder(folder, series, overwrite)
    # Written first, so that an interrupted run leaves a folder that can be resumed.
    write_json(make_writable_folder(folder) / _DESCRIPTION, series)
    for part in ("JPEGImages", "SegmentationClass"):
        make_writable_folder(folder / part)
    rows: dict[str, LabelRow] = {}
    number = 0
    with tqdm(total=count, unit="scene", disable=not progress) as bar:
        while len(rows) < count:
            classes = _write_scene(folder, f"{number:06}", number, seed, size)
            if classes:
                rows[f"{number:06}"] = LabelRow("train" if len(rows) % _VALIDATION_EVERY else "val", classes)
                bar.update()
            number += 1
    write_image_labels(folder / LABEL_FILE, ImageLabels(CLASS_NAMES, rows))
    _write_lines(folder / CLASS_FILE, CLASS_NAMES)
    lists = make_writable_folder(folder / LIST_FOLDER)
    for split in ("train", "val"):
        _write_lines(lists / f"{split}.txt", [name for name, row in rows.items() if row.split == split])
    return folder


def _check_folder(folder: Path, series: dict[str, int], overwrite: bool) -> None:
    """Checks that the folder is empty or contains this series; removes an existing series if it is overwritten."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        before = dict(json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{folder}: contains files, but no series of scenes (no valid {_DESCRIPTION}). Choose an empty folder "
            "or a new one."
        ) from error
    if overwrite:
        storage = FolderStorage(folder)
        # The description is removed last, so that an interrupted run leaves a folder that can be overwritten.
        for name in ("JPEGImages", "SegmentationClass", "ImageSets", LABEL_FILE, CLASS_FILE, _DESCRIPTION):
            storage.remove(name)
        return
    different = diff_settings(before, series)
    if different:
        raise ValueError(
            f"{folder}: holds another series of scenes, which differs in {'; '.join(different)}. Choose another "
            "folder, or pass overwrite=True (--overwrite) to start over."
        )


def _write_scene(folder: Path, name: str, number: int, seed: int, size: int) -> tuple[int, ...]:
    """Writes a scene unless it exists or shows no class; returns its classes."""
    image, mask = folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"
    # The mask is written after the image.
    if mask.is_file():
        return visible_classes(read_mask(mask, (size, size), len(CLASS_NAMES)).numpy())
    scene = generate_scene(number, seed, size)
    classes = visible_classes(scene.labels.numpy())
    if classes:
        pixels = Image.fromarray(scene.image.permute(1, 2, 0).numpy())
        with atomic_buffer(image) as file:
            pixels.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        with atomic_buffer(mask) as file:
            label_image(scene.labels.numpy()).save(file, "PNG")
    return classes


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

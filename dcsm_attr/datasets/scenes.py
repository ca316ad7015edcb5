"""Generated scenes: pictures of several objects with their image-level labels, and the masks to measure against.

Every scene is drawn from its seed and number alone. The objects vary in color, size, place and rotation, hide each
other in part, and lie among clutter on varied backdrops. Networks are trained on :class:`Scenes`, which yields
image-level labels only; the masks of :class:`Scene` are for evaluation.

Generated scenes as files, in the folder layout of PASCAL VOC.
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
from dcsm_attr.io import atomic_buffer, atomic_path, diff_settings, make_writable_folder, write_json

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

#: A class is present if at least this share of the picture shows it.
MIN_VISIBLE_SHARE = 0.01

_MAX_OBJECTS = 4
_MIN_SIDE = 32
# Of the shadow that an object casts: as shares of the side, and of the light that it takes.
_SHADOW_BLUR, _SHADOW_DISTANCE, _SHADOW_DEPTH = 0.016, 0.02, 0.28
# Hues of objects relative to the scene's own, in turns: what painters call analogous, complementary, and triadic.
_HARMONIES = ((-0.08, 0.0, 0.08, 0.5), (0.0, 0.42, 0.5, 0.58), (0.0, 0.33, 0.67, 0.08))


@dataclass(frozen=True)
class Scene:
    """One generated picture.

    Attributes:
        image: ``(3, S, S)`` uint8 RGB.
        labels: ``(S, S)`` int64: 0 background, c + 1 for class c; where objects overlap, the front one.
        present: ``(C,)`` bool: the image-level labels, classes that cover :data:`MIN_VISIBLE_SHARE` of the
            picture.
    """

    image: Tensor
    labels: Tensor
    present: Tensor


def generate_scene(index: int, seed: int = 0, size: int = 128) -> Scene:
    """Draw one scene; the same arguments give the same scene, whatever was drawn before.

    Args:
        index: number of the scene, not negative.
        seed: of the series, not negative.
        size: side S in pixels, at least 32.

    Returns:
        The scene, with one to four objects of one or more classes.

    Raises:
        ValueError: if an argument is out of its range.
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
    """The image-level labels of a scene: the classes that cover :data:`MIN_VISIBLE_SHARE` of it, ascending.

    Args:
        labels: ``(S, S)``, 0 background, c + 1 for class c.
    """
    areas = np.bincount(labels.ravel(), minlength=len(DRAWINGS) + 1)[1:]
    return tuple(np.flatnonzero(areas >= MIN_VISIBLE_SHARE * labels.size).tolist())


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Scenes with image-level labels, for training.

    An item is ``(image, present)``: ``(3, S, S)`` uint8 and ``(C,)`` float32, 1 for classes in the picture. There are
    no masks in it.
    """

    def __init__(self, count: int, seed: int = 0, size: int = 128) -> None:
        """Describe a series of scenes; they are drawn when they are asked for.

        Args:
            count: number of scenes.
            seed: see :func:`generate_scene`.
            size: side S in pixels.
        """
        self.count = count
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Draw a scene.

        Raises:
            IndexError: if there is no such scene.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene = generate_scene(index, self.seed, self.size)
        return scene.image, scene.present.float()


class _Canvas:
    """A scene while it is painted."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng = rng
        self._size = size
        self._hue = rng.random()
        self._harmony = _HARMONIES[rng.integers(len(_HARMONIES))]
        angle = rng.uniform(-0.9, -0.1) * np.pi
        self._light = (float(np.cos(angle)), float(np.sin(angle)))
        self._picture = draw_backdrop(rng, size, self._hue + rng.choice([0.0, 0.5, rng.random()]))
        self._labels = np.zeros((size, size), dtype=np.int64)
        self._taken: list[tuple[float, float, float]] = []

    def add_object(self, number: int) -> None:
        """Draw an object of any class where it hides little of those before."""
        rng = self._rng
        kind = DRAWINGS[number]
        radius = self._size * rng.uniform(0.15, 0.29)
        center = self._free_place(radius)
        hue, second_hue = self._two_hues()
        dyes = ObjectColors.from_hues(hue, second_hue, rng.uniform(0.56, 0.76))
        pen = Pen(center, radius, rng.uniform(-kind.sway, kind.sway), bool(rng.random() < 0.5), dyes.main)
        kind.draw(pen, dyes)
        self._lay(pen.cut_out(self._light), number + 1)

    def scatter_clutter(self, count: int, shares: tuple[float, float]) -> None:
        """Draw things of no class anywhere, their radius between two shares of the side."""
        rng = self._rng
        for _ in range(count):
            hue, second_hue = self._two_hues()
            main = oklch(rng.uniform(0.4, 0.9), rng.uniform(0.03, 0.14), hue)
            other = oklch(rng.uniform(0.4, 0.9), 0.1, second_hue)
            x, y = rng.uniform(0, self._size, 2)
            pen = Pen((x, y), self._size * rng.uniform(*shares), rng.random(), False, main)
            CLUTTER[rng.integers(len(CLUTTER))](pen, main, other)
            self._lay(pen.cut_out(self._light), 0)

    def _two_hues(self) -> tuple[float, float]:
        first, second = self._rng.choice(len(self._harmony), 2, replace=False)
        drift = self._rng.normal(0, 0.025)
        return self._hue + self._harmony[first] + drift, self._hue + self._harmony[second] + drift

    def _free_place(self, radius: float) -> tuple[float, float]:
        """Of some random places beside objects that are there, the one that hides the least of them."""
        rng, margin = self._rng, 0.75 * radius
        if not self._taken:
            x, y = rng.uniform(margin, self._size - margin, 2)
        else:
            best = -np.inf
            for _ in range(16):
                x0, y0, r0 = self._taken[rng.integers(len(self._taken))]
                angle, distance = rng.uniform(0, 2 * np.pi), (radius + r0) * rng.uniform(0.72, 1.0)
                px, py = np.clip(
                    [x0 + distance * np.cos(angle), y0 + distance * np.sin(angle)], margin, self._size - margin
                )
                room = min(np.hypot(px - x1, py - y1) / (radius + r1) for x1, y1, r1 in self._taken)
                if min(room, 0.8) > best:
                    best, x, y = min(room, 0.8), px, py
        self._taken.append((float(x), float(y), radius))
        return float(x), float(y)

    def _lay(self, cut_out: CutOut, label: int) -> None:
        rows, columns, color, alpha = _cropped(cut_out, self._size)
        if not alpha.size:
            return
        self._cast_shadow(cut_out)
        region = self._picture[rows, columns]
        region += (color - region) * alpha[..., None]
        self._labels[rows, columns][alpha >= 0.5] = label

    def _cast_shadow(self, cut_out: CutOut) -> None:
        silhouette = Image.fromarray((255 * cut_out.alpha).astype(np.uint8))
        soft = gray_to_float(silhouette.filter(ImageFilter.GaussianBlur(_SHADOW_BLUR * self._size)))
        left, top = (round(-_SHADOW_DISTANCE * self._size * toward) for toward in self._light)
        shadow = CutOut(cut_out.color, soft, cut_out.left + left, cut_out.top + top)
        rows, columns, _, alpha = _cropped(shadow, self._size)
        self._picture[rows, columns] *= 1 - _SHADOW_DEPTH * alpha[..., None]

    def scene(self) -> Scene:
        """Finish the picture."""
        image = torch.from_numpy(np.clip(self._picture + 0.5, 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
        present = torch.zeros(len(DRAWINGS), dtype=torch.bool)
        present[list(visible_classes(self._labels))] = True
        return Scene(image, torch.from_numpy(self._labels), present)


def _cropped(cut_out: CutOut, size: int) -> tuple[slice, slice, Floats, Floats]:
    """The part of a cut-out that lies in the picture, and where: rows, columns, color, alpha."""
    side = len(cut_out.alpha)
    top, left = max(cut_out.top, 0), max(cut_out.left, 0)
    bottom, right = max(min(cut_out.top + side, size), top), max(min(cut_out.left + side, size), left)
    own = (slice(top - cut_out.top, bottom - cut_out.top), slice(left - cut_out.left, right - cut_out.left))
    return slice(top, bottom), slice(left, right), cut_out.color[own], cut_out.alpha[own]


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
        folder: created if missing.
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
    write_json(make_writable_folder(folder) / _DESCRIPTION, series)
    for part in ("JPEGImages", "SegmentationClass"):
        make_writable_folder(folder / part)
    rows: dict[str, LabelRow] = {}
    number = 0
    with tqdm(total=count, unit="scene", disable=not progress) as bar:
        while len(rows) < count:
            classes = _written(folder, f"{number:06}", number, seed, size)
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
    different = diff_settings(before, series)
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
            label_image(scene.labels.numpy()).save(file, "PNG")
    return classes


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

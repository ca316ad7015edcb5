"""A segmentation: the label map of one image and everything that led to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

import dcsm_attr
from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.datasets.masks import VOID, label_image, overlay
from dcsm_attr.io import atomic_buffer, atomic_path, make_writable_folder, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Segmentation"]


@dataclass(frozen=True)
class Segmentation:
    """What :class:`Segmenter` finds in one image. All tensors are on the CPU.

    Attributes:
        image: ``(H, W, 3)`` uint8, the image.
        labels: ``(H, W)`` int64: 0 background, ``c + 1`` for class ``c``.
        probabilities: ``(L, H, W)`` float32, summing to one over the labels: the background, then :attr:`classes`.
            After the CRF where there is one.
        unrefined: ``(L, H, W)``, the same before the CRF.
        classes: the L - 1 classes of the result. Classes that were only subtracted are not among them.
        class_maps: the maps of all candidates, ``(1, K, H, W)`` at the size of the image.
        class_names: the names of all classes of the model.
        source: the path of the image as it was given; None if it was no file.
        fallback: True where no class was detected, so that the best one took its place.
        settings: everything that the result depends on, JSON-serializable.
    """

    image: npt.NDArray[np.uint8]
    labels: Tensor
    probabilities: Tensor
    unrefined: Tensor
    classes: tuple[int, ...]
    class_maps: ClassMaps
    class_names: tuple[str, ...]
    source: str | None
    fallback: bool
    settings: Mapping[str, Any] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of :attr:`classes`."""
        return tuple(self.class_names[c] for c in self.classes)

    @property
    def candidates(self) -> tuple[int, ...]:
        """The candidate classes, in the order of :attr:`class_maps`."""
        return tuple(self.class_maps.classes[0].tolist())

    def display_labels(self, probabilities: Tensor | None = None) -> npt.NDArray[np.int64]:
        """A label map whose values fit a palette: the labels themselves, or their number in the result.

        Labels of models with more than 254 classes exceed the palette; there, value ``i`` is the ``i``-th of
        :attr:`classes`, from 1. The manifest says which it is (``label_values``).

        Args:
            probabilities: ``(L, H, W)`` to label instead of :attr:`probabilities`.

        Returns:
            ``(H, W)``, 0 to 254.
        """
        slots = (self.probabilities if probabilities is None else probabilities).argmax(dim=0).numpy()
        return np.take(np.array([0, *self.label_values], dtype=np.int64), slots)

    @property
    def label_values(self) -> tuple[int, ...]:
        """The value of each of :attr:`classes` in :meth:`display_labels`."""
        if len(self.class_names) < VOID:
            return tuple(c + 1 for c in self.classes)
        return tuple(range(1, 1 + len(self.classes)))

    def overlay(self) -> Image.Image:
        """The image with the label map in the colors of VOC laid over it."""
        return Image.fromarray(overlay(self.image, self.display_labels()))

    def overview(self) -> "Figure":
        """LabeledImage, candidates' maps, and the label map before and after the CRF, on one sheet."""
        from dcsm_attr.segmentation.visualization import plot_segmentation

        return plot_segmentation(self)

    def show(self) -> None:
        """Show the sheet, in a notebook or a window."""
        from dcsm_attr.segmentation.visualization import show

        show(self.overview())

    def manifest(self) -> dict[str, Any]:
        """What the result is and depends on, JSON-serializable."""
        return {
            "dcsm_attr": dcsm_attr.__version__,
            "image": self.source,
            "size": list(self.image.shape[:2]),
            "background_value": 0,
            "label_values": {
                str(value): self._described(c) for value, c in zip(self.label_values, self.classes, strict=True)
            },
            "candidates": [self._described(c) for c in self.candidates],
            "nothing_detected": self.fallback,
            "settings": dict(self.settings),
        }

    def _described(self, c: int) -> dict[str, Any]:
        return {"class": c, "name": self.class_names[c], "score": round(float(self.class_maps.scores[0, c]), 6)}

    def save(
        self, folder: str | Path, *, overview: bool = False, provenance: Mapping[str, Any] | None = None
    ) -> list[Path]:
        """Write the result into a folder, which is created if missing.

        ``labels.png``: the label map as a palette image in the colors of VOC. ``maps.npz``: ``maps`` (K, H, W) and
        ``classes`` (K,) of the candidates, ``probabilities`` (L, H, W), and ``raw`` where it was asked for.
        ``overlay.png``. ``manifest.json``, written last: where it stands, the rest is complete.

        Args:
            folder: where to write; files of an earlier result are replaced.
            overview: whether to write ``overview.png`` too.
            provenance: further entries for the manifest's settings, for example where the weights came from.

        Returns:
            The paths written.

        Raises:
            OSError: naming the folder, if it cannot be written to; no half-written file stays.
        """
        folder = make_writable_folder(folder)
        # Remove the old manifest first: it must not describe new files.
        (folder / "manifest.json").unlink(missing_ok=True)
        written = [folder / "labels.png", folder / "overlay.png"]
        with atomic_buffer(written[0]) as file:
            label_image(self.display_labels()).save(file, "PNG")
        with atomic_buffer(written[1]) as file:
            self.overlay().save(file, "PNG")
        if overview:
            written.append(_save_figure(self.overview(), folder / "overview.png"))
        arrays = {**self._map_arrays(), "probabilities": self.probabilities.numpy()}
        written.append(_save_arrays(arrays, folder / "maps.npz"))
        written.append(_save_json(self.manifest(), provenance, folder / "manifest.json"))
        return written

    def save_attribution(self, folder: str | Path, *, provenance: Mapping[str, Any] | None = None) -> list[Path]:
        """Write the class maps alone into a folder: ``attribution.png``, ``attribution.npz``, ``attribution.json``.

        Args:
            folder: as in :meth:`save`.
            provenance: as in :meth:`save`.

        Returns:
            The paths written.

        Raises:
            OSError: as :meth:`save`.
        """
        from dcsm_attr.segmentation.visualization import plot_attribution

        folder = make_writable_folder(folder)
        (folder / "attribution.json").unlink(missing_ok=True)
        scores, raw = self.class_maps.scores[0], self.class_maps.raw
        titles = [f"{self.class_names[c]}  {float(scores[c]):.2f}" for c in self.candidates]
        figure = plot_attribution(
            self.image,
            list(zip(titles, self.class_maps.maps[0].numpy(), strict=True)),
            [] if raw is None else list(raw[0].numpy()),
        )
        return [
            _save_figure(figure, folder / "attribution.png"),
            _save_arrays(self._map_arrays(), folder / "attribution.npz"),
            _save_json(self.manifest(), provenance, folder / "attribution.json"),
        ]

    def _map_arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {
            "maps": self.class_maps.maps[0].numpy(),
            "classes": np.array(self.candidates, dtype=np.int64),
        }
        if self.class_maps.raw is not None:
            arrays["raw"] = self.class_maps.raw[0].numpy()
        return arrays


def _save_figure(figure: "Figure", final: Path) -> Path:
    with atomic_buffer(final) as file:
        figure.savefig(file, dpi=100)
    return final


def _save_arrays(arrays: Mapping[str, npt.NDArray[Any]], final: Path) -> Path:
    with atomic_path(final) as path:
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return final


def _save_json(manifest: dict[str, Any], provenance: Mapping[str, Any] | None, final: Path) -> Path:
    manifest["settings"].update(provenance or {})
    write_json(final, manifest)
    return final

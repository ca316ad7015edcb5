"""The result of a segmentation: label map, probabilities and class maps of one image, and how they are saved."""

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
    """The segmentation of one image. All tensors are on the CPU.

    Attributes:
        image: ``(H, W, 3)`` uint8, the image.
        labels: ``(H, W)`` int64: 0 background, ``c + 1`` for class ``c``.
        probabilities: ``(L, H, W)`` float32, summing to one over the labels: the background, then :attr:`classes`.
            After the CRF, if there is one.
        unrefined: ``(L, H, W)``, the probabilities before the CRF.
        classes: the L - 1 classes of the result, without candidates that serve only as contrast.
        class_maps: maps of all candidates, ``(1, K, H, W)``, at the size of the image.
        class_names: names of all classes of the model.
        source: path of the image as passed; None if it was not a file.
        fallback: whether no class was detected, so that the best class was used instead.
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

    @property
    def label_values(self) -> tuple[int, ...]:
        """Value of each of :attr:`classes` in :meth:`display_labels`."""
        if len(self.class_names) < VOID:
            return tuple(c + 1 for c in self.classes)
        return tuple(range(1, 1 + len(self.classes)))

    def display_labels(self, probabilities: Tensor | None = None) -> npt.NDArray[np.int64]:
        """Returns a label map whose values fit into a palette image.

        The values are the labels themselves, or, for models with more than 254 classes, ``i`` for the ``i``-th of
        :attr:`classes`, from 1. The manifest lists them (``label_values``).

        Args:
            probabilities: ``(L, H, W)``, used instead of :attr:`probabilities`.

        Returns:
            ``(H, W)``, 0 to 254.
        """
        slots = (self.probabilities if probabilities is None else probabilities).argmax(dim=0).numpy()
        return np.take(np.array([0, *self.label_values], dtype=np.int64), slots)

    def overlay(self) -> Image.Image:
        """Returns the image with the label map blended over it in the colors of VOC."""
        return Image.fromarray(overlay(self.image, self.display_labels()))

    def overview(self) -> "Figure":
        """Draws the image, the maps of all candidates, and the label map before and after the CRF in one figure."""
        from dcsm_attr.segmentation.visualization import plot_segmentation

        return plot_segmentation(self)

    def show(self) -> None:
        """Shows the overview in a notebook or a window."""
        from dcsm_attr.segmentation.visualization import show

        show(self.overview())

    def manifest(self) -> dict[str, Any]:
        """Returns classes, scores and settings of the result, JSON-serializable."""
        return {
            "dcsm_attr": dcsm_attr.__version__,
            "image": self.source,
            "size": list(self.image.shape[:2]),
            "background_value": 0,
            "label_values": {
                str(value): self._describe_class(c) for value, c in zip(self.label_values, self.classes, strict=True)
            },
            "candidates": [self._describe_class(c) for c in self.candidates],
            "nothing_detected": self.fallback,
            "settings": dict(self.settings),
        }

    def _describe_class(self, c: int) -> dict[str, Any]:
        return {"class": c, "name": self.class_names[c], "score": round(float(self.class_maps.scores[0, c]), 6)}

    def save(
        self, folder: str | Path, *, overview: bool = False, provenance: Mapping[str, Any] | None = None
    ) -> list[Path]:
        """Writes the result into a folder, which is created if missing.

        - ``labels.png``: the label map as a palette image in the colors of VOC.
        - ``overlay.png``: :meth:`overlay`.
        - ``overview.png``: :meth:`overview`, if requested.
        - ``maps.npz``: ``maps`` (K, H, W) and ``classes`` (K,) of the candidates, ``probabilities`` (L, H, W), and
          ``raw`` (K, H, W) if it was kept.
        - ``manifest.json``: :meth:`manifest`. It is written last, so if it exists, the other files are complete.

        Args:
            folder: where to write; files of an earlier result are replaced.
            overview: whether to write ``overview.png``.
            provenance: further entries for the settings in the manifest, for example the source of the weights.

        Returns:
            The paths of the written files.

        Raises:
            OSError: naming the folder, if it cannot be written to. No partially written file remains.
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
        """Writes only the class maps: ``attribution.png``, ``attribution.npz`` and ``attribution.json``.

        Args:
            folder: as in :meth:`save`.
            provenance: as in :meth:`save`.

        Returns:
            The paths of the written files.

        Raises:
            OSError: as in :meth:`save`.
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

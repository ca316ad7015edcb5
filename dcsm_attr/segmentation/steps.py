"""What a photograph is between the steps of its segmentation, and the last step."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.backbones.preprocess import Prepared
from dcsm_attr.segmentation.result import Segmentation

__all__ = ["AttributedPhotograph", "PreparedPhotograph", "restored"]


@dataclass(frozen=True)
class PreparedPhotograph:
    """A photograph that was read and put on its canvas.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        source: its path as it was given; None if it was no file.
        prepared: the canvas.
        known: the classes known to be in it. None: those that are detected.
    """

    image: npt.NDArray[np.uint8]
    source: str | None
    prepared: Prepared
    known: Sequence[int] | None


@dataclass(frozen=True)
class AttributedPhotograph:
    """The same with maps and label probabilities, on the device of the model.

    Attributes:
        photograph: as it was prepared.
        class_maps: of all candidates, ``(1, K, S, S)``, on the canvas.
        unrefined: ``(L, h, w)``, the label probabilities where the photograph lies on it, before the CRF.
        refined: ``(L, h, w)``, after it.
        class_names: of all classes of the model.
        settings: everything that the result depends on, ready for JSON.
        stream: the queue of the GPU in which all of this is computed; None on other devices.
    """

    photograph: PreparedPhotograph
    class_maps: ClassMaps
    unrefined: Tensor
    refined: Tensor
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]
    stream: torch.cuda.Stream | None


def restored(attributed: AttributedPhotograph) -> Segmentation:
    """Bring a result to the size of the photograph and to the CPU; in whatever thread.

    Args:
        attributed: the result on the canvas.

    Returns:
        The segmentation.
    """
    # Each thread has a stream of its own: in another one, values might be read before they are there.
    with torch.no_grad(), nullcontext() if attributed.stream is None else torch.cuda.stream(attributed.stream):
        prepared, class_maps = attributed.photograph.prepared, attributed.class_maps
        classes = class_maps.classes[0][class_maps.foreground[0]].tolist()
        probabilities = prepared.restore(attributed.refined).cpu()
        return Segmentation(
            image=attributed.photograph.image,
            labels=torch.tensor([0, *(c + 1 for c in classes)], device="cpu")[probabilities.argmax(dim=0)],
            probabilities=probabilities,
            unrefined=prepared.restore(attributed.unrefined).cpu(),
            classes=tuple(classes),
            saliency=class_maps.mapped(lambda maps: prepared.restore(prepared.crop(maps[0]))[None]).cpu(),
            class_names=attributed.class_names,
            source=attributed.photograph.source,
            fallback=bool(class_maps.nothing_detected[0]),
            settings=attributed.settings,
        )

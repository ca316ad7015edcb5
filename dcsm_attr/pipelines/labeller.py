"""From a photograph that was read to the files that are written for it, in steps that may run in different places."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from dcsm_attr.palette import label_picture
from dcsm_attr.pipelines.batch_files import Labelled
from dcsm_attr.pipelines.reading import Reading
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.segmenter import Segmenter
from dcsm_attr.segmentation.steps import AttributedPhotograph, PreparedPhotograph, restored

__all__ = ["Labeller", "Outputs", "Step"]

_DIGITS = 6


@dataclass(frozen=True)
class Outputs:
    """What is written beside the label maps.

    Attributes:
        maps: whether ``maps/NAME.npz`` is: ``maps`` ``(K, H, W)`` of the ``classes`` ``(K,)``, and ``probabilities``
            ``(1 + K, H, W)`` of background and classes, all float16.
        overlays: ``overlays/NAME.jpg`` of every so many photographs; 0: of none.

    Raises:
        ValueError: if ``overlays`` is negative.
    """

    maps: bool = False
    overlays: int = 0

    def __post_init__(self) -> None:
        """Check the number."""
        if self.overlays < 0:
            raise ValueError(f"overlays must not be negative, got {self.overlays}; 0 writes none.")


@dataclass(frozen=True)
class Step:
    """A photograph between the steps.

    Attributes:
        reading: as it was read.
        found: on its canvas, then with label probabilities. None: it is known to show no class.
        seconds: by the name of the step.
    """

    reading: Reading
    found: PreparedPhotograph | AttributedPhotograph | None
    seconds: Mapping[str, float]


class Labeller:
    """The further steps: they need the model, or its settings.

    Attributes:
        segmenter, outputs: as given.
    """

    def __init__(self, segmenter: Segmenter, outputs: Outputs = Outputs()) -> None:
        """Take a segmenter, on the device where it is to run."""
        self.segmenter = segmenter
        self.outputs = outputs

    def prepared(self, reading: Reading) -> Step:
        """Second step, in whatever thread: onto the canvas."""
        begun = time.perf_counter()
        classes = reading.photograph.classes
        found = self.segmenter.prepared(reading.image, classes) if classes else None
        return Step(reading, found, {"read": reading.seconds + time.perf_counter() - begun})

    def attributed(self, steps: Sequence[Step]) -> list[Step]:
        """Third step, with the model: class maps, background, CRF, of photographs that go through it together.

        Args:
            steps: of :meth:`prepared`.
        """
        begun = time.perf_counter()
        showing = [step.found for step in steps if isinstance(step.found, PreparedPhotograph)]
        found = iter(self.segmenter.attributed(showing) if showing else ())
        results = [step if step.found is None else replace(step, found=next(found)) for step in steps]
        # Of the batch, in equal shares; on a GPU some of it shows in the next step, which waits for the values.
        share = (time.perf_counter() - begun) / len(steps)
        return [replace(step, seconds={**step.seconds, "label": share}) for step in results]

    def finished(self, step: Step) -> Labelled:
        """Last step, in whatever thread: at the size of the photograph, as the content of files.

        Args:
            step: of :meth:`attributed`.
        """
        begun = time.perf_counter()
        reading, name = step.reading, step.reading.photograph.name
        if isinstance(step.found, AttributedPhotograph):
            result = restored(step.found)
            labels, described = result.display_labels(), _described(result)
        else:
            result = None
            labels = np.zeros(reading.image.shape[:2], dtype=np.int64)
            described = {"classes": [], "confidence": 1.0}
        written = {"labels": (f"labels/{name}.png", _encoded(label_picture(labels), "PNG"))}
        if self.outputs.overlays and reading.position % self.outputs.overlays == 0:
            picture = Image.fromarray(reading.image) if result is None else result.overlay()
            written["overlay"] = (f"overlays/{name}.jpg", _encoded(picture, "JPEG", quality=90))
        if self.outputs.maps:
            written["maps"] = (f"maps/{name}.npz", _arrays(result, labels.shape))
        seconds = {**step.seconds, "write": time.perf_counter() - begun}
        record = {
            "name": name,
            "photograph": str(reading.photograph.path),
            **{kind: file for kind, (file, _) in written.items()},
            "size": list(labels.shape),
            **described,
            "seconds": {part: round(value, 4) for part, value in seconds.items()},
        }
        return Labelled(record, dict(written.values()))


def _described(result: Segmentation) -> dict[str, Any]:
    classes = [
        {
            "class": c,
            "name": name,
            "value": value,
            "score": round(float(result.saliency.scores[0, c]), _DIGITS),
            "share": round(float((result.labels == c + 1).float().mean()), _DIGITS),
        }
        for c, name, value in zip(result.classes, result.names, result.label_values, strict=True)
    ]
    return {"classes": classes, "confidence": round(float(result.probabilities.amax(dim=0).mean()), _DIGITS)}


def _arrays(result: Segmentation | None, size: Sequence[int]) -> bytes:
    if result is None:
        maps, classes, probabilities = np.zeros((0, *size)), np.zeros(0, np.int64), np.ones((1, *size))
    else:
        maps = result.saliency.of_classes(result.classes).numpy()
        classes = np.array(result.classes, dtype=np.int64)
        probabilities = result.probabilities.numpy()
    buffer = io.BytesIO()
    half = np.float16
    np.savez_compressed(buffer, maps=maps.astype(half), classes=classes, probabilities=probabilities.astype(half))
    return buffer.getvalue()


def _encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()

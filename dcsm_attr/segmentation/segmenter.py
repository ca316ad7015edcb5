"""From a photograph to a label map: class maps, the background of Eq. 7, and the dense CRF of Eq. 6 and 8."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import ClassMaps
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.backbones.preprocess import Prepared, Preprocess
from dcsm_attr.crf import DenseCRF
from dcsm_attr.images import read_image
from dcsm_attr.maps import label_probabilities
from dcsm_attr.segmentation.result import Segmentation

__all__ = ["Saliency", "Segmenter"]


class Saliency(Protocol):
    """A method that gives one map a class, such as :class:`DistinctClassSaliency` or :class:`Simonyan`."""

    def class_maps(self, inputs: Tensor, classes: Any = None, *, raw: bool = False) -> ClassMaps:
        """Maps of all candidates of each image; see :meth:`DistinctClassSaliency.class_maps`."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the maps depend on, ready for JSON."""
        ...


class Segmenter:
    """Weakly supervised segmentation: pixel labels from a classifier that has seen image labels only.

    The class maps are computed on the canvas of the preprocessing; the background is Eq. 7; the maps and the
    background, normalised to sum to one, are the unary of a dense CRF, which runs on the canvas too, where its widths
    in pixels mean the same for every photograph; its probabilities are resized to the photograph.

    Attributes:
        model, saliency, crf, class_names, preprocess, background_exponent, architecture: as given, or the defaults.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        saliency: Saliency | None = None,
        crf: DenseCRF | None = DenseCRF(),  # noqa: B008 - frozen
        class_names: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
        background_exponent: float = 1.0,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: the classifier; it is left as it is found, on the device where it is.
            saliency: gives the class maps. None: ``DistinctClassSaliency(model)``.
            crf: refines them. None: the maps themselves are the result.
            class_names: one for each class of the model, in order. None: ``"class 0"``, ``"class 1"``, ...
            preprocess: the canvas and the normalisation. None: longest side 500, ImageNet's mean and standard
                deviation.
            background_exponent: see :func:`dcsm_attr.maps.background`; 1 is Eq. 7, larger gives more foreground.
            architecture: what the model was built from, ready for JSON, to be told in the settings; the results do not
                depend on it. None: only the name of its class is told.

        Raises:
            ValueError: if the exponent is not positive.
        """
        if not 0 < background_exponent < float("inf"):
            raise ValueError(f"background_exponent must be positive, got {background_exponent}.")
        self.model = model
        self.saliency: Saliency = DistinctClassSaliency(model) if saliency is None else saliency
        self.crf = crf
        self.class_names = None if class_names is None else tuple(class_names)
        self.preprocess = Preprocess() if preprocess is None else preprocess
        self.background_exponent = background_exponent
        self.architecture = architecture

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a segmentation depends on beside photograph and parameters, ready for JSON."""
        return {
            "model": type(self.model).__name__,
            **({} if self.architecture is None else {"architecture": dict(self.architecture)}),
            "saliency": self.saliency.settings,
            "background_exponent": self.background_exponent,
            "crf": None if self.crf is None else asdict(self.crf),
            "preprocess": asdict(replace(self.preprocess, size=self.preprocess.side)),
        }

    def segment(self, image: Any, classes: Sequence[int | str] | None = None, *, raw: bool = False) -> Segmentation:
        """Segment one photograph.

        Args:
            image: a path, PIL image, array ``(H, W, 3)`` uint8, or tensor ``(3, H, W)``, uint8 or in [0, 1].
            classes: the classes known to be in it (image-level labels), as numbers or names. None: those that are
                detected.
            raw: whether to keep the maps before subtraction too, for the sheet.

        Returns:
            The segmentation, at the size of the photograph.

        Raises:
            ImageReadError: if the image cannot be read.
            ValueError: if a class is not known.
        """
        return self.segment_batch([image], None if classes is None else [classes], raw=raw)[0]

    def segment_batch(
        self, images: Sequence[Any], classes: Sequence[Sequence[int | str]] | None = None, *, raw: bool = False
    ) -> list[Segmentation]:
        """Segment several photographs, of any sizes, in one pass. What each gets does not depend on the others.

        Args:
            images: as in :meth:`segment`.
            classes: for each image the classes known to be in it. None: those that are detected.
            raw: as in :meth:`segment`.

        Returns:
            A segmentation for each image, in order.

        Raises:
            ImageReadError: if an image cannot be read.
            ValueError: if there is no image, the lengths differ, or a class is not known.
        """
        if len(images) == 0:
            raise ValueError("images is empty: at least one photograph is needed.")
        if classes is not None and len(classes) != len(images):
            raise ValueError(
                f"classes must have one entry for each image: got {len(classes)} for {len(images)} images."
            )
        known = None if classes is None else [self._class_numbers(row) for row in classes]
        photographs = [read_image(image) for image in images]
        prepared = [self.preprocess(photograph) for photograph in photographs]
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        tensors = torch.stack([p.tensor for p in prepared]).to(device)
        class_maps = self.saliency.class_maps(tensors, known, raw=raw)
        names = self._names(class_maps.scores.shape[1])
        unaries = [self._label_probabilities(class_maps, i, p) for i, p in enumerate(prepared)]
        refined = self._refined(unaries, prepared)
        settings = self.settings
        return [
            _result(
                images[i], np.asarray(photograph), prepared[i], class_maps[i], unaries[i], refined[i], names, settings
            )
            for i, photograph in enumerate(photographs)
        ]

    def _class_numbers(self, classes: Sequence[int | str]) -> list[int]:
        if isinstance(classes, str) or not classes:
            raise ValueError(f"classes must be a sequence of at least one number or name, got {classes!r}.")
        return [c if isinstance(c, int) else self._class_number(c) for c in classes]

    def _class_number(self, name: str) -> int:
        if self.class_names is None:
            raise ValueError(
                f"the class {name!r} is a name, but the names are not known: pass class_names, or its number."
            )
        if name not in self.class_names:
            near = [other for other in self.class_names if name.lower() in other.lower()]
            hint = f" Near it: {', '.join(near[:5])}." if near else ""
            raise ValueError(f"there is no class {name!r} among the {len(self.class_names)} class names.{hint}")
        return self.class_names.index(name)

    def _names(self, count: int) -> tuple[str, ...]:
        if self.class_names is None:
            return tuple(f"class {c}" for c in range(count))
        if len(self.class_names) != count:
            raise ValueError(f"class_names has {len(self.class_names)} names, but the model has {count} classes.")
        return self.class_names

    def _label_probabilities(self, class_maps: ClassMaps, image: int, prepared: Prepared) -> Tensor:
        """Unaries of one photograph ``(1 + foreground classes, h, w)``, in the order of the slots."""
        foreground = class_maps.foreground[image]
        maps = prepared.crop(class_maps.maps[image, foreground])
        present = torch.ones_like(foreground[foreground])
        return label_probabilities(maps[None], present[None], self.background_exponent)[0]

    def _refined(self, unaries: list[Tensor], prepared: list[Prepared]) -> list[Tensor]:
        """Run the CRF, once for all photographs with one shape and number of labels."""
        if self.crf is None:
            return unaries
        alike = defaultdict(list)
        for i, unary in enumerate(unaries):
            alike[unary.shape].append(i)
        refined = dict[int, Tensor]()
        for group in alike.values():
            pixels = torch.stack([prepared[i].pixels for i in group])
            refined.update(zip(group, self.crf(torch.stack([unaries[i] for i in group]), pixels), strict=True))
        return [refined[i] for i in range(len(unaries))]


def _result(
    source: Any,
    photograph: np.ndarray,
    prepared: Prepared,
    class_maps: ClassMaps,
    unary: Tensor,
    refined: Tensor,
    names: tuple[str, ...],
    settings: dict[str, Any],
) -> Segmentation:
    classes = class_maps.classes[0][class_maps.foreground[0]].tolist()
    probabilities = prepared.restore(refined).cpu()
    labels = torch.tensor([0, *(c + 1 for c in classes)])[probabilities.argmax(dim=0)]
    return Segmentation(
        image=photograph,
        labels=labels,
        probabilities=probabilities,
        unrefined=prepared.restore(unary).cpu(),
        classes=tuple(classes),
        saliency=class_maps.mapped(lambda maps: prepared.restore(prepared.crop(maps[0]))[None]).cpu(),
        class_names=names,
        source=os.fspath(source) if isinstance(source, (str, os.PathLike)) else None,
        fallback=bool(class_maps.nothing_detected[0]),
        settings=settings,
    )

"""From an image to a label map: class maps, the background of Eq. 7, and the dense CRF of Eq. 6 and 8."""

import os
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import ClassMaps, Saliency
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.attribution.maps import label_scores
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.preprocess import CanvasImage, Preprocess
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.stream import (
    AttributedImage,
    PreparedImage,
    default_num_readers,
    restore_segmentation,
    run_pipeline,
)

__all__ = ["Precision", "Segmenter", "Walk"]


Precision = Literal["float32", "bfloat16"]

_AllowedError = TypeVar("_AllowedError", bound=Exception)


class Walk(Protocol):
    """A step between class maps and CRF, such as :class:`dcsm_attr.wsss.random_walk.SemanticWalk`."""

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """Better scores of the labels of one image.

        Args:
            scores: ``(L, h, w)`` of :func:`dcsm_attr.attribution.maps.label_scores`.
            image: ``(3, h, w)``, the image as it lies on the canvas, normalized.

        Returns:
            ``(L, h, w)``, not negative, with a positive sum everywhere.
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, JSON-serializable."""
        ...


class Segmenter:
    """Weakly supervised segmentation: pixel labels from a classifier that has seen image labels only.

    The class maps are computed on the canvas of the preprocessing; the background is Eq. 7; the maps and the
    background, normalized to sum to one, are the unary of a dense CRF, which runs on the canvas too, where its widths
    in pixels mean the same for every image; its probabilities are resized to the image.

    Attributes:
        model, saliency, crf, class_names, preprocess, background_exponent, max_pixels, architecture, precision, walk:
            as given, or the defaults.
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
        max_pixels: int | None = None,
        architecture: Mapping[str, Any] | None = None,
        precision: Precision = "float32",
        walk: Walk | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: the classifier; it is left as it is found, on the device where it is and in its number type.
            saliency: gives the class maps. None: ``DistinctClassSaliency(model)``.
            crf: refines them. None: the maps themselves are the result.
            class_names: one for each class of the model, in order. None: ``"class 0"``, ``"class 1"``, ...
            preprocess: the canvas and the normalization. None: longest side 500, ImageNet's mean and standard
                deviation.
            background_exponent: see :func:`dcsm_attr.attribution.maps.background`; 1 is Eq. 7, larger gives more
                foreground.
            max_pixels: photographs with more pixels are refused, see :func:`dcsm_attr.datasets.images.read_image`.
            architecture: what the model was built from, JSON-serializable, to be told in the settings; the results do
                not depend on it. None: only the name of its class is told.
            precision: ``"bfloat16"``: the model's forward and backward passes run under autocast; maps and CRF are
                float32 all the same.
            walk: makes the scores of labels better before the CRF. None: they go into it as they are.

        Raises:
            ValueError: if the exponent is not positive, or the precision is not known.
        """
        if not 0 < background_exponent < float("inf"):
            raise ValueError(f"background_exponent must be positive, got {background_exponent}.")
        if precision not in get_args(Precision):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {precision!r}.")
        self.model = model
        self.precision = precision
        self.saliency: Saliency = DistinctClassSaliency(model) if saliency is None else saliency
        self.crf = crf
        self.class_names = None if class_names is None else tuple(class_names)
        self.preprocess = Preprocess() if preprocess is None else preprocess
        self.background_exponent = background_exponent
        self.max_pixels = max_pixels
        self.architecture = architecture
        self.walk = walk

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that a segmentation depends on beside photograph and parameters, JSON-serializable."""
        return {
            "model": type(self.model).__name__,
            **({} if self.architecture is None else {"architecture": dict(self.architecture)}),
            "saliency": self.saliency.settings,
            "precision": self.precision,
            "background_exponent": self.background_exponent,
            **({} if self.walk is None else {"walk": self.walk.settings}),
            "crf": None if self.crf is None else asdict(self.crf),
            "preprocess": asdict(replace(self.preprocess, size=self.preprocess.side)),
        }

    def segment(self, image: Any, classes: Sequence[int | str] | None = None, *, raw: bool = False) -> Segmentation:
        """Segment one image.

        Args:
            image: a path, PIL image, array ``(H, W, 3)`` uint8, or tensor ``(3, H, W)``, uint8 or in [0, 1].
            classes: the classes known to be in it (image-level labels), as numbers or names. None: those that are
                detected.
            raw: whether to keep the maps before subtraction too, for the sheet.

        Returns:
            The segmentation, at the size of the image.

        Raises:
            ImageReadError: if the image cannot be read.
            TypeError: if the image is of another kind.
            ValueError: if a class is not known, or the class names are not as many as the model's classes.
            TypeError, ValueError, RuntimeError: as the ``class_maps`` of the saliency.
        """
        return self.segment_batch([image], None if classes is None else [classes], raw=raw)[0]

    def segment_batch(
        self, images: Sequence[Any], classes: Sequence[Sequence[int | str]] | None = None, *, raw: bool = False
    ) -> list[Segmentation]:
        """Segment several images, of any sizes, in one pass. What each gets does not depend on the others.

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
            raise ValueError("images is empty: at least one image is needed.")
        if classes is not None and len(classes) != len(images):
            raise ValueError(
                f"classes must have one entry for each image: got {len(classes)} for {len(images)} images."
            )
        prepared = [self.prepare_image(*pair) for pair in _pair_images_with_classes(images, classes)]
        return [restore_segmentation(attributed) for attributed in self.attribute_batch(prepared, raw=raw)]

    def segment_stream(
        self,
        images: Iterable[Any],
        classes: Iterable[Sequence[int | str]] | None = None,
        *,
        batch_size: int = 4,
        workers: int | None = None,
        raw: bool = False,
        allowed_errors: type[_AllowedError] | tuple[type[_AllowedError], ...] = (),
    ) -> Generator[Segmentation | _AllowedError, None, None]:
        """Segment any number of images, lazily, in little memory: reading, the device and the host work at once.

        While the caller has the results of one batch, the next one is finished and the one after it is read, in threads
        that end with the iterator; see :func:`dcsm_attr.segmentation.stream.run_pipeline`. The model runs in the
        caller's thread, and each image gets what :meth:`segment_batch` gives it in the same batch.

        Args:
            images: as in :meth:`segment`; several are read at the same time, so that an open image file must not be
                among them twice.
            classes: for each image the classes known to be in it. None: those that are detected.
            batch_size: photographs that go through the model together.
            workers: threads that read photographs. None: two beside a GPU, and none on the CPU, whose cores the model
                keeps busy by itself (SqueezeNet 1.1 on two cores: with threads 1.4 times as long).
            raw: as in :meth:`segment`.
            allowed_errors: exceptions of a single photograph that are given in the place of its segmentation, such as
                :class:`~dcsm_attr.datasets.images.ImageReadError`. Any other one ends the iterator, after the results
                of the batches before.

        Returns:
            A segmentation for each image, in order, or the exception that was allowed.

        Raises:
            ValueError: if ``batch_size`` is not positive, or ``workers`` is negative; when its batch is due, if classes
                and images are not equally many, or a class is not known.
            ImageReadError: when its batch is due, if an image cannot be read.

        Examples::

            >>> for path, result in zip(paths, segmenter.segment_stream(paths, allowed_errors=ImageReadError)):
            ...     print(path, result if isinstance(result, ImageReadError) else result.names)
        """
        return run_pipeline(
            _pair_images_with_classes(images, classes),
            lambda pair: self.prepare_image(*pair),
            lambda prepared: self.attribute_batch(prepared, raw=raw),
            restore_segmentation,
            batch_size=batch_size,
            workers=self.num_readers if workers is None else workers,
            allowed_errors=allowed_errors,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def num_readers(self) -> int:
        """How many threads best read photographs beside the model: none where it runs on the cores that they need."""
        return default_num_readers(self.device)

    def prepare_image(self, image: Any, classes: Sequence[int | str] | None = None) -> PreparedImage:
        """First step of a segmentation, in whatever thread: read an image and put it on the canvas.

        Args:
            image: as in :meth:`segment`.
            classes: as in :meth:`segment`.

        Returns:
            What :meth:`attribute_batch` takes.

        Raises:
            ImageReadError: if the image cannot be read.
            ValueError: if a class is not known.
        """
        known = None if classes is None else self._class_indices(classes)
        loaded = read_image(image, max_pixels=self.max_pixels)
        source = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        return PreparedImage(np.asarray(loaded), source, self.preprocess(loaded), known)

    def attribute_batch(self, images: Sequence[PreparedImage], *, raw: bool = False) -> list[AttributedImage]:
        """Second step, with the model: class maps and label probabilities, before the CRF and after it.

        Args:
            images: at least one, of :meth:`prepare_image`; with classes known of all of them, or of none.
            raw: as in :meth:`segment`.

        Returns:
            One for each image, in order, for :func:`dcsm_attr.segmentation.stream.restore_segmentation`.

        Raises:
            ValueError: if a class is not one of the model, or classes are known of some photographs alone.
        """
        known = [image.known_classes for image in images if image.known_classes is not None]
        if known and len(known) != len(images):
            raise ValueError(
                "classes must be known of all images that are attributed together, or of none; they are of "
                f"{len(known)} of {len(images)}."
            )
        device = self.device
        prepared = [image.canvas for image in images]
        canvases = torch.stack([p.tensor for p in prepared])
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), canvases)
        # Whoever calls under autocast, with float32 in the settings, has chosen it.
        lower = torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with lower:
            class_maps = self.saliency.class_maps(canvases.to(device, parameter.dtype), known or None, raw=raw)
        names = self._names(class_maps.scores.shape[1])
        unaries = [self._label_probabilities(class_maps, i, p) for i, p in enumerate(prepared)]
        # Before the CRF: what asks the device for values must not wait for it.
        of_image = [class_maps[i] for i in range(len(prepared))]
        refined = self._refined(unaries, prepared)
        settings = self.settings
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        return [
            AttributedImage(*parts, names, settings, stream)
            for parts in zip(images, of_image, unaries, refined, strict=True)
        ]

    def _class_indices(self, classes: Sequence[int | str]) -> list[int]:
        if isinstance(classes, str) or len(classes) == 0:
            raise ValueError(f"classes must be a sequence of at least one number or name, got {classes!r}.")
        return [self._class_index(c) if isinstance(c, str) else c for c in classes]

    def _class_index(self, name: str) -> int:
        if self.class_names is None:
            raise ValueError(
                f"the class {name!r} is a name, but the names are not known: pass class_names, or its number."
            )
        if name not in self.class_names:
            near = [other for other in self.class_names if name.lower() in other.lower()]
            hint = f" Similar names: {', '.join(near[:5])}." if near else ""
            raise ValueError(f"there is no class {name!r} among the {len(self.class_names)} class names.{hint}")
        return self.class_names.index(name)

    def _names(self, count: int) -> tuple[str, ...]:
        if self.class_names is None:
            return tuple(f"class {c}" for c in range(count))
        if len(self.class_names) != count:
            raise ValueError(
                f"class_names has {len(self.class_names)} names, but the model has {count} classes. Give one name for "
                "each, in the order of its scores: class_names, on the command line --labels FILE."
            )
        return self.class_names

    def _label_probabilities(self, class_maps: ClassMaps, image: int, prepared: CanvasImage) -> Tensor:
        """Unaries of one image ``(1 + foreground classes, h, w)``, in the order of the slots."""
        foreground = class_maps.foreground[image]
        maps = prepared.crop(class_maps.maps[image, foreground])
        present = torch.ones_like(foreground[foreground])
        scores = label_scores(maps[None], present[None], self.background_exponent)[0]
        if self.walk is not None:
            scores = self.walk(scores, prepared.crop(prepared.tensor))
        return scores / scores.sum(dim=0, keepdim=True)

    def _refined(self, unaries: list[Tensor], prepared: list[CanvasImage]) -> list[Tensor]:
        """Run the CRF, once for all images with one shape and number of labels."""
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


def _pair_images_with_classes(
    images: Iterable[Any], classes: Iterable[Sequence[int | str]] | None
) -> Iterator[tuple[Any, Sequence[int | str] | None]]:
    """Each image with the classes known to be in it."""
    if classes is None:
        yield from ((image, None) for image in images)
        return
    missing: Any = object()
    for number, (image, known) in enumerate(zip_longest(images, classes, fillvalue=missing)):
        if image is missing or known is missing:
            ended, others = ("images", "classes") if image is missing else ("classes", "images")
            raise ValueError(
                f"classes must have one entry for each image: there are {number} {ended}, but more {others}."
            )
        yield image, known

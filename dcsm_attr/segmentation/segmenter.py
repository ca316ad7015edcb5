"""Segments images with a classifier: class maps, the background of Eq. 7, and the dense CRF of Eq. 6 and 8.

Three steps, each of which may run for other images at the same time (see :meth:`Segmenter.segment_stream`):

1. :meth:`Segmenter.prepare_image` reads an image and puts it on the canvas (CPU).
2. :meth:`Segmenter.attribute_batch` computes class maps, background and CRF on the canvas (device of the model).
3. :func:`restore_segmentation` resizes the result to the image and takes the best label per pixel.
"""

import os
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dcsm_attr.attribution.class_maps import ClassMaps, Saliency
from dcsm_attr.attribution.dcsm import DistinctClassSaliency
from dcsm_attr.attribution.maps import label_scores
from dcsm_attr.crf import DenseCRF
from dcsm_attr.datasets.images import read_image
from dcsm_attr.datasets.preprocess import CanvasImage, Preprocess
from dcsm_attr.segmentation.result import Segmentation
from dcsm_attr.segmentation.stream import default_num_readers, run_pipeline

__all__ = ["AttributedImage", "Precision", "PreparedImage", "Segmenter", "Walk", "restore_segmentation"]

Precision = Literal["float32", "bfloat16"]

_AllowedError = TypeVar("_AllowedError", bound=Exception)


class Segmenter:
    """Weakly supervised segmentation: pixel labels from a classifier that was trained with image-level labels only.

    The class maps are computed on the canvas of the preprocessing. The maps and the background of Eq. 7, normalized to
    sum to one, are the unary of a dense CRF. The CRF runs on the canvas too, where its widths in pixels mean the same
    for every image; its probabilities are resized to the image.

    Attributes:
        model, saliency, crf, class_names, preprocess, background_exponent, max_pixels, architecture, precision, walk:
            see :meth:`__init__`.
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
        walk: "Walk | None" = None,
    ) -> None:
        """Builds a segmenter from its parts.

        Args:
            model: the classifier. It is not changed and keeps its device and dtype.
            saliency: computes the class maps. None: ``DistinctClassSaliency(model)``.
            crf: refines the maps. None: the maps themselves are the result.
            class_names: one per class of the model, in order. None: ``"class 0"``, ``"class 1"``, ...
            preprocess: canvas and normalization. None: longest side 500, ImageNet's mean and standard deviation.
            background_exponent: see :func:`dcsm_attr.attribution.maps.background`; 1 is Eq. 7, larger values give more
                foreground.
            max_pixels: files with more pixels are rejected, see :func:`dcsm_attr.datasets.images.read_image`.
            architecture: how the model was built, JSON-serializable; recorded in the settings. The results do not
                depend on it. None: only the name of the model's class is recorded.
            precision: ``"bfloat16"`` runs the forward and backward passes of the model under autocast; maps and CRF
                stay float32.
            walk: refines the label scores before the CRF. None: they are not refined.

        Raises:
            ValueError: if the exponent is not positive, or the precision is unknown.
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
        """Everything that a segmentation depends on besides the image and the weights, JSON-serializable."""
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

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def num_readers(self) -> int:
        """Default number of threads that read images; 0 on the CPU, whose cores the model needs itself."""
        return default_num_readers(self.device)

    def segment(self, image: Any, classes: Sequence[int | str] | None = None, *, raw: bool = False) -> Segmentation:
        """Segments one image.

        Args:
            image: a path, PIL image, array ``(H, W, 3)`` uint8, or tensor ``(3, H, W)``, uint8 or in [0, 1].
            classes: image-level labels, as class indices or names. None: the detected classes.
            raw: whether to keep the maps before contrast too, for :meth:`Segmentation.overview`.

        Returns:
            The segmentation, at the size of the image.

        Raises:
            ImageReadError: if the image cannot be read.
            TypeError: if the image has another type.
            ValueError: if a class is unknown, or the number of class names differs from the model's classes.
            TypeError, ValueError, RuntimeError: as ``class_maps`` of the saliency.
        """
        return self.segment_batch([image], None if classes is None else [classes], raw=raw)[0]

    def segment_batch(
        self, images: Sequence[Any], classes: Sequence[Sequence[int | str]] | None = None, *, raw: bool = False
    ) -> list[Segmentation]:
        """Segments several images of any sizes in one batch. The result of an image does not depend on the others.

        Args:
            images: as in :meth:`segment`.
            classes: image-level labels for each image. None: the detected classes.
            raw: as in :meth:`segment`.

        Returns:
            One segmentation per image, in order.

        Raises:
            ImageReadError: if an image cannot be read.
            ValueError: if there are no images, the lengths differ, or a class is unknown.
        """
        if len(images) == 0:
            raise ValueError("images is empty: at least one image is needed.")
        if classes is not None and len(classes) != len(images):
            raise ValueError(
                f"classes must have one entry for each image: got {len(classes)} for {len(images)} images."
            )
        # Image -> canvas -> class maps, background (Eq. 7), CRF -> labels at the size of the image.
        prepared = [self.prepare_image(image, known) for image, known in _pair_images_with_classes(images, classes)]
        attributed = self.attribute_batch(prepared, raw=raw)
        return [restore_segmentation(result) for result in attributed]

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
        """Segments any number of images lazily, in little memory, with overlapping reading, computation and restoring.

        While the caller processes the results of one batch, the next batch is being restored and the one after it is
        being read, in threads that end with the iterator (see :func:`dcsm_attr.segmentation.stream.run_pipeline`). The
        model runs in the caller's thread. Each image gets the same result as in :meth:`segment_batch` with the same
        batch.

        Args:
            images: as in :meth:`segment`. Several are read at the same time, so an open image file must not occur
                twice.
            classes: image-level labels for each image. None: the detected classes.
            batch_size: number of images that the model processes together.
            workers: number of threads that read images. None: two if the model is on a GPU, none on the CPU (with
                threads, SqueezeNet 1.1 takes 1.4 times as long on two cores).
            raw: as in :meth:`segment`.
            allowed_errors: exceptions of a single image that are yielded in place of its segmentation, such as
                :class:`~dcsm_attr.datasets.images.ImageReadError`. Other exceptions are raised, after the results of
                the previous batches.

        Returns:
            An iterator with one segmentation, or allowed exception, per image, in order.

        Raises:
            ValueError: if ``batch_size`` is not positive, or ``workers`` is negative; during iteration, if the numbers
                of classes and images differ, or a class is unknown.
            ImageReadError: during iteration, if an image cannot be read.

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

    def prepare_image(self, image: Any, classes: Sequence[int | str] | None = None) -> "PreparedImage":
        """Reads an image and puts it on the canvas; the first step of a segmentation. May run in any thread.

        Args:
            image: as in :meth:`segment`.
            classes: as in :meth:`segment`.

        Returns:
            Input of :meth:`attribute_batch`.

        Raises:
            ImageReadError: if the image cannot be read.
            ValueError: if a class is unknown.
        """
        known_classes = None if classes is None else self._class_indices(classes)
        rgb = read_image(image, max_pixels=self.max_pixels)
        source = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
        return PreparedImage(np.asarray(rgb), source, self.preprocess(rgb), known_classes)

    def attribute_batch(self, images: "Sequence[PreparedImage]", *, raw: bool = False) -> "list[AttributedImage]":
        """Computes class maps and label probabilities before and after the CRF; the second step of a segmentation.

        Args:
            images: at least one, from :meth:`prepare_image`; with known classes for all of them, or for none.
            raw: as in :meth:`segment`.

        Returns:
            One result on the canvas per image, in order; inputs of :func:`restore_segmentation`.

        Raises:
            ValueError: if a class is not one of the model's, or classes are known for some of the images only.
        """
        known = [image.known_classes for image in images if image.known_classes is not None]
        if known and len(known) != len(images):
            raise ValueError(
                f"classes must be known for all images of a batch or for none; they are known for {len(known)} of "
                f"{len(images)}."
            )
        device = self.device
        canvases = [image.canvas for image in images]
        inputs = torch.stack([canvas.tensor for canvas in canvases])
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), inputs)
        # With precision "float32", autocast is left to the caller.
        autocast = torch.autocast(device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        with autocast:
            class_maps = self.saliency.class_maps(inputs.to(device, parameter.dtype), known or None, raw=raw)
        names = self._names(class_maps.scores.shape[1])
        unrefined = [self._label_probabilities(class_maps, i, canvas) for i, canvas in enumerate(canvases)]
        # Before the CRF: indexing reads values from the device and would otherwise wait for the CRF.
        maps_of_images = [class_maps[i] for i in range(len(images))]
        refined = self._refine(unrefined, canvases)
        settings = self.settings
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        return [
            AttributedImage(*parts, names, settings, stream)
            for parts in zip(images, maps_of_images, unrefined, refined, strict=True)
        ]

    def _label_probabilities(self, class_maps: ClassMaps, image: int, canvas: CanvasImage) -> Tensor:
        """Returns the unary of one image, ``(1 + foreground classes, h, w)``, background first."""
        foreground = class_maps.foreground[image]
        maps = canvas.crop(class_maps.maps[image, foreground])
        all_present = torch.ones_like(foreground[foreground])
        scores = label_scores(maps[None], all_present[None], self.background_exponent)[0]
        if self.walk is not None:
            scores = self.walk(scores, canvas.crop(canvas.tensor))
        return scores / scores.sum(dim=0, keepdim=True)

    def _refine(self, unrefined: list[Tensor], canvases: list[CanvasImage]) -> list[Tensor]:
        """Runs the CRF, once for all images with the same shape and number of labels."""
        if self.crf is None:
            return unrefined
        groups = defaultdict(list)
        for i, probabilities in enumerate(unrefined):
            groups[probabilities.shape].append(i)
        refined = dict[int, Tensor]()
        for group in groups.values():
            pixels = torch.stack([canvases[i].pixels for i in group])
            refined.update(zip(group, self.crf(torch.stack([unrefined[i] for i in group]), pixels), strict=True))
        return [refined[i] for i in range(len(unrefined))]

    def _class_indices(self, classes: Sequence[int | str]) -> list[int]:
        if isinstance(classes, str) or len(classes) == 0:
            raise ValueError(f"classes must be a sequence of at least one class index or name, got {classes!r}.")
        return [self._class_index(c) if isinstance(c, str) else c for c in classes]

    def _class_index(self, name: str) -> int:
        if self.class_names is None:
            raise ValueError(f"{name!r} is a class name, but the segmenter has no class_names: pass them, or an index.")
        if name not in self.class_names:
            similar = [other for other in self.class_names if name.lower() in other.lower()]
            hint = f" Similar names: {', '.join(similar[:5])}." if similar else ""
            raise ValueError(f"there is no class {name!r} among the {len(self.class_names)} class names.{hint}")
        return self.class_names.index(name)

    def _names(self, count: int) -> tuple[str, ...]:
        if self.class_names is None:
            return tuple(f"class {c}" for c in range(count))
        if len(self.class_names) != count:
            raise ValueError(
                f"class_names has {len(self.class_names)} names, but the model has {count} classes. Give one name for "
                "each, in the order of its scores: class_names, on the command line --class-names FILE."
            )
        return self.class_names


def _pair_images_with_classes(
    images: Iterable[Any], classes: Iterable[Sequence[int | str]] | None
) -> Iterator[tuple[Any, Sequence[int | str] | None]]:
    if classes is None:
        yield from ((image, None) for image in images)
        return
    missing: Any = object()
    for number, (image, known) in enumerate(zip_longest(images, classes, fillvalue=missing)):
        if image is missing or known is missing:
            shorter, longer = ("images", "classes") if image is missing else ("classes", "images")
            raise ValueError(
                f"classes must have one entry for each image: there are {number} {shorter}, but more {longer}."
            )
        yield image, known


@dataclass(frozen=True)
class PreparedImage:
    """An image on its canvas.

    Attributes:
        image: ``(H, W, 3)`` uint8.
        source: path of the image as passed; None if it was not a file.
        canvas: the image on the canvas.
        known_classes: image-level labels as class indices. None: the detected classes are used.
    """

    image: npt.NDArray[np.uint8]
    source: str | None
    canvas: CanvasImage
    known_classes: Sequence[int] | None


@dataclass(frozen=True)
class AttributedImage:
    """Class maps and label probabilities of an image, on the canvas and on the device of the model.

    Attributes:
        prepared: the image.
        class_maps: of all candidates, ``(1, K, S, S)``.
        unrefined: label probabilities before the CRF, ``(L, h, w)``, cropped to the image.
        refined: label probabilities after the CRF, ``(L, h, w)``.
        class_names: of all classes of the model.
        settings: everything that the result depends on, JSON-serializable.
        stream: the CUDA stream that computes the tensors; None on other devices.
    """

    prepared: PreparedImage
    class_maps: ClassMaps
    unrefined: Tensor
    refined: Tensor
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]
    stream: torch.cuda.Stream | None


def restore_segmentation(attributed: AttributedImage) -> Segmentation:
    """Resizes a result to the image and labels its pixels; the last step of a segmentation. May run in any thread.

    Args:
        attributed: the result on the canvas, from :meth:`Segmenter.attribute_batch`.

    Returns:
        The segmentation, on the CPU.
    """
    # Each thread has its own current stream: another one would read values before they are computed.
    with torch.no_grad(), nullcontext() if attributed.stream is None else torch.cuda.stream(attributed.stream):
        canvas, class_maps = attributed.prepared.canvas, attributed.class_maps
        classes = class_maps.classes[0][class_maps.foreground[0]].tolist()
        probabilities = canvas.restore(attributed.refined).cpu()
        label_of_slot = torch.tensor([0, *(c + 1 for c in classes)], device="cpu")
        return Segmentation(
            image=attributed.prepared.image,
            labels=label_of_slot[probabilities.argmax(dim=0)],
            probabilities=probabilities,
            unrefined=canvas.restore(attributed.unrefined).cpu(),
            classes=tuple(classes),
            class_maps=class_maps.map_values(lambda maps: canvas.restore(canvas.crop(maps[0]))[None]).cpu(),
            class_names=attributed.class_names,
            source=attributed.prepared.source,
            fallback=bool(class_maps.nothing_detected[0]),
            settings=attributed.settings,
        )


class Walk(Protocol):
    """A step between class maps and CRF, such as :class:`dcsm_attr.wsss.random_walk.SemanticWalk`."""

    def __call__(self, scores: Tensor, image: Tensor) -> Tensor:
        """Refines the label scores of one image.

        Args:
            scores: ``(L, h, w)``, from :func:`dcsm_attr.attribution.maps.label_scores`.
            image: ``(3, h, w)``, the image as it lies on the canvas, normalized.

        Returns:
            ``(L, h, w)``, not negative, with a positive sum per pixel.
        """
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-serializable."""
        ...

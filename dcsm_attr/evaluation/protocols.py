"""How well a segmenter labels the photographs of a collection, under the two protocols of the literature."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import dcsm_attr
from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.masks import MaskError, read_mask
from dcsm_attr.evaluation.miou import confusion_matrix
from dcsm_attr.evaluation.provenance import parameters_digest
from dcsm_attr.evaluation.result import Confusion, Evaluation, Protocol
from dcsm_attr.evaluation.rows import CountedPhotograph, Row, SkippedPhotograph
from dcsm_attr.evaluation.state import append_rows, kept_rows
from dcsm_attr.images import ImageReadError, read_image
from dcsm_attr.palette import VOID
from dcsm_attr.segmentation import Segmentation, Segmenter

__all__ = ["evaluate"]

_logger = logging.getLogger(__name__)


def evaluate(
    segmenter: Segmenter,
    collection: Collection,
    protocol: Protocol | str,
    *,
    batch_size: int = 4,
    state: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Segment every photograph of a collection and compare with its mask, before the CRF and after it.

    A photograph that cannot be read, or whose mask cannot be read or does not fit, is skipped: it is logged and named
    in the result. So is, under the protocol "known", one without a class.

    Args:
        segmenter: its class names are those of the collection.
        collection: photographs with masks.
        protocol: "detected" or "known".
        batch_size: photographs segmented together.
        state: a file in which the photographs that are done are kept. If it is there already, the evaluation goes on
            where it ended, and its result is that of an undisturbed one; photographs that were skipped stay skipped.
            None: nothing is kept.
        progress: whether to show a bar.

    Returns:
        The measurement.

    Raises:
        OSError: if ``state`` cannot be written to.
        ValueError: if the collection is empty or has no masks, class names differ or are too many for masks of 8 bits,
            an argument is out of its range, or ``state`` belongs to another evaluation.
    """
    protocol = _checked_protocol(protocol)
    _check(segmenter, collection, batch_size)
    # Asked for before the first photograph: layers that are still to be chosen must not depend on where a run goes on.
    settings = _settings(segmenter, batch_size)
    path = None if state is None else Path(state)
    rows: list[Row] = []
    if path is not None:
        depends_on = {**settings, "protocol": protocol.value, **_described(collection)}
        rows = kept_rows(path, depends_on, [photograph.name for photograph in collection], batch_size)
    description = f"{protocol.value} classes"
    with tqdm(total=len(collection), initial=len(rows), unit="photo", desc=description, disable=not progress) as bar:
        while len(rows) < len(collection):
            batch = collection.photographs[len(rows) : len(rows) + batch_size]
            done = _batch_rows(segmenter, batch, protocol, len(collection.class_names))
            if path is not None:
                append_rows(path, done)
            rows += done
            bar.update(len(done))
    return _summed(rows, collection, protocol, settings)


def _checked_protocol(protocol: Protocol | str) -> Protocol:
    try:
        return Protocol(protocol)
    except ValueError as error:
        known = " or ".join(repr(choice.value) for choice in Protocol)
        raise ValueError(f"protocol must be {known}, got {protocol!r}.") from error


def _check(segmenter: Segmenter, collection: Collection, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if not len(collection):
        raise ValueError("the collection is empty: at least one photograph is needed.")
    if segmenter.class_names != collection.class_names:
        raise ValueError(
            "the segmenter's class names must be those of the collection, in the same order, for labels are compared "
            f"by number; got {_outline(segmenter.class_names)} and {_outline(collection.class_names)}."
        )
    if len(collection.class_names) >= VOID:
        raise ValueError(
            f"masks of 8 bits tell at most {VOID - 1} classes from each other, got {len(collection.class_names)}."
        )
    without = [photograph.name for photograph in collection if photograph.mask is None]
    if without:
        raise ValueError(
            f"every photograph needs a mask to be compared with, but {len(without)} of {len(collection)} have none, "
            f"such as {without[0]}. Read the collection together with its masks."
        )


def _outline(names: Sequence[str] | None) -> str:
    if names is None:
        return "none"
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _settings(segmenter: Segmenter, batch_size: int) -> dict[str, Any]:
    parameter = next(segmenter.model.parameters(), None)
    return {
        **segmenter.settings,
        "parameters": parameters_digest(segmenter.model),
        "device": "cpu" if parameter is None else parameter.device.type,
        "batch_size": batch_size,
    }


def _described(collection: Collection) -> dict[str, Any]:
    labelled = repr([(photograph.name, photograph.classes) for photograph in collection])
    return {
        "dcsm_attr": dcsm_attr.__version__,
        "class_names": collection.class_names,
        "photographs": len(collection),
        "image-level labels": hashlib.sha256(labelled.encode()).hexdigest(),
    }


def _batch_rows(
    segmenter: Segmenter, photographs: Sequence[Photograph], protocol: Protocol, class_count: int
) -> list[Row]:
    """One row a photograph, in order; those that can be measured are segmented together."""
    rows: dict[str, Row] = {}
    read = []
    for photograph in photographs:
        try:
            read.append((photograph, *_read(photograph, protocol, class_count)))
        except (ImageReadError, MaskError, _NoClassError) as error:
            _logger.warning("%s is skipped: %s", photograph.name, error)
            rows[photograph.name] = SkippedPhotograph(photograph.name, str(error))
    if read:
        known = [photograph.classes for photograph, _, _ in read] if protocol is Protocol.KNOWN else None
        results = segmenter.segment_batch([image for _, image, _ in read], known)
        for (photograph, _, mask), result in zip(read, results, strict=True):
            rows[photograph.name] = _counted(photograph.name, result, mask, 1 + class_count)
    return [rows[photograph.name] for photograph in photographs]


class _NoClassError(ValueError):
    """A photograph of which nothing is known, under the protocol that tells what is in it."""


def _read(photograph: Photograph, protocol: Protocol, class_count: int) -> tuple[Image.Image, Tensor]:
    if protocol is Protocol.KNOWN and not photograph.classes:
        raise _NoClassError("it has no image-level label, and without a class there is nothing to segment.")
    image = read_image(photograph.path)
    assert photograph.mask is not None
    return image, read_mask(photograph.mask, (image.height, image.width), class_count)


def _counted(name: str, result: Segmentation, mask: Tensor, labels: int) -> CountedPhotograph:
    unrefined = torch.from_numpy(result.display_labels(result.unrefined))
    return CountedPhotograph(
        name,
        unrefined=confusion_matrix(unrefined, mask, labels, VOID).tolist(),
        refined=confusion_matrix(result.labels, mask, labels, VOID).tolist(),
        scores=result.saliency.scores[0].tolist(),
        nothing_detected=result.fallback,
    )


def _summed(rows: Sequence[Row], collection: Collection, protocol: Protocol, settings: Mapping[str, Any]) -> Evaluation:
    counted = [row for row in rows if isinstance(row, CountedPhotograph)]
    classes = len(collection.class_names)
    return Evaluation(
        protocol,
        collection.class_names,
        unrefined=_total([row.unrefined for row in counted], 1 + classes),
        refined=_total([row.refined for row in counted], 1 + classes),
        scores=torch.tensor([row.scores for row in counted], dtype=torch.float64).view(len(counted), classes),
        present=collection.presence()[[isinstance(row, CountedPhotograph) for row in rows]],
        photographs=tuple(row.name for row in counted),
        skipped={row.name: row.reason for row in rows if isinstance(row, SkippedPhotograph)},
        nothing_detected=tuple(row.name for row in counted if row.nothing_detected),
        settings=settings,
    )


def _total(matrices: Sequence[list[list[int]]], labels: int) -> Confusion:
    return Confusion(torch.tensor(matrices, dtype=torch.int64).view(len(matrices), labels, labels).sum(dim=0))

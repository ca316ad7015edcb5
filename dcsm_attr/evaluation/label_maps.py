"""How well label maps that stand in a folder agree with the masks of a collection."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from dcsm_attr.datasets.collection import Collection, Photograph
from dcsm_attr.datasets.masks import MaskError, read_mask, resized_labels
from dcsm_attr.evaluation.measurable import check_collection
from dcsm_attr.evaluation.miou import confusion_matrix
from dcsm_attr.evaluation.result import Confusion
from dcsm_attr.palette import VOID

__all__ = ["LabelMapEvaluation", "evaluate_label_maps"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelMapEvaluation:
    """What was measured.

    Attributes:
        class_names: C names, without the background.
        confusion: of the pixels that both have a label for.
        unknown: share of the labelled pixels of the masks for which the label maps have none (255).
        photographs: how many were compared.
        skipped: the reason, by the name of each photograph that was not.
    """

    class_names: tuple[str, ...]
    confusion: Confusion
    unknown: float
    photographs: int
    skipped: Mapping[str, str]

    @property
    def precision(self) -> tuple[float, float]:
        """Share of the pixels labelled as background, and of those labelled as a class, that are so; NaN for none."""
        counts = self.confusion.counts.double()
        right = counts.diagonal()
        return float(right[0] / counts[:, 0].sum()), float(right[1:].sum() / counts[:, 1:].sum())


def evaluate_label_maps(collection: Collection, folder: str | Path, *, progress: bool = True) -> LabelMapEvaluation:
    """Compare label maps with masks.

    Args:
        collection: photographs with masks.
        folder: with a label map ``NAME.png`` for each: 0 background, ``c + 1`` for class ``c``, 255 unknown. One of
            another size than the mask is resized to it, without mixing labels. Unknown pixels are not counted;
            :attr:`LabelMapEvaluation.unknown` says how many.
        progress: whether to show a bar.

    Returns:
        The measurement; photographs of which a file cannot be read, or does not fit, are logged and left out.

    Raises:
        ValueError: if the collection is empty or has no masks, or no photograph could be compared.
    """
    check_collection(collection, collection.class_names)
    labels = 1 + len(collection.class_names)
    counts = torch.zeros(labels, labels, dtype=torch.int64)
    unknown = total = 0
    skipped: dict[str, str] = {}
    for photograph in tqdm(collection, unit="photo", desc="compared", disable=not progress):
        try:
            found, mask = _both(photograph, Path(folder), len(collection.class_names))
        except MaskError as error:
            _logger.warning("%s is skipped: %s", photograph.name, error)
            skipped[photograph.name] = str(error)
            continue
        total += int((mask != VOID).sum())
        unknown += int(((mask != VOID) & (found == VOID)).sum())
        counts += confusion_matrix(found.where(found != VOID, 0), mask.where(found != VOID, VOID), labels, VOID)
    if len(skipped) == len(collection):
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"none of the {len(collection)} photographs could be compared, such as {name}: {reason}")
    compared = len(collection) - len(skipped)
    return LabelMapEvaluation(collection.class_names, Confusion(counts), unknown / max(1, total), compared, skipped)


def _both(photograph: Photograph, folder: Path, class_count: int) -> tuple[torch.Tensor, torch.Tensor]:
    assert photograph.mask is not None
    mask = read_mask(photograph.mask, class_count=class_count)
    found = read_mask(folder / f"{photograph.name}.png", class_count=class_count)
    return resized_labels(found, mask.shape), mask
